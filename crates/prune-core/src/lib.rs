//! The vocabulary of model compression, and no algorithms.

mod allocation;
mod error;
mod factor;
mod fidelity;
mod gram;
mod layer;
mod mask;
mod next_token;
mod pattern;
mod pruned;
mod quant;
mod score_pruner;
mod seed;
mod select;
mod simd;
mod sparse;
mod stats;
mod tensor;
mod traits;

pub use allocation::{Allocation, Budget, round_to_budget, scale_with_cap};
pub use error::{Error, Result, Violation, check_finite};
pub use factor::{Factor, FactorInfo, FactorKind, Factored, Factoriser};
pub use fidelity::Fidelity;
pub use gram::GramAccumulator;
pub use layer::{LayerId, LayerInfo, LayerKind, block_of};
pub use mask::Mask;
pub use next_token::NextToken;
pub use pattern::{Pattern, Scope};
pub use pruned::{PruneReport, Pruned};
pub use quant::{
    AWQ_ORDER, Granularity, NF4_LEVELS, NibbleOrder, NumberFormat, PartOrder, QuantReport,
    QuantScheme, QuantTarget, Quantized, QuantizedMatrix, QuantizedParts, Quantizer, ScaleFormat,
    ZeroPoint, decode_e2m1, decode_e4m3, decode_e5m2, decode_e8m0, dense_words, encode_e2m1,
    encode_e4m3, encode_e5m2, encode_e8m0, pack_awq, pack_dense, pack_hqq3, pack_lanes, pack_parts,
    pack_planar, unpack_awq, unpack_dense, unpack_hqq3, unpack_lanes, unpack_parts, unpack_planar,
};
pub use score_pruner::{ScorePruner, prune_by_score};
pub use seed::{Seed, SeedStream};
pub use select::{
    GlobalSelection, GlobalSelector, ScoreRow, check_target, count_to_remove, k_smallest,
    round_to_pattern, row_share, select, selectable,
};
pub use sparse::{Bitmask, BlockDiagonal, Bsr, Csr, Element, NmPacked, SparseMatrix};
pub use stats::ColumnStats;
pub use tensor::{DType, TensorInfo, TensorSink, TensorSource, decode_f32, encode_f32};
pub use traits::{
    Allocator, Block, BlockModel, Head, ImageModel, LayerStats, ModelKind, Needs, Objective,
    Observer, Pruner, RowScorer, ScoredLayer, Target, WeightScorer,
};
