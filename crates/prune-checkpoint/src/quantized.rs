//! Checkpoints whose linear layers are stored as codes.

mod bytes;
mod checkpoint;
mod decode;
mod format;
mod parts;
mod writer;

pub(crate) use bytes::{i32s, u32s, words_to_bytes};
pub use checkpoint::QuantizedCheckpoint;
pub(crate) use checkpoint::quantization_config;
pub use decode::decode_layer;
pub use format::{QUANT_FORMATS, QuantFormat, quant_format};
pub(crate) use format::{check_column_scales, check_extras};
pub use parts::QuantizedLayer;
pub(crate) use parts::{
    LayerReader, LayerTensors, Reader, delivered_dtype, refuse, scale_dtype, scale_format,
};
pub use writer::{QuantizedOptions, QuantizedWriter};
