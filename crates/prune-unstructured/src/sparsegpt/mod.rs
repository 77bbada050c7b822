//! Optimal brain surgeon over blocks of columns.

mod compensated;
mod factor;
mod order;
mod pruner;
mod removal;
mod sweep;

pub use compensated::Compensated;
pub use order::ColumnOrder;
pub use pruner::SparseGpt;
