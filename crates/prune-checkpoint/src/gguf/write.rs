//! Writing GGUF files that llama.cpp loads.

mod choice;
mod export;
mod file;
mod metadata;
mod tokenizer;
mod transcode;

pub use choice::GgufTypes;
pub use export::GgufExport;
pub use file::{GgufOptions, GgufTensor, GgufValue, GgufWriter};
pub use transcode::transcode;
