//! Products with the block formats of GGUF files.

mod blocks;
mod format;
mod kernel;
mod rows;
mod super_blocks;

pub use format::BlockFormat;
pub use kernel::GgufKernel;
