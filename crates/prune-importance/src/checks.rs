use ndarray::{ArrayView, Dimension};
use prune_core::{Error, Result};

/// Refuses two shapes that differ.
pub(crate) fn same_shape(what: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { what: what.to_string(), found: found.to_vec(), expected: expected.to_vec() })
}

/// Refuses NaN and infinity, with the row-major index.
pub(crate) fn finite<D: Dimension>(what: &str, values: &ArrayView<'_, f32, D>) -> Result<()> {
    match values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((index, v)) => {
            Err(Error::NotFinite { what: what.to_string(), index, value: v.to_string() })
        }
    }
}
