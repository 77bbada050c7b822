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
//! | [`OutlierDistribution`] | a block | weights, input norms |
//! | [`BlockRanking`] (LPViT) | rectangles of a weight | weights, gradients |

mod lpvit;
mod outlier;

pub use lpvit::{BlockRanking, BlockScore, BlockTaylor, TaylorOrder};
pub use outlier::{OutlierCount, OutlierDistribution};
