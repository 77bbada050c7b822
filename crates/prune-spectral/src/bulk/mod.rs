//! The random part of a spectrum.

mod density;
mod marchenko_pastur;
mod simplex;

pub use marchenko_pastur::{Bulk, BulkFit, SquareLaw};
