//! LPViT: blocks of a weight ranked by what the network's output loses without them.

mod ranking;
mod scorer;

pub use ranking::{BlockRanking, BlockScore, TaylorOrder};
pub use scorer::BlockTaylor;
