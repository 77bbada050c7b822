use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prune_core::{LayerId, QuantizedMatrix, TensorInfo, TensorSource, encode_f32};
use serde_json::Value;

use super::{LayerReader, LayerTensors, QuantizedLayer, Reader, delivered_dtype};
use crate::{
    AuxiliaryFile, Checkpoint, Contents, Error, FileState, Result, awq, compressed_tensors, gptq,
};

/// A checkpoint in compressed-tensors, GPTQ or AWQ format, read as matrices of codes or, through
/// [`TensorSource`], as the weights that they stand for.
///
/// Weights are delivered under their plain names in the dtype of the scales (FP4 in BF16), with the
/// bits that the reference decoders give. Opening reads headers and shapes and checks all of them. A layer is
/// decoded when it is asked for, and the last ones are kept, one for each thread, so that layers can
/// be read in parts.
///
/// | format | variants that are read |
/// |---|---|
/// | compressed-tensors | `pack-quantized`, integers of 1 to 8 bits, packed before and since 0.18; `nvfp4-pack-quantized`, `mxfp4-pack-quantized`; `mixed-precision` of these |
/// | GPTQ | `gptq` (v1), `gptq_v2` and `gptq_p` (planar), 2 to 8 bits, any order of groups |
/// | AWQ | `gemm`, 4 bits |
///
/// ```
/// use prune_checkpoint::QuantizedCheckpoint;
/// use prune_core::TensorSource;
/// # fn show(model: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
/// let model = QuantizedCheckpoint::open(model)?;
/// for layer in model.layers() {
///     let matrix = model.read_quantized(&layer.id)?;
///     println!("{}: {}, {} bits a weight", layer.id, layer.scheme, matrix.bits_per_weight());
///     assert_eq!(model.read_f32(&layer.id.weight_name())?.len(), layer.rows * layer.cols);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct QuantizedCheckpoint {
    source: Checkpoint,
    format: &'static str,
    layers: Vec<Box<dyn LayerReader>>,
    infos: Vec<QuantizedLayer>,
    tensors: Vec<TensorInfo>,
    /// From the delivered name to the layer.
    of_weight: HashMap<String, usize>,
    /// The layers that were decoded last, the newest first.
    last: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl QuantizedCheckpoint {
    /// The checkpoint at `path`, as [`Checkpoint::open`] takes it.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Checkpoint::config`]; [`Error::Field`] when the
    /// configuration says nothing of quantisation or contradicts itself; [`Error::Unsupported`] for
    /// other formats and variants, by name; [`Error::Tensor`] for a layer whose tensors do not go
    /// together.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Checkpoint::open(path)?)
    }

    pub(crate) fn new(source: Checkpoint) -> Result<Self> {
        let path = source.path().to_path_buf();
        let path = path.as_path();
        let reader = reader(&source)?;
        let marker = format!(".{}", reader.marker());
        let names: Vec<LayerId> = source
            .tensors()
            .iter()
            .filter_map(|t| t.name.strip_suffix(&marker))
            .map(LayerId::new)
            .collect();
        if names.is_empty() {
            return Err(Error::Field {
                path: path.to_path_buf(),
                field: format!("tensors called `*{marker}`"),
                found: "none".to_string(),
                expected: format!("some, as the configuration says {}", reader.format()),
            });
        }
        let mut layers = Vec::with_capacity(names.len());
        for layer in &names {
            layers.push(reader.layer(&LayerTensors { source: &source, path, layer })?);
        }
        let infos: Vec<QuantizedLayer> = layers.iter().map(|l| l.info().clone()).collect();
        let mut tensors = Vec::new();
        let mut of_weight = HashMap::new();
        for (i, layer) in infos.iter().enumerate() {
            let name = layer.id.weight_name();
            if source.info(&name).is_ok() {
                return Err(Error::DuplicateTensor { path: path.to_path_buf(), tensor: name });
            }
            let dtype = delivered_dtype(layer.scheme.scale);
            tensors.push(TensorInfo {
                name: name.clone(),
                dtype,
                shape: vec![layer.rows, layer.cols],
            });
            of_weight.insert(name, i);
        }
        let belongs = |tensor: &TensorInfo| {
            reader.endings().iter().any(|ending| {
                tensor
                    .name
                    .strip_suffix(ending)
                    .and_then(|n| n.strip_suffix('.'))
                    .is_some_and(|layer| of_weight.contains_key(&format!("{layer}.weight")))
            })
        };
        tensors.extend(source.tensors().iter().filter(|t| !belongs(t)).cloned());
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let format = reader.format();
        Ok(Self { source, format, layers, infos, tensors, of_weight, last: Mutex::new(Vec::new()) })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The name of the format: `compressed-tensors`, `gptq` or `awq`.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The quantised layers, in the order of their names.
    pub fn layers(&self) -> &[QuantizedLayer] {
        &self.infos
    }

    /// The codes, scales and zero points of a layer.
    ///
    /// # Errors
    /// [`Error::NotPlanned`] for a layer that is not quantised; [`Error::Tensor`] for codes, zero
    /// points or groups that contradict each other; [`Error::Io`].
    pub fn read_quantized(&self, layer: &LayerId) -> Result<QuantizedMatrix> {
        match self.of_weight.get(&layer.weight_name()) {
            Some(i) => self.decode(*i),
            None => Err(Error::NotPlanned { tensor: layer.weight_name() }),
        }
    }

    fn decode(&self, index: usize) -> Result<QuantizedMatrix> {
        let reader = &self.layers[index];
        let path = self.source.path();
        reader.read(&LayerTensors { source: &self.source, path, layer: &reader.info().id })
    }

    /// `config.json` without what it says about quantisation: that of the delivered weights.
    ///
    /// # Errors
    /// As [`Checkpoint::config`].
    pub fn config(&self) -> Result<Value> {
        let mut config = self.source.config()?;
        if let Some(fields) = config.as_object_mut() {
            fields.remove("quantization_config");
        }
        Ok(config)
    }

    /// As [`Checkpoint::tokenizer_json`].
    ///
    /// # Errors
    /// As there.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        self.source.tokenizer_json()
    }

    /// As [`Checkpoint::file_states`].
    ///
    /// # Errors
    /// As there.
    pub fn file_states(&self) -> Result<Vec<FileState>> {
        self.source.file_states()
    }

    /// As [`Checkpoint::auxiliary_files`], for the delivered weights: without files that describe
    /// the quantisation.
    ///
    /// # Errors
    /// As there.
    pub fn auxiliary_files(&self) -> Result<Vec<AuxiliaryFile>> {
        let mut files = self.source.auxiliary_files()?;
        files.retain(|f| f.name != "quantize_config.json" && f.name != "quant_config.json");
        for file in files.iter_mut().filter(|f| f.name == "config.json") {
            file.contents = Contents::Bytes(format!("{:#}\n", self.config()?).into_bytes());
        }
        Ok(files)
    }

    /// The delivered bytes of a layer, decoded or from the last time.
    fn weight(&self, index: usize) -> prune_core::Result<Arc<Vec<u8>>> {
        let held = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = held().iter().find(|(i, _)| *i == index) {
            return Ok(Arc::clone(bytes));
        }
        // Not under the lock: decoding shares its work over threads, and a thread that waits for
        // the others may be given a read of another layer meanwhile.
        let layer = &self.infos[index];
        let values = self.decode(index)?.dequantize();
        let dtype = delivered_dtype(layer.scheme.scale);
        let name = layer.id.weight_name();
        let bytes = Arc::new(encode_f32(&name, dtype, values.as_slice().unwrap_or_default())?);
        let mut last = held();
        last.retain(|(i, _)| *i != index);
        last.insert(0, (index, Arc::clone(&bytes)));
        // One for each thread that may be reading a layer in parts.
        last.truncate(rayon::current_num_threads());
        Ok(bytes)
    }
}

