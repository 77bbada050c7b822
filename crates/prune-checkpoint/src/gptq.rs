//! The formats of GPTQ: AutoGPTQ's v1 and GPTQModel's v2.

mod config;
mod format;
mod reader;

pub use format::GptqFormat;
pub(crate) use reader::GptqReader;
