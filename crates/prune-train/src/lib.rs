//! A small training loop over [candle](https://docs.rs/candle-core) for compressed networks: masks
//! that hold under every optimiser, low-rank and sampled fine-tuning, exact resume.
//!
//! ```
//! use prune_core::Seed;
//! use prune_train::vision::{Images, MaskPlan, Network};
//! use prune_train::{Sgd, SgdOptions, TrainOptions, Trainer, evaluate};
//!
//! let (train, heldout) = Images::digits(include_bytes!("../../../assets/digits/pixels.u8"),
//!     include_bytes!("../../../assets/digits/labels.u8"))?.split(1297);
//! let model = Network::small_cnn(&[1, 8, 8], 8, 10)?.build(Seed::new(0))?;
//! let masks = MaskPlan { density: 0.2, ..MaskPlan::default() }.masks(&model, None)?;
//! let options = TrainOptions { steps: 40, batch: 64, ..TrainOptions::default() };
//! let mut trainer = Trainer::new(&model, Sgd::new(SgdOptions::default())?, options)?
//!     .with_masks(masks)?;
//! trainer.run(&train, Some(&heldout))?;
//! assert!(evaluate(&model, &heldout, 256)?.accuracy() > 0.8);
//! # Ok::<(), prune_train::Error>(())
//! ```
//!
//! | what | where |
//! |---|---|
//! | the loop: batches, steps, measurements, checkpoints, a log | [`Trainer`], [`TrainOptions`] |
//! | what can be trained | [`Model`], [`Parameters`], [`Gradients`], [`Tally`] |
//! | what it is trained on, in which order | [`Dataset`], [`Order`], [`evaluate`] |
//! | optimisers | [`Sgd`], [`AdamW`], [`GaLore`], [`Optimizer`] |
//! | the learning rate over time and over layers | [`Schedule`], [`LayerRates`] |
//! | weights that stay zero | [`Masks`] |
//! | blocks frozen and unfrozen: OwLore, LISA | [`BlockSampler`], [`Hook`] |
//! | losses | [`cross_entropy`] |
//! | logs | [`History`], [`Record`] |
#![cfg_attr(feature = "plot", doc = "| figures | [`draw_curves`] |")]
//! | image classifiers, data, masks at initialisation | [`vision`] |
//! | parameters in files | [`save_weights`], [`load_weights`] |

mod block_sampler;
mod checkpoint;
#[cfg(feature = "plot")]
mod curves;
mod dataset;
mod error;
mod gradients;
mod history;
mod hook;
mod layer_rates;
mod loss;
mod masks;
mod model;
mod optimizer;
mod options;
mod parameters;
mod schedule;
mod trainer;
mod values;
pub mod vision;

pub use block_sampler::{BlockSampler, OnFreeze};
pub use checkpoint::{load_weights, save_weights};
#[cfg(feature = "plot")]
pub use curves::draw_curves;
pub use dataset::{Dataset, Order, evaluate};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use history::{History, Record};
pub use hook::{Hook, StepContext};
pub use layer_rates::LayerRates;
pub use loss::{cross_entropy, cross_entropy_in_place};
pub use masks::Masks;
pub use model::{Model, Tally};
pub use optimizer::{
    AdamW, AdamWOptions, Decay, GaLore, GaLoreOptions, Momentum, Optimizer, Refresh, Sgd,
    SgdOptions,
};
pub use options::{Keep, Progress, TrainOptions};
pub use parameters::{Init, Parameter, ParameterKind, Parameters};
pub use schedule::Schedule;
pub use trainer::Trainer;
pub use values::{change, with_values};
