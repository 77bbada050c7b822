use std::fmt;
use std::str::FromStr;

use prune_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::out_of_range;

/// The width of a cached number.
///
/// In files it is the number itself: 2, 4, 8 or 16.
///
/// ```
/// use prune_quant::kv::KvBits;
/// assert_eq!(KvBits::try_from(4)?, KvBits::Four);
/// assert_eq!(KvBits::Four.levels(), 15);
/// assert!(KvBits::try_from(5).is_err());
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum KvBits {
    /// Four levels.
    Two,
    /// 16 levels.
    Four,
    /// 256 levels.
    Eight,
    /// Not quantised: an IEEE half.
    Sixteen,
}

impl KvBits {
    /// Bits of a code.
    pub fn width(self) -> u32 {
        match self {
            KvBits::Two => 2,
            KvBits::Four => 4,
            KvBits::Eight => 8,
            KvBits::Sixteen => 16,
        }
    }

    /// The largest code, `2^b − 1`.
    pub fn levels(self) -> u32 {
        (1 << self.width()) - 1
    }
}

impl TryFrom<u8> for KvBits {
    type Error = Error;

    fn try_from(bits: u8) -> Result<Self> {
        match bits {
            2 => Ok(KvBits::Two),
            4 => Ok(KvBits::Four),
            8 => Ok(KvBits::Eight),
            16 => Ok(KvBits::Sixteen),
            other => Err(out_of_range("width of a KV cache", other, "2, 4, 8 or 16 bits")),
        }
    }
}

impl From<KvBits> for u8 {
    fn from(bits: KvBits) -> u8 {
        bits.width() as u8
    }
}

impl fmt::Display for KvBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.width())
    }
}

/// The widths of a layer's keys and values.
///
/// Written as the papers do: `KV8` for equal widths, else `K8V4`.
///
/// ```
/// use prune_quant::kv::KvPair;
/// let pair: KvPair = "K8V4".parse()?;
/// assert_eq!(pair.mean_bits(), 6.0);
/// assert_eq!(("KV4".parse::<KvPair>()?).to_string(), "KV4");
/// assert!("K8".parse::<KvPair>().is_err());
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvPair {
    /// Of the keys.
    pub key: KvBits,
    /// Of the values.
    pub value: KvBits,
}

impl KvPair {
    /// The nine pairs of 8, 4 and 2 bits, keys first: K8V8, K8V4, K8V2, K4V8 and so on to K2V2.
    pub const NINE: [KvPair; 9] = {
        use KvBits::{Eight, Four, Two};
        [
            KvPair::new(Eight, Eight),
            KvPair::new(Eight, Four),
            KvPair::new(Eight, Two),
            KvPair::new(Four, Eight),
            KvPair::new(Four, Four),
            KvPair::new(Four, Two),
            KvPair::new(Two, Eight),
            KvPair::new(Two, Four),
            KvPair::new(Two, Two),
        ]
    };

    /// The pairs that the paper finds on the Pareto front of most layers, where keys are never
    /// narrower than values: KV8, K8V4, KV4, K4V2 and KV2.
    pub const USUAL: [KvPair; 5] = {
        let [kv8, k8v4, _, _, kv4, k4v2, _, _, kv2] = Self::NINE;
        [kv8, k8v4, kv4, k4v2, kv2]
    };

    /// A pair.
    pub const fn new(key: KvBits, value: KvBits) -> Self {
        Self { key, value }
    }

    /// The same width for keys and values.
    pub const fn both(bits: KvBits) -> Self {
        Self { key: bits, value: bits }
    }

    /// The paper's "equivalent bits", `(key + value) / 2`: codes alone, without scales and offsets.
    pub fn mean_bits(self) -> f64 {
        f64::from(self.key.width() + self.value.width()) / 2.0
    }
}

impl fmt::Display for KvPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key == self.value {
            write!(f, "KV{}", self.key)
        } else {
            write!(f, "K{}V{}", self.key, self.value)
        }
    }
}

impl FromStr for KvPair {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || out_of_range("KV pair", text, "a pair such as KV4 or K8V4");
        let bits = |digits: &str| -> Result<KvBits> {
            KvBits::try_from(digits.parse::<u8>().map_err(|_| invalid())?)
        };
        if let Some(both) = text.strip_prefix("KV") {
            return Ok(Self::both(bits(both)?));
        }
        let (key, value) =
            text.strip_prefix('K').and_then(|t| t.split_once('V')).ok_or_else(invalid)?;
        Ok(Self::new(bits(key)?, bits(value)?))
    }
}
