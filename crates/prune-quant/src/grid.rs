//! Scales, zero points and rounding: from the weights of a group to codes.

mod coder;
mod family;
mod matrix;

pub(crate) use coder::{Coder, Params, Rules};
pub use family::{Family, MseSearch, MxScale, Range};
pub(crate) use matrix::{Input, assemble, round_matrix};
