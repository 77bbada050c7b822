mod allocator;
mod exact;
mod frontier;
mod lagrangian;
mod within;

pub use allocator::{Choice, CostAllocator, ShareGroup, Solver};
pub use within::within_cost;

pub(crate) use allocator::solve;
