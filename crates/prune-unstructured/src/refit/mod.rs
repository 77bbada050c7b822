//! The best weights on a given support.

mod conjugate_gradient;
mod exact;
mod pruner;

pub(crate) use conjugate_gradient::conjugate_gradient;
pub use pruner::{Refit, Solver};
