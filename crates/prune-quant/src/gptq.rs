//! GPTQ and its union with SparseGPT.

mod hessian;
mod quantizer;
mod solver;
mod sparse;

pub use quantizer::{ColumnOrder, Gptq, GroupParams};
pub use sparse::{SparseGptq, SparseQuantized};
