//! What every constructor of a sparse matrix checks.

use ndarray::ArrayView2;

use super::Element;
use crate::{Error, Mask, Result};

/// An error unless a dense `rows x cols` matrix of `T` can be addressed, so that no later product
/// of dimensions overflows, and has columns if it has rows, so that the length of some part bounds
/// the number of rows.
pub(super) fn addressable<T>(format: &'static str, rows: usize, cols: usize) -> Result<()> {
    let invalid = |reason| Err(Error::InvalidSparse { format, field: "shape", reason });
    if cols == 0 && rows > 0 {
        return invalid(format!("{rows} rows without columns"));
    }
    let bytes = rows
        .max(1)
        .checked_mul(cols.max(1))
        .and_then(|n| n.checked_mul(size_of::<T>()))
        .filter(|n| isize::try_from(*n).is_ok());
    match bytes {
        Some(_) => Ok(()),
        None => invalid(format!("a dense {rows} x {cols} matrix exceeds the address space")),
    }
}

/// An error unless every column (or block column) index fits u32.
pub(super) fn indexable(format: &'static str, cols: usize) -> Result<()> {
    if u32::try_from(cols).is_ok() {
        return Ok(());
    }
    Err(Error::InvalidSparse {
        format,
        field: "shape",
        reason: format!("{cols} columns do not fit 32-bit indices"),
    })
}

/// An error naming the first stored value that is NaN or infinite.
pub(super) fn finite_data<'a, T: Element>(
    format: &'static str,
    data: impl IntoIterator<Item = &'a T>,
) -> Result<()> {
    match data.into_iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((i, v)) => Err(Error::InvalidSparse {
            format,
            field: "data",
            reason: format!("element {i} is {v}; every value must be finite"),
        }),
    }
}

/// An error unless `indptr` and `indices` describe `rows` rows of strictly ascending indices
/// below `cols`.
pub(super) fn compressed_rows(
    format: &'static str,
    rows: usize,
    cols: usize,
    indptr: &[usize],
    indices: &[u32],
) -> Result<()> {
    let invalid = |field, reason| Err(Error::InvalidSparse { format, field, reason });
    if rows.checked_add(1) != Some(indptr.len()) {
        return invalid("indptr", format!("found length {}, expected {rows} + 1", indptr.len()));
    }
    if indptr[0] != 0 {
        return invalid("indptr", format!("starts at {}, expected 0", indptr[0]));
    }
    if indptr[rows] != indices.len() {
        return invalid(
            "indptr",
            format!("ends at {}, expected the number of indices, {}", indptr[rows], indices.len()),
        );
    }
    // Together with the two ends this keeps every row within `indices`.
    if let Some(r) = (0..rows).find(|&r| indptr[r] > indptr[r + 1]) {
        return invalid(
            "indptr",
            format!("decreases from {} to {} at row {r}", indptr[r], indptr[r + 1]),
        );
    }
    for r in 0..rows {
        let row = &indices[indptr[r]..indptr[r + 1]];
        if let Some(i) = row.iter().position(|&c| c as usize >= cols) {
            return invalid("indices", format!("row {r} has index {}, expected < {cols}", row[i]));
        }
        if let Some(pair) = row.windows(2).find(|p| p[0] >= p[1]) {
            return invalid(
                "indices",
                format!("row {r} has {} before {}, expected ascending", pair[0], pair[1]),
            );
        }
    }
    Ok(())
}

/// An error naming the first value of a dense matrix that is NaN or infinite.
pub(super) fn finite_dense<T: Element>(dense: &ArrayView2<'_, T>) -> Result<()> {
    match dense.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((index, v)) => {
            Err(Error::NotFinite { what: "dense matrix".to_string(), index, value: v.to_string() })
        }
    }
}

/// An error unless `mask` has the shape of `dense`.
pub(super) fn same_shape<T>(dense: &ArrayView2<'_, T>, mask: &Mask) -> Result<()> {
    if dense.dim() == (mask.rows(), mask.cols()) {
        return Ok(());
    }
    Err(Error::Shape {
        what: "mask".to_string(),
        found: vec![mask.rows(), mask.cols()],
        expected: dense.shape().to_vec(),
    })
}

/// An error unless a part has the length that the other parts give it.
pub(super) fn length(
    format: &'static str,
    field: &'static str,
    found: usize,
    expected: usize,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::InvalidSparse {
        format,
        field,
        reason: format!("found length {found}, expected {expected}"),
    })
}

/// An error unless `bits` holds `rows` rows of `cols` bits, each padded with zeros to whole bytes.
/// The shape is [`addressable`].
pub(super) fn bit_rows(
    format: &'static str,
    field: &'static str,
    rows: usize,
    cols: usize,
    bits: &[u8],
) -> Result<()> {
    let stride = cols.div_ceil(8);
    length(format, field, bits.len(), rows * stride)?;
    if cols.is_multiple_of(8) {
        return Ok(());
    }
    let beyond = 0xffu8 << (cols % 8);
    match bits.chunks_exact(stride).position(|row| row[stride - 1] & beyond != 0) {
        None => Ok(()),
        Some(r) => Err(Error::InvalidSparse {
            format,
            field,
            reason: format!("row {r} has a bit set beyond column {}", cols - 1),
        }),
    }
}
