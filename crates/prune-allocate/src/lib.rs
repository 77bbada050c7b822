//! Allocators: one global sparsity divided over the layers of a network.
//!
//! Every allocator takes layers and a [`Budget`](prune_core::Budget) and returns the number of
//! weights that each layer keeps. The numbers sum to what the budget keeps, to the weight.
//!
//! ```
//! use prune_allocate::Erk;
//! use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
//!
//! let layers: Vec<ScoredLayer> = vec![
//!     LayerInfo::linear("model.layers.0.mlp.up_proj", 256, 64).into(),
//!     LayerInfo::linear("model.layers.0.self_attn.q_proj", 64, 64).into(),
//! ];
//! let kept = Erk.allocate(&layers, &Budget::sparsity(0.75)?)?;
//! assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [3657, 1463]);
//! assert_eq!(kept.total(), (256 * 64 + 64 * 64) / 4);
//! # Ok::<(), prune_core::Error>(())
//! ```
//!
//! | allocator | reads | a layer's density |
//! |---|---|---|
//! | [`Uniform`] | | is that of the budget |
//! | [`UniformPlus`] | | likewise; first convolution dense, last linear layer 20 % or more |
//! | [`Er`] | shapes | falls with input and output channels |
//! | [`Erk`] | shapes | falls with all dimensions |
//! | [`Owl`] | outliers of each block | grows with the outliers of its block |
//!
//! [`owl_n_m`] is the form of [`Owl`] for N:M patterns. [`allocator`] finds an allocator by name,
//! [`allocators`] lists them. The crate `prune-importance` measures the scores.

mod erk;
mod fill;
mod layers;
mod owl;
mod registry;
mod uniform;

pub use erk::{Er, Erk};
pub use owl::{Fidelity, Owl, owl_n_m};
pub use registry::{AllocatorEntry, ScoreKind, allocator, allocators};
pub use uniform::{Uniform, UniformPlus};
