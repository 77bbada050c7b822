use std::path::Path;

use prune_core::{LayerId, QuantScheme, QuantizedMatrix, TensorSource};
use serde_json::Value;

use crate::{AuxiliaryFile, Checkpoint, FileState, QuantizedCheckpoint, Result};

/// A model on disk with everything that belongs to it, whether its weights are stored as floats or
/// as codes: what pipelines read from.
///
/// Weights are delivered through [`TensorSource`] under their plain names, dequantised where they
/// are codes.
pub trait ModelSource: TensorSource {
    /// The path that was opened.
    fn path(&self) -> &Path;

    /// The configuration of the delivered weights; see [`Checkpoint::config`].
    ///
    /// # Errors
    /// As there.
    fn config(&self) -> Result<Value>;

    /// See [`Checkpoint::tokenizer_json`].
    ///
    /// # Errors
    /// As there.
    fn tokenizer_json(&self) -> Result<Option<Vec<u8>>>;

    /// See [`Checkpoint::auxiliary_files`]; without files that describe a quantisation.
    ///
    /// # Errors
    /// As there.
    fn auxiliary_files(&self) -> Result<Vec<AuxiliaryFile>>;

    /// See [`Checkpoint::file_states`].
    ///
    /// # Errors
    /// As there.
    fn file_states(&self) -> Result<Vec<FileState>>;

    /// How the weight of this layer is stored, where it is stored as codes.
    fn scheme(&self, _layer: &LayerId) -> Option<QuantScheme> {
        None
    }

    /// The codes of this layer, where [`ModelSource::scheme`] says that it has some.
    ///
    /// # Errors
    /// As [`QuantizedCheckpoint::read_quantized`].
    fn read_quantized(&self, _layer: &LayerId) -> Result<Option<QuantizedMatrix>> {
        Ok(None)
    }
}

/// The model at `path`, whatever its weights are stored as: a dense checkpoint or GGUF file as
/// [`Checkpoint`], one in compressed-tensors, GPTQ or AWQ format as [`QuantizedCheckpoint`].
///
/// # Errors
/// Those of [`Checkpoint::open`] and, where the configuration describes a quantisation, of
/// [`QuantizedCheckpoint::open`].
///
/// ```
/// use prune_checkpoint::{HfWriter, ModelSource, WriterOptions, open_model};
///
/// let directory = tempfile::tempdir()?;
/// let model = directory.path().join("model");
/// let mut writer = HfWriter::create(&model, WriterOptions::default())?;
/// writer.add_file("config.json", br#"{"quantization_config": {"quant_method": "aqlm"}}"#)?;
/// writer.finish()?;
/// let error = open_model(&model).err().map(|e| e.to_string()).unwrap_or_default();
/// assert!(error.contains("aqlm"), "{error}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_model(path: &Path) -> Result<Box<dyn ModelSource>> {
    let checkpoint = Checkpoint::open(path)?;
    match checkpoint.is_quantized()? {
        true => Ok(Box::new(QuantizedCheckpoint::new(checkpoint)?)),
        false => Ok(Box::new(checkpoint)),
    }
}

impl ModelSource for Checkpoint {
    fn path(&self) -> &Path {
        Checkpoint::path(self)
    }

    fn config(&self) -> Result<Value> {
        Checkpoint::config(self)
    }

    fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        Checkpoint::tokenizer_json(self)
    }

    fn auxiliary_files(&self) -> Result<Vec<AuxiliaryFile>> {
        Checkpoint::auxiliary_files(self)
    }

    fn file_states(&self) -> Result<Vec<FileState>> {
        Checkpoint::file_states(self)
    }
}

impl ModelSource for QuantizedCheckpoint {
    fn path(&self) -> &Path {
        QuantizedCheckpoint::path(self)
    }

    fn config(&self) -> Result<Value> {
        QuantizedCheckpoint::config(self)
    }

    fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        QuantizedCheckpoint::tokenizer_json(self)
    }

    fn auxiliary_files(&self) -> Result<Vec<AuxiliaryFile>> {
        QuantizedCheckpoint::auxiliary_files(self)
    }

    fn file_states(&self) -> Result<Vec<FileState>> {
        QuantizedCheckpoint::file_states(self)
    }

    fn scheme(&self, layer: &LayerId) -> Option<QuantScheme> {
        self.layers().binary_search_by(|l| l.id.cmp(layer)).ok().map(|i| self.layers()[i].scheme)
    }

    fn read_quantized(&self, layer: &LayerId) -> Result<Option<QuantizedMatrix>> {
        match self.scheme(layer) {
            None => Ok(None),
            Some(_) => QuantizedCheckpoint::read_quantized(self, layer).map(Some),
        }
    }
}
