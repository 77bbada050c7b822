//! The bridge from checkpoints to [candle](https://docs.rs/candle-core): models that run a block
//! at a time.

mod config;
mod error;
mod llama;
mod ops;
mod rope;
mod tokenizer;

pub use config::{FAMILIES, LlamaConfig, RopeScaling};
pub use error::{Error, Result};
pub use llama::LlamaModel;
pub use tokenizer::Tokenizer;
