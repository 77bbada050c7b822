//! Quantizers for weights and KV caches, bit packing, and layer-wise bit widths.

mod double;
mod gptq;
mod grid;
mod rtn;

pub use double::{DoubleQuantized, double_quantize, dynamic_levels};
pub use gptq::{ColumnOrder, Gptq, GroupParams, SparseGptq, SparseQuantized};
pub use grid::{Family, MseSearch, MxScale, Range};
pub use rtn::Rtn;
