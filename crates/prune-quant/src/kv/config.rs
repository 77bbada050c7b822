use std::collections::BTreeMap;

use prune_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{KvBits, KvPair, KvScheme, KvShape, out_of_range};

/// The widths of every layer's cache, with the scheme that they were chosen for: what a tuning run
/// leaves behind and a cache is built from.
///
/// Our file is this type as JSON or YAML, by serde; unknown fields are refused. KVTuner's own file
/// ([`KvConfig::from_kvtuner_yaml`], [`KvConfig::to_kvtuner_yaml`]) has the widths alone.
///
/// ```
/// use prune_quant::kv::{KvConfig, KvScheme};
/// let config = KvConfig::new(vec!["K8V4".parse()?, "KV2".parse()?], KvScheme::kivi())?;
/// assert_eq!(config.mean_bits(), 4.0);
/// let json = serde_json::to_string(&config).unwrap();
/// assert_eq!(serde_json::from_str::<KvConfig>(&json).unwrap(), config);
///
/// let yaml = config.to_kvtuner_yaml();
/// assert!(yaml.starts_with("0:\n  nbits_key: 8\n  nbits_value: 4\n"));
/// assert_eq!(KvConfig::from_kvtuner_yaml(&yaml, KvScheme::kivi())?, config);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "File", into = "File")]
pub struct KvConfig {
    scheme: KvScheme,
    layers: Vec<KvPair>,
}

/// The file of a [`KvConfig`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    scheme: KvScheme,
    layers: Vec<KvPair>,
}

const FORMAT: &str = "prune-kv-1";

impl KvConfig {
    /// A configuration of these pairs, one a layer.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without layers.
    pub fn new(layers: Vec<KvPair>, scheme: KvScheme) -> Result<Self> {
        if layers.is_empty() {
            return Err(out_of_range("layers of the KV configuration", 0, "at least 1"));
        }
        Ok(Self { scheme, layers })
    }

    /// The same pair for every layer.
    ///
    /// # Errors
    /// As [`KvConfig::new`].
    pub fn uniform(layers: usize, pair: KvPair, scheme: KvScheme) -> Result<Self> {
        Self::new(vec![pair; layers], scheme)
    }

    /// How the cache quantises.
    pub fn scheme(&self) -> &KvScheme {
        &self.scheme
    }

    /// The pair of each layer.
    pub fn layers(&self) -> &[KvPair] {
        &self.layers
    }

    /// The paper's equivalent bits: the mean of [`KvPair::mean_bits`] over the layers, scales and
    /// offsets not counted.
    pub fn mean_bits(&self) -> f64 {
        self.layers.iter().map(|p| p.mean_bits()).sum::<f64>() / self.layers.len() as f64
    }

    /// Honest bits a cached number, scales and offsets counted, in heads of `head_dim` channels.
    pub fn stored_bits(&self, head_dim: usize) -> f64 {
        let bits = self.layers.iter().map(|p| self.scheme.stored_bits(*p, head_dim));
        bits.sum::<f64>() / self.layers.len() as f64
    }

    /// Bytes that one more token takes on average, outside the residual window.
    ///
    /// ```
    /// use prune_quant::kv::{KvConfig, KvScheme, KvShape};
    /// let llama = KvShape { layers: 32, kv_heads: 8, head_dim: 128 };
    /// let kv4 = KvConfig::uniform(32, "KV4".parse()?, KvScheme::per_token())?;
    /// assert_eq!((llama.half_bytes(), kv4.bytes_per_token(llama)), (131_072, 34_816.0));
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn bytes_per_token(&self, shape: KvShape) -> f64 {
        let numbers = 2.0 * self.layers.len() as f64 * shape.width() as f64;
        self.stored_bits(shape.head_dim) / 8.0 * numbers
    }

    /// The configuration that a file of the KVTuner repository states, for the scheme that the file
    /// does not state. In the form by head, all heads of a layer must agree.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] naming the layer whose heads differ, that is missing or whose width is
    /// not 2, 4, 8 or 16; [`Error::External`] for text that does not parse.
    pub fn from_kvtuner_yaml(text: &str, scheme: KvScheme) -> Result<Self> {
        let layers: BTreeMap<usize, OfficialLayer> =
            yaml_serde::from_str(text).map_err(|e| Error::external("KVTuner configuration", e))?;
        let mut pairs = Vec::with_capacity(layers.len());
        for (expected, (index, layer)) in layers.into_iter().enumerate() {
            if index != expected {
                let what = "KVTuner configuration: next layer";
                return Err(out_of_range(what, index, expected.to_string()));
            }
            pairs.push(layer.pair(index)?);
        }
        Self::new(pairs, scheme)
    }

    /// The text of the file that the KVTuner repository reads. The scheme is not in it.
    pub fn to_kvtuner_yaml(&self) -> String {
        let layers = self.layers.iter().enumerate();
        layers
            .map(|(i, p)| format!("{i}:\n  nbits_key: {}\n  nbits_value: {}\n", p.key, p.value))
            .collect()
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.layers.capacity() * size_of::<KvPair>()
    }
}

impl TryFrom<File> for KvConfig {
    type Error = Error;

    fn try_from(file: File) -> Result<Self> {
        if file.format != FORMAT {
            return Err(out_of_range("format of the KV configuration", file.format, FORMAT));
        }
        Self::new(file.layers, file.scheme)
    }
}

impl From<KvConfig> for File {
    fn from(config: KvConfig) -> Self {
        Self { format: FORMAT.to_string(), scheme: config.scheme, layers: config.layers }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OfficialLayer {
    Whole(OfficialPair),
    ByHead(BTreeMap<usize, OfficialPair>),
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfficialPair {
    nbits_key: u8,
    nbits_value: u8,
}

impl OfficialLayer {
    fn pair(self, layer: usize) -> Result<KvPair> {
        let pair = match self {
            OfficialLayer::Whole(pair) => pair,
            OfficialLayer::ByHead(heads) => {
                let what = || format!("KVTuner configuration: layer {layer}");
                let mut pairs = heads.into_values();
                let first = pairs
                    .next()
                    .ok_or_else(|| out_of_range(what(), "no heads", "at least one head"))?;
                if pairs.any(|p| p != first) {
                    let expected = "equal widths for all heads of a layer";
                    return Err(out_of_range(what(), "different widths by head", expected));
                }
                first
            }
        };
        let bits = |bits| {
            KvBits::try_from(bits).map_err(|_| {
                let what = format!("KVTuner configuration: width in layer {layer}");
                out_of_range(what, bits, "2, 4, 8 or 16 bits")
            })
        };
        Ok(KvPair::new(bits(pair.nbits_key)?, bits(pair.nbits_value)?))
    }
}
