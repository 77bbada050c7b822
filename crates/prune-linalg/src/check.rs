//! What every function asks of its arguments before it computes.

use ndarray::{ArrayView1, ArrayView2};

use crate::{Error, Real, Result};

pub(crate) fn square<T: Real>(a: ArrayView2<'_, T>) -> Result<usize> {
    if a.nrows() != a.ncols() {
        return Err(Error::NotSquare { rows: a.nrows(), cols: a.ncols() });
    }
    Ok(a.nrows())
}

pub(crate) fn finite<T: Real>(a: ArrayView2<'_, T>) -> Result<()> {
    // Without an early exit the sum over a row vectorises.
    let row_is_finite = |row: ArrayView1<'_, T>| match row.as_slice_memory_order() {
        Some(row) => row.iter().fold(true, |all, v| all & num_traits::Float::is_finite(*v)),
        None => row.iter().all(|v| num_traits::Float::is_finite(*v)),
    };
    if a.outer_iter().all(row_is_finite) {
        return Ok(());
    }
    match a.indexed_iter().find(|(_, v)| !num_traits::Float::is_finite(**v)) {
        None => Ok(()),
        Some(((row, col), v)) => Err(Error::NotFinite { row, col, value: v.to_string() }),
    }
}

/// For results: values that overflowed.
pub(crate) fn in_range<'a, T: Real>(
    operation: &'static str,
    values: impl IntoIterator<Item = &'a T>,
) -> Result<()> {
    if values.into_iter().all(|v| num_traits::Float::is_finite(*v)) {
        Ok(())
    } else {
        Err(Error::Overflow { operation })
    }
}

/// Checks a triangular system and returns its size.
pub(crate) fn triangular_system<T: Real>(
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
) -> Result<usize> {
    let n = square(a)?;
    if b.nrows() != n {
        return Err(Error::Shape {
            what: "rows of the right-hand side",
            found: b.nrows(),
            expected: n,
        });
    }
    finite(a)?;
    finite(b)?;
    match a.diag().iter().position(|d| num_traits::Float::abs(*d) == num_traits::zero()) {
        Some(index) => Err(Error::Singular { index }),
        None => Ok(n),
    }
}
