//! The formats `pack-quantized`, `nvfp4-pack-quantized` and `mxfp4-pack-quantized` of
//! compressed-tensors.

mod config;
mod format;
mod fp4;
mod reader;

pub use format::CompressedTensors;
pub(crate) use reader::PackedReader;
