//! KV caches with few bits, and KVTuner, which chooses the bits of each layer.
//!
//! A [`KvCache`] takes the keys and values of a growing sequence and keeps them in 8, 4 or 2 bits,
//! by token or by channel, the newest tokens unquantised. A [`KvConfig`] says how many bits each
//! layer gets. KVTuner finds one: [`ErrorProfiler`] measures how attention suffers in each layer,
//! [`SearchSpace`] keeps the pairs and groups that are worth trying, [`KvSearch`] measures whole
//! configurations with a closure of yours and returns the Pareto front of bits and accuracy.
//!
//! ```
//! use ndarray::Array2;
//! use prune_quant::kv::{KvCache, KvConfig, KvScheme, KvShape, KvStore};
//!
//! let shape = KvShape { layers: 2, kv_heads: 1, head_dim: 64 };
//! let config = KvConfig::new(vec!["KV8".parse()?, "K4V2".parse()?], KvScheme::kivi())?;
//! let mut cache = KvCache::new(shape, &config)?;
//! let rows = Array2::from_shape_fn((100, 64), |(t, c)| ((t + c) as f32).cos());
//! cache.append(0, rows.view(), rows.view())?;
//! assert_eq!(cache.tokens(0), 100);
//! # Ok::<(), prune_core::Error>(())
//! ```
//!
//! | | |
//! |---|---|
//! | widths and layout | [`KvBits`], [`KvPair`], [`KvScheme`], [`Grouping`], [`StoredFloat`] |
//! | configuration and files | [`KvConfig`] |
//! | caches | [`KvStore`], [`KvCache`], [`DenseKv`], [`KvShape`], [`Side`] |
//! | simulation without a cache | [`simulate`], [`KvQuantizer`], [`LastGroup`], [`KvFloat`] |
//! | error profile | [`ErrorProfiler`], [`AttentionSample`], [`KvErrors`], [`ErrorMeasure`] |
//! | search | [`SearchSpace`], [`Clustering`], [`KvSearch`], [`KvTuning`], [`Nsga2`] |
//! | parts | [`pareto_front`], [`dbscan`] |

mod bits;
mod cache;
mod config;
mod dbscan;
mod dense;
mod errors;
mod floats;
mod nsga2;
mod packing;
mod pareto;
mod range;
mod sample;
mod scheme;
mod search;
mod side_cache;
mod simulate;
mod space;
mod store;

pub use bits::{KvBits, KvPair};
pub use cache::KvCache;
pub use config::KvConfig;
pub use dbscan::dbscan;
pub use dense::DenseKv;
pub use errors::{ErrorMeasure, ErrorProfiler, KvErrors, ZeroPolicy};
pub use nsga2::Nsga2;
pub use pareto::pareto_front;
pub use range::{KvFloat, KvQuantizer};
pub use sample::AttentionSample;
pub use scheme::{Grouping, KvScheme, StoredFloat};
pub use search::{BitCount, FirstGeneration, KvSearch, KvTrial, KvTuning};
pub use simulate::{LastGroup, simulate};
pub use space::{Clustering, LayerGroup, SearchSpace};
pub use store::{BlockReader, KvShape, KvStore, Side};

fn out_of_range(
    what: impl Into<String>,
    found: impl std::fmt::Display,
    expected: impl Into<String>,
) -> prune_core::Error {
    prune_core::Error::OutOfRange {
        what: what.into(),
        found: found.to_string(),
        expected: expected.into(),
    }
}
