//! Recipe to plan to apply to verify: a checkpoint goes in, a smaller one and the proof of what
//! was done come out.
//!
//! ```no_run
//! use std::path::Path;
//! use prune_checkpoint::Checkpoint;
//! use prune_pipeline::{ApplyOptions, Plan, Recipe, apply, verify};
//!
//! let source = Checkpoint::open(Path::new("SmolLM2-135M-Instruct"))?;
//! let plan = Plan::new(&source, &Recipe::new("magnitude").sparsity(0.5), None)?;
//! apply(&source, &plan, None, Path::new("out"), &ApplyOptions::default(), &mut |_, _, _| ())?;
//! assert!(verify(Path::new("out"))?.ok);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | step | here |
//! |---|---|
//! | what is wanted | [`Recipe`], [`Rule`], [`Targets`] |
//! | what will be done | [`Plan`], [`PlannedTensor`], [`linear_layers`] |
//! | token ids, images | [`TokenWindows`], [`Images`] |
//! | a model to run on them | [`Calibration`], over [`prune_core::BlockModel`] or [`prune_core::ImageModel`] |
//! | doing it | [`apply`], [`ApplyOptions`] |
//! | what was done | [`Manifest`], in `prune-manifest.json`; factors of layers in [`FACTORS`] |
//! | within what memory | [`MemoryBudget`], [`Schedule`] |
//! | proving it from disk | [`verify`], [`Verification`] |
//! | proving it again from the source | [`rederive`] |
//! | what changed between two checkpoints | [`diff()`], [`TensorDifference`] |
//! | how good it still is | [`evaluate`], [`Evaluation`], [`CalibrationLoss`] |
//!
//! The crate knows no tensor framework: a model is anything that implements
//! [`prune_core::BlockModel`] or [`prune_core::ImageModel`].

mod apply;
mod calibrate;
mod calibration;
mod compress;
mod coverage;
mod diff;
mod error;
mod evaluate;
mod fold;
mod gradients;
mod hidden;
mod images;
mod journal;
mod layer_bits;
mod lpvit;
mod manifest;
mod measure;
mod memory;
mod method;
mod output;
mod output_error;
mod plan;
mod plan_quantized;
mod processor;
mod quantize;
mod recipe;
mod rederive;
mod run;
mod schedule;
mod sink;
mod store;
mod targets;
mod verify;
mod verify_factors;
mod windows;

pub use apply::{ApplyOptions, Progress, apply};
pub use calibration::Calibration;
pub use coverage::linear_layers;
pub use diff::{Side, TensorDifference, diff};
pub use error::{Error, Result};
pub use evaluate::{CalibrationLoss, Evaluation, Weighted, evaluate};
pub use images::Images;
pub use manifest::{
    FACTORS, FactorRecord, FactoredRecord, FileRecord, MANIFEST, Manifest, PrunedRecord,
    QuantizedRecord, TensorRecord,
};
pub use memory::MemoryBudget;
pub use plan::{Action, CalibrationShape, Plan, PlannedFactor, PlannedTensor, Totals};
pub use processor::processor;
pub use recipe::{Recipe, Rule};
pub use rederive::rederive;
pub use schedule::Schedule;
pub use targets::Targets;
pub use verify::{Failure, Verification, verify};
pub use windows::TokenWindows;
