//! Scores of layers, blocks and weights: what a network can do without.
//!
//! ```
//! use ndarray::array;
//! use prune_core::{ColumnStats, LayerId};
//! use prune_importance::OutlierDistribution;
//!
//! let (layer, weight) = (LayerId::new("up_proj"), array![[0.1, 0.2], [0.3, 3.0]]);
//! let mut inputs = ColumnStats::new(2);
//! inputs.update("x", array![[1.0, 2.0]].view())?;
//! let mut mean = OutlierDistribution::new(2.0)?;
//! mean.observe(&layer, weight.view(), &inputs)?;
//! let mut count = mean.second_pass()?;
//! count.observe(&layer, weight.view(), &inputs)?;
//! assert_eq!(count.percent()?, 25.0);
//! # Ok::<(), prune_core::Error>(())
//! ```
//!
//! | score | of | reads |
//! |---|---|---|
//! | [`OutlierDistribution`] (OWL, OwLore) | a block | weights, input norms |
//! | [`ZerothOrder`] (ECoFLaP) | a layer | a loss, by forward passes |
//! | [`Weighing`] (ECoFLaP, first order) | a layer | weights, gradients |
//! | [`HiddenChange`] (block influence, LIM) | a block | its inputs and outputs |
//! | [`ZScoreDistribution`] (ZD) | a block | weights |
//! | [`PositionWeight`] (HierarchicalPrune) | a block | its place and cost |
//! | [`BlockRanking`] (LPViT) | rectangles of a weight | weights, gradients |
//! | [`UnitScore`] (LLM-Pruner, Taylor) | a row | weights, gradients |
//! | [`snip`], [`grasp`], [`synflow`], [`taylor`], [`second_order`] | a weight | weights, gradients |
//!
//! [`BlockTaylor`] removes what [`BlockRanking`] ranks; [`SynFlow`] runs the rounds of synaptic flow; [`FisherDiagonal`] sums squared gradients;
//! [`Spsa`] estimates gradients by forward passes; [`Perturbed`] is a checkpoint moved along a
//! random direction. Gradients come from the caller's framework as `ndarray` views, a loss as a
//! [`prune_core::Objective`].

mod checks;
mod gradient;
mod hidden_change;
mod lpvit;
mod outlier;
mod position;
mod weighing;
mod z_score;
mod zeroth;

pub use gradient::{
    FisherDiagonal, SynFlow, UnitScore, grasp, hessian_gradient, second_order, snip, synflow,
    taylor,
};
pub use hidden_change::{HiddenChange, LimOver};
pub use lpvit::{BlockRanking, BlockScore, BlockTaylor, TaylorOrder};
pub use outlier::{OutlierCount, OutlierDistribution};
pub use position::PositionWeight;
pub use weighing::Weighing;
pub use z_score::{Deviation, Tail, ZScoreCount, ZScoreDistribution};
pub use zeroth::{
    Distribution, Noise, Perturbed, SeededNoise, Spsa, SpsaGradient, Together, ZerothOrder,
};
