//! The format `pack-quantized` of compressed-tensors.

mod config;
mod format;
mod reader;

pub use format::CompressedTensors;
pub(crate) use reader::PackedReader;
