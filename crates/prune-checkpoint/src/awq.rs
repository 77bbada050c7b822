//! AWQ's `gemm` format.

mod format;
mod reader;

pub use format::AwqFormat;
pub(crate) use reader::AwqReader;
