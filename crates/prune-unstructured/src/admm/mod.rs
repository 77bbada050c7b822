//! Alternating directions between the weights that fit best and those that have the pattern.

mod alps;
mod pruner;
mod splitting;

pub use alps::Alps;
pub use pruner::Admm;
