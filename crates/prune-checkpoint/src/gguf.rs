//! Reading GGUF files of the Llama family as Hugging Face checkpoints.

mod block;
mod config;
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

pub(crate) use source::GgufSource;
