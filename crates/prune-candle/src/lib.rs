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
//! | ViT and DeiT, with gradients, for a trainer too | [`Vit`], [`VitConfig`], [`VitNaming`] |
//! | vectors of texts | [`SentenceEncoder`], [`SentenceOptions`] |
//! | tokens through a KV cache, generation | [`Decoder`], [`Feed`], [`KvOrder`], [`Generation`], [`Sampling`] |
//! | what a KV cache costs in quality | [`KvText`], [`KvKind`], [`KvEvaluation`], [`RecallTask`], [`RecallBench`] |
//! | fewest bits for a KV cache (KVTuner) | [`tune_kv`], [`KvTuneOptions`], [`KvJudge`], [`KvTuneReport`] |
//! | queries, keys and values of every layer | [`AttentionCapture`], [`LlamaModel::capture_attention`], [`LlamaModel::kv_errors`] |
//! | text to token ids | [`Tokenizer`] |
//! | fine-tuning: all of a model, adapters, blocks in turns | [`TrainableLlama`], [`LoraOptions`], [`TokenWindows`] |
//! | how many outliers the blocks hold (OwLore) | [`outlier_scores`] |
//! | what can go wrong | [`Error`], [`Result`] |

mod bert;
mod bert_config;
mod capture;
mod config;
mod decoder;
mod error;
mod generate;
mod kv_text;
mod kv_tune;
mod linear;
mod llama;
mod load_model;
mod ops;
mod recall;
mod rope;
mod sentence;
mod tensors;
mod tokenizer;
mod train;
mod vit;

pub use bert::BertModel;
pub use bert_config::{Activation, BertConfig, ENCODER_FAMILIES};
pub use capture::AttentionCapture;
pub use config::{FAMILIES, LlamaConfig, RopeScaling};
pub use decoder::{Decoder, Feed, KvOrder};
pub use error::{Error, Result};
pub use generate::{Generation, Sampling};
pub use kv_text::{KvEvaluation, KvKind, KvText};
pub use kv_tune::{KvJudge, KvTuneOptions, KvTuneReport, tune_kv};
pub use llama::LlamaModel;
pub use load_model::load_model;
pub use recall::{RecallAnswers, RecallBench, RecallOptions, RecallScore, RecallTask};
pub use sentence::{Pooling, Scaling, SentenceEncoder, SentenceOptions};
pub use tokenizer::Tokenizer;
pub use train::{
    Activations, LoraOptions, TokenBatch, TokenWindows, TrainableLlama, outlier_scores,
};
pub use vit::{Vit, VitConfig, VitNaming};
