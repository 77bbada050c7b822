use std::path::Path;

use prune_core::{LayerId, QuantScheme, QuantizedMatrix, TensorSource};

use super::checkpoint::reader_of;
use super::{LayerTensors, QuantFormat};
use crate::Result;

/// The matrix that [`QuantFormat::encode`] stored in `tensors`, by the reader of the format.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) for tensors that are missing or do not go together.
///
/// ```
/// use prune_checkpoint::{QuantFormat, decode_layer, quant_format};
/// # fn f(tensors: &dyn prune_core::TensorSource) -> Result<(), Box<dyn std::error::Error>> {
/// let format = quant_format("gptq").expect("listed");
/// let scheme = "int4 g128 asym".parse()?;
/// let matrix = decode_layer(&*format, &"model.layers.0.up_proj".into(), &scheme, tensors)?;
/// println!("{} x {}", matrix.rows(), matrix.cols());
/// # Ok(())
/// # }
/// ```
pub fn decode_layer(
    format: &dyn QuantFormat,
    layer: &LayerId,
    scheme: &QuantScheme,
    tensors: &dyn TensorSource,
) -> Result<QuantizedMatrix> {
    let path = Path::new("");
    let config = format.config(&[(layer.clone(), *scheme)], &[])?;
    let parts = LayerTensors { source: tensors, path, layer };
    reader_of(path, &config)?.layer(&parts)?.read(&parts)
}
