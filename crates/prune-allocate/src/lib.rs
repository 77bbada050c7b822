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
//! | [`ErkPlus`] | shapes | likewise; last linear layer dense |
//! | [`Owl`] | outliers of each block | grows with the outliers of its block |
//! | [`AlphaPruning`] | power-law exponents | falls with the exponent; also the map of FARMS |
//! | [`Ecoflap`] | loss changes | grows with what its weights do to the loss |
//! | [`Survivors`] | counts | is that of a global selection: magnitude, SNIP, GraSP, SynFlow |
//! | [`Sensitivity`] | error curves | is where one more weight lowers the error as elsewhere |
//!
//! [`allocator`] finds an allocator by name and says what it reads; [`allocators`] lists them. The
//! crates `prune-importance` and `prune-spectral` measure the scores.
//!
//! | beyond weights | |
//! |---|---|
//! | [`CostAllocator`] | one value of a few for each group of layers, under any cost |
//! | [`within_cost`] | any allocator under a cost other than weights |
//! | [`owl_n_m`] | [`Owl`] for N:M patterns |
//! | [`Lpvit`] | blocks of each layer under any cost, with or without power |
//! | [`PreCrop`], [`Widths`] | layer densities and channel numbers of a network before training |
//! | [`SamplingWeights`] | how often each block is trained (OwLore, LISA) |

mod alpha_pruning;
mod cost;
mod curve;
mod ecoflap;
mod erk;
mod fidelity;
mod fill;
mod groups;
mod layers;
mod lpvit;
mod owl;
mod precrop;
mod registry;
mod sampling;
mod survivors;
mod uniform;

pub use alpha_pruning::AlphaPruning;
pub use cost::{Choice, CostAllocator, ShareGroup, Solver, within_cost};
pub use curve::{ErrorCurve, Sensitivity};
pub use ecoflap::{Aggregate, Ecoflap};
pub use erk::{Er, Erk, ErkPlus};
pub use fidelity::Fidelity;
pub use groups::Granularity;
pub use lpvit::{
    BlockCurve, BlockSolver, Lpvit, ReleasedBisection, ReleasedLayer, ReleasedSolution,
    balanced_beta, multiplications,
};
pub use owl::{Owl, owl_n_m};
pub use precrop::{
    ChannelNetwork, Channels, LayerCost, Limits, NetworkCost, PreCrop, Residual, Widths,
    log_syn_exp, mobilenet_v2, resnet20, vgg16,
};
pub use registry::{
    AllocatorEntry, Measured, Parameter, Saliency, ScoreKind, allocator, allocators,
};
pub use sampling::{SamplingMode, SamplingWeights};
pub use survivors::{Survivors, survivors};
pub use uniform::{Uniform, UniformPlus};
