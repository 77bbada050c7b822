use std::path::Path;

use prune_core::{
    DType, LayerId, QuantScheme, QuantizedMatrix, ScaleFormat, TensorInfo, TensorSource,
};

use crate::{Error, Result};

/// A quantised linear layer of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLayer {
    /// Its name.
    pub id: LayerId,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// How it is quantised.
    pub scheme: QuantScheme,
}

/// What knows how the layers of one checkpoint are stored.
pub(crate) trait Reader: Send + Sync + std::fmt::Debug {
    /// The name of the format.
    fn format(&self) -> &'static str;

    /// The name's ending of the tensor that every quantised layer has and no other.
    fn marker(&self) -> &'static str;

    /// The name endings of all tensors that a quantised layer may have.
    fn endings(&self) -> &'static [&'static str];

    /// Reads shapes (and small tensors) of one layer.
    fn layer(&self, tensors: &LayerTensors<'_>) -> Result<Box<dyn LayerReader>>;
}

/// One layer of a checkpoint, its shapes checked.
pub(crate) trait LayerReader: Send + Sync + std::fmt::Debug {
    fn info(&self) -> &QuantizedLayer;

    fn read(&self, tensors: &LayerTensors<'_>) -> Result<QuantizedMatrix>;
}

/// The tensors of one layer, with errors that name them.
pub(crate) struct LayerTensors<'a> {
    pub(crate) source: &'a dyn TensorSource,
    /// Where the source is, for errors.
    pub(crate) path: &'a Path,
    pub(crate) layer: &'a LayerId,
}

impl LayerTensors<'_> {
    pub(crate) fn name(&self, ending: &str) -> String {
        format!("{}.{ending}", self.layer)
    }

    pub(crate) fn optional(&self, ending: &str) -> Option<&TensorInfo> {
        self.source.info(&self.name(ending)).ok()
    }

    pub(crate) fn require(&self, ending: &str) -> Result<&TensorInfo> {
        self.optional(ending).ok_or_else(|| {
            self.wrong(ending, "it", "missing".to_string(), "a tensor of the layer".to_string())
        })
    }

    pub(crate) fn wrong(
        &self,
        ending: &str,
        field: &'static str,
        found: String,
        expected: String,
    ) -> Error {
        let path = self.path.to_path_buf();
        Error::Tensor { path, tensor: self.name(ending), field, found, expected }
    }

    pub(crate) fn check_dtype(&self, info: &TensorInfo, ending: &str, dtype: DType) -> Result<()> {
        if info.dtype == dtype {
            return Ok(());
        }
        Err(self.wrong(ending, "dtype", info.dtype.to_string(), dtype.to_string()))
    }

    pub(crate) fn check_shape(
        &self,
        info: &TensorInfo,
        ending: &str,
        expected: &[usize],
    ) -> Result<()> {
        if info.shape == expected {
            return Ok(());
        }
        Err(self.wrong(ending, "shape", format!("{:?}", info.shape), format!("{expected:?}")))
    }

    /// `(rows, cols)` of a matrix.
    pub(crate) fn matrix(&self, info: &TensorInfo, ending: &str) -> Result<(usize, usize)> {
        match info.shape[..] {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(self.wrong(
                ending,
                "shape",
                format!("{:?}", info.shape),
                "two dimensions".to_string(),
            )),
        }
    }

    /// The bytes of a tensor that [`LayerTensors::require`] found.
    pub(crate) fn read(&self, ending: &str) -> Result<Vec<u8>> {
        let name = self.name(ending);
        self.source.read(&name).map_err(|e| self.failed(ending, e))
    }

    pub(crate) fn read_f32(&self, ending: &str) -> Result<Vec<f32>> {
        let name = self.name(ending);
        self.source.read_f32(&name).map_err(|e| self.failed(ending, e))
    }

    fn failed(&self, ending: &str, error: prune_core::Error) -> Error {
        self.wrong(ending, "contents", error.to_string(), "readable finite numbers".to_string())
    }

    /// Names the file in errors about the parts of a matrix.
    pub(crate) fn invalid(&self, ending: &str, error: prune_core::Error) -> Error {
        self.wrong(ending, "contents", error.to_string(), "a quantised matrix".to_string())
    }
}

/// The format of scales of this dtype.
pub(crate) fn scale_format(dtype: DType) -> Option<ScaleFormat> {
    match dtype {
        DType::F32 => Some(ScaleFormat::F32),
        DType::F16 => Some(ScaleFormat::F16),
        DType::BF16 => Some(ScaleFormat::BF16),
        _ => None,
    }
}

/// The dtype of scales of this format.
pub(crate) fn scale_dtype(format: ScaleFormat) -> Option<DType> {
    match format {
        ScaleFormat::F32 => Some(DType::F32),
        ScaleFormat::F16 => Some(DType::F16),
        ScaleFormat::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// The dtype in which weights with scales of this format are delivered: that of the scales, and
/// BF16 for scales of 8 bits, as compressed-tensors has it. The weights of MXFP4 are exact in it.
pub(crate) fn delivered_dtype(format: ScaleFormat) -> DType {
    match format {
        ScaleFormat::E4M3 | ScaleFormat::E8M0 => DType::BF16,
        other => scale_dtype(other).unwrap_or(DType::F32),
    }
}

/// A layer that a format cannot hold.
pub(crate) fn refuse(format: &str, layer: &LayerId, found: String, expected: &str) -> Error {
    Error::Tensor {
        path: Path::new("").to_path_buf(),
        tensor: layer.weight_name(),
        field: "the quantisation scheme",
        found: format!("{found}, to be stored as {format}"),
        expected: expected.to_string(),
    }
}
