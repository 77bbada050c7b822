//! The bridge from checkpoints to [candle](https://docs.rs/candle-core): models that run a block
//! at a time, with the inputs of their linear layers visible.
//!
//! ```no_run
//! use prune_candle::load_model;
//! use prune_checkpoint::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct".as_ref())?;
//! let model = load_model(&checkpoint.config()?, &checkpoint)?;
//! let mut hidden = model.embed(&checkpoint, &[1, 2, 3])?;
//! for index in 0..model.blocks() {
//!     hidden = model.load_block(&checkpoint, index)?.forward(hidden.view())?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | what | where |
//! |---|---|
//! | the model of a checkpoint, of any family | [`load_model`] |
//! | Llama, Mistral, Qwen2, Qwen3 | [`LlamaModel`], [`LlamaConfig`] |
//! | BERT, RoBERTa and sentence encoders made of them | [`BertModel`], [`BertConfig`] |
//! | vectors of texts | [`SentenceEncoder`], [`SentenceOptions`] |
//! | text to token ids | [`Tokenizer`] |
//! | what can go wrong | [`Error`], [`Result`] |

mod bert;
mod bert_config;
mod config;
mod error;
mod linear;
mod llama;
mod load_model;
mod ops;
mod rope;
mod sentence;
mod tensors;
mod tokenizer;

pub use bert::BertModel;
pub use bert_config::{Activation, BertConfig, ENCODER_FAMILIES};
pub use config::{FAMILIES, LlamaConfig, RopeScaling};
pub use error::{Error, Result};
pub use llama::LlamaModel;
pub use load_model::load_model;
pub use sentence::{Pooling, Scaling, SentenceEncoder, SentenceOptions};
pub use tokenizer::Tokenizer;