impl TensorSource for QuantizedCheckpoint {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let Some(index) = self.of_weight.get(name) else {
            self.info(name)?;
            return self.source.read_at(name, offset, buf);
        };
        let bytes = self.weight(*index)?;
        let end = offset.checked_add(buf.len()).filter(|end| *end <= bytes.len());
        match end {
            Some(end) => {
                buf.copy_from_slice(&bytes[offset..end]);
                Ok(())
            }
            None => Err(prune_core::Error::OutOfRange {
                what: format!("the range read from tensor `{name}`"),
                found: format!("{} bytes from byte {offset} on", buf.len()),
                expected: format!("a range within its {} bytes", bytes.len()),
            }),
        }
    }
}

/// What reads the format that the configuration names.
fn reader(source: &Checkpoint) -> Result<Box<dyn Reader>> {
    let Some(config) = quantization_config(source)? else {
        return Err(Error::Field {
            path: source.path().to_path_buf(),
            field: "quantization_config of config.json".to_string(),
            found: "missing".to_string(),
            expected: "a description of the quantisation; a model that is not quantised is \
                       opened as a `Checkpoint`"
                .to_string(),
        });
    };
    reader_of(source.path(), &config)
}

/// What reads the format that a `quantization_config` names.
pub(super) fn reader_of(path: &Path, config: &Value) -> Result<Box<dyn Reader>> {
    let method = config["quant_method"].as_str().unwrap_or("gptq");
    match method {
        "compressed-tensors" => Ok(Box::new(compressed_tensors::PackedReader::new(path, config)?)),
        "gptq" => Ok(Box::new(gptq::GptqReader::new(path, config)?)),
        "awq" => Ok(Box::new(awq::AwqReader::new(path, config)?)),
        other => Err(Error::Unsupported {
            path: path.to_path_buf(),
            what: format!(
                "the quantisation method `{}`",
                other.chars().take(60).collect::<String>()
            ),
            instead: "compressed-tensors, gptq and awq are read".to_string(),
        }),
    }
}

/// `quantization_config`, or the file of its own that older GPTQ and AWQ models have.
pub(crate) fn quantization_config(source: &Checkpoint) -> Result<Option<Value>> {
    let config = source.config()?;
    for field in ["quantization_config", "compression_config"] {
        if let Some(found) = config.get(field).filter(|v| v.is_object()) {
            return Ok(Some(found.clone()));
        }
    }
    for file in source.auxiliary_files()? {
        let method = match file.name.as_str() {
            "quantize_config.json" => "gptq",
            "quant_config.json" => "awq",
            _ => continue,
        };
        let bytes = match file.contents {
            Contents::Bytes(bytes) => bytes,
            Contents::Path(path) => crate::ranged_file::RangedFile::open(&path)?
                .read_all("quantisation configuration", crate::limits::JSON_BYTES)?,
        };
        let mut found: Value = serde_json::from_slice(&bytes).map_err(|e| Error::Json {
            path: source.path().join(&file.name),
            what: "quantisation configuration",
            reason: e.to_string(),
        })?;
        if let Some(fields) = found.as_object_mut() {
            fields.entry("quant_method").or_insert_with(|| method.into());
            return Ok(Some(found));
        }
    }
    Ok(None)
}
