//! LPViT: blocks of a weight ranked by what the network's output loses without them.

mod pruner;
mod ranking;

pub use pruner::BlockTaylor;
pub use ranking::{BlockRanking, BlockScore, TaylorOrder};
