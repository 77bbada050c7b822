//! The random part of a spectrum.

mod density;
mod marchenko_pastur;
mod simplex;

#[cfg(feature = "plot")]
pub(crate) use marchenko_pastur::density_of_law;
pub use marchenko_pastur::{Bulk, BulkFit, SquareLaw};
