//! Quantizers for weights and KV caches, and bit widths for layers.
//!
//! A [`Quantizer`](prune_core::Quantizer) turns the weights of one layer into the codes of a
//! [`QuantScheme`](prune_core::QuantScheme): any method with any scheme that it takes.
//!
//! ```
//! use ndarray::Array2;
//! use prune_core::{GramAccumulator, LayerId, LayerStats, QuantTarget, Quantizer};
//!
//! let weight = Array2::from_shape_fn((8, 16), |(i, j)| ((7 * i + 3 * j) as f32).sin());
//! let inputs = Array2::from_shape_fn((32, 16), |(t, j)| ((5 * t + j * j) as f32).cos());
//! let mut gram = GramAccumulator::new(16);
//! gram.update("x", inputs.view())?;
//! let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
//! let layer = LayerId::new("model.layers.0.mlp.up_proj");
//! let target = QuantTarget { layer: &layer, scheme: "int3 g8 asym".parse()?, keep: None };
//! let change = |name| {
//!     let quantizer = prune_quant::quantizer(name).expect("listed");
//!     let done = quantizer.quantize(weight.view(), &stats, &target)?;
//!     Ok::<f32, prune_core::Error>(
//!         inputs.dot(&(done.matrix.dequantize() - &weight).t()).mapv(|x| x * x).sum(),
//!     )
//! };
//! assert!(change("gptq")? < change("rtn")?);
//! # Ok::<(), prune_core::Error>(())
//! ```
//!
//! | method | what it does | needs | schemes |
//! |---|---|---|---|
//! | [`Rtn`] | rounds to the nearest code, in the conventions of four families | nothing | all |
//! | [`Gptq`] | later columns make up for rounding | Gram matrix | groups within rows |
//! | [`SparseGptq`] | the same, and removes weights in the same pass | Gram matrix | the same |
//! | [`Awq`] | scales channels by their inputs, clips, rounds | both statistics | groups within rows |
//! | [`Hqq`] | seeks zero points that make errors sparse | nothing | integers, `float` |
//! | [`SmoothQuant`] | evens out activations before rounding | column statistics | all |
//!
//! [`QUANTIZERS`] lists them and [`quantizer`] makes one by name. Scales that belong to several
//! layers are found by [`ScaleSearch::find`] and [`smooth_scales`] and folded by [`fold_scales`].
//! KV caches and KVTuner are in [`kv`], the formats of files in `prune-checkpoint`.

mod awq;
mod double;
mod fold;
mod gptq;
mod grid;
mod hqq;
pub mod kv;
mod registry;
mod rtn;
mod smoothquant;

pub use awq::{Awq, AwqScales, Clip, ScaleSearch, Weighting, clip_limits};
pub use double::{DoubleQuantized, double_quantize, dynamic_levels};
pub use fold::fold_scales;
pub use gptq::{ColumnOrder, Gptq, GroupParams, SparseGptq, SparseQuantized};
pub use grid::{Family, MseSearch, MxScale, Range};
pub use hqq::Hqq;
pub use registry::{QUANTIZERS, quantizer};
pub use rtn::Rtn;
pub use smoothquant::{SmoothQuant, round_tokens, smooth_scales};
