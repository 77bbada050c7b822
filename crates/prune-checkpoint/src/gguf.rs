//! GGUF files of the Llama family, read as Hugging Face checkpoints and written from them.

mod block;
mod config;
mod encode;
mod header;
mod metadata;
mod names;
mod permutation;
mod reader;
mod rope;
mod source;
mod tokenizer;
mod tokenizer_config;
mod types;
mod write;

pub(crate) use source::GgufSource;
pub use types::{BlockType, GgufType};
pub use write::{GgufExport, GgufOptions, GgufTensor, GgufTypes, GgufValue, GgufWriter, transcode};
