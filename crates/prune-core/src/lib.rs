//! The vocabulary of model compression, and no algorithms.

mod allocation;
mod error;
mod layer;
mod mask;
mod pattern;
mod seed;
mod stats;
mod tensor;
mod traits;

pub use allocation::{Allocation, Budget};
pub use error::{Error, Result, Violation, check_finite};
pub use layer::{LayerId, LayerInfo, LayerKind, block_of};
pub use mask::Mask;
pub use pattern::{Pattern, Scope};
pub use seed::{Seed, SeedStream};
pub use stats::{ColumnStats, GramAccumulator};
pub use tensor::{DType, TensorInfo, TensorSink, TensorSource, decode_f32, encode_f32};
pub use traits::{
    Allocator, Block, BlockModel, Head, LayerStats, Needs, Objective, Observer, Pruned, Pruner,
    ScoredLayer, Target, WeightScorer,
};
