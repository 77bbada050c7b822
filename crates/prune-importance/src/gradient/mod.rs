mod fisher;
mod saliency;
mod synflow;
mod unit;

pub use fisher::FisherDiagonal;
pub use saliency::{grasp, hessian_gradient, second_order, snip, synflow, taylor};
pub use synflow::SynFlow;
pub use unit::UnitScore;
