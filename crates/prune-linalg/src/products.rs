//! Products on all threads in bands of fixed height, each computed by one thread: the bits depend
//! on the sizes alone. [`add_product`] is for callers that have shared out their work themselves.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use faer_ext::IntoFaer;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2};
use rayon::prelude::*;

use crate::{Error, Real, Result};

/// Rows of a band. Large enough for a product at full speed, small enough that 512 rows occupy two
/// threads.
pub(crate) const BAND: usize = 256;

/// `Xᵀ X`, symmetric to the bit.
///
/// `x` is `(tokens, features)`, the result `(features, features)`. Runs on all rayon threads; the
/// bits do not depend on how many there are. Sums are in the precision of `T`; NaN and infinity
/// spread into the result. Costs tokens · features² operations, half of them for large matrices.
///
/// ```
/// use ndarray::array;
/// let x = array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
/// assert_eq!(prune_linalg::gram(x.view()), array![[35.0, 44.0], [44.0, 56.0]]);
/// ```
pub fn gram<T: Real>(x: ArrayView2<'_, T>) -> Array2<T> {
    gram_below(x, |_| 0)
}

/// `Lᵀ L` of a lower triangular `L`, whose zeros are skipped.
pub(crate) fn gram_of_lower<T: Real>(l: ArrayView2<'_, T>) -> Array2<T> {
    gram_below(l, |column| column)
}

/// `Xᵀ X`, where column `c` of `X` is zero above row `first(c)`, which grows with `c`.
fn gram_below<T: Real>(x: ArrayView2<'_, T>, first: impl Fn(usize) -> usize + Sync) -> Array2<T> {
    let (k, n) = x.dim();
    let mut out = Array2::zeros((n, n));
    if n == 0 || k == 0 {
        return out;
    }
    // A matrix stored by columns is read as it lies: its transpose is in standard layout.
    let by_columns = x.t().is_standard_layout();
    let (rows, columns) = (x.view(), x.reversed_axes());
    let data: CowArray<'_, T, Ix2> =
        if by_columns { columns.as_standard_layout() } else { rows.as_standard_layout() };
    let Some(slice) = data.as_slice() else { return out };
    let x = if by_columns {
        MatRef::from_row_major_slice(slice, n, k).transpose()
    } else {
        MatRef::from_row_major_slice(slice, k, n)
    };
    if let Some(slice) = out.as_slice_mut() {
        bands(slice, n, |r, mut band| {
            let top = first(r).min(k);
            let rows = band.nrows();
            let lhs = x.submatrix(top, r, k - top, rows).transpose();
            // On and below the diagonal only.
            let rhs = x.submatrix(top, 0, k - top, r + rows);
            let dst = band.as_mut().subcols_mut(0, r + rows);
            matmul(dst, Accum::Replace, lhs, rhs, T::one(), Par::Seq);
        });
    }
    for i in 0..n {
        for j in 0..i {
            out[[j, i]] = out[[i, j]];
        }
    }
    out
}

/// `A B`, on all rayon threads; the bits do not depend on how many there are.
///
/// Sums are in the precision of `T`; NaN and infinity spread into the result.
///
/// # Errors
/// [`Error::Shape`] unless `b` has as many rows as `a` has columns.
///
/// ```
/// use ndarray::array;
/// let c = prune_linalg::product(array![[1.0, 2.0]].view(), array![[3.0], [4.0]].view())?;
/// assert_eq!(c, array![[11.0]]);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn product<T: Real>(a: ArrayView2<'_, T>, b: ArrayView2<'_, T>) -> Result<Array2<T>> {
    let ((m, k), n) = (a.dim(), b.ncols());
    if b.nrows() != k {
        return Err(Error::Shape {
            what: "rows of the right factor",
            found: b.nrows(),
            expected: k,
        });
    }
    let mut out = Array2::zeros((m, n));
    if m == 0 || n == 0 || k == 0 {
        return Ok(out);
    }
    let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
    if let (Some(a), Some(b), Some(out)) = (a.as_slice(), b.as_slice(), out.as_slice_mut()) {
        let (a, b) = (MatRef::from_row_major_slice(a, m, k), MatRef::from_row_major_slice(b, k, n));
        bands(out, n, |r, band| {
            let lhs = a.subrows(r, band.nrows());
            matmul(band, Accum::Replace, lhs, b, T::one(), Par::Seq);
        });
    }
    Ok(out)
}

/// `C += alpha · A B` on the calling thread, for matrices that lie in memory in any way.
///
/// Of use where a caller works on panels of its own on many threads. On processors with AVX-512
/// twice as fast as `ndarray::linalg::general_mat_mul`. NaN and infinity spread into the result.
///
/// # Errors
/// [`Error::Shape`] unless `a` is `m x k`, `b` is `k x n` and `c` is `m x n`; `c` is then as it was.
///
/// ```
/// use ndarray::array;
/// let mut c = array![[1.0], [2.0]];
/// let (a, b) = (array![[3.0, 1.0], [0.0, 1.0]], array![[1.0], [2.0]]);
/// prune_linalg::add_product(-1.0, a.view(), b.view(), c.view_mut())?;
/// assert_eq!(c, array![[-4.0], [0.0]]);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn add_product<T: Real>(
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    c: ArrayViewMut2<'_, T>,
) -> Result<()> {
    let shapes = [
        ("rows of the right factor", b.nrows(), a.ncols()),
        ("rows of the sum", c.nrows(), a.nrows()),
        ("columns of the sum", c.ncols(), b.ncols()),
    ];
    if let Some((what, found, expected)) = shapes.into_iter().find(|(_, f, e)| f != e) {
        return Err(Error::Shape { what, found, expected });
    }
    matmul(c.into_faer(), Accum::Add, a.into_faer(), b.into_faer(), alpha, Par::Seq);
    Ok(())
}

/// Calls `work` with the first row of each band of a row-major matrix of `cols` columns, and the
/// band.
fn bands<T: Real>(out: &mut [T], cols: usize, work: impl Fn(usize, MatMut<'_, T>) + Sync) {
    let band = |(i, chunk): (usize, &mut [T])| {
        let rows = chunk.len() / cols;
        work(i * BAND, MatMut::from_row_major_slice_mut(chunk, rows, cols));
    };
    if out.len() > BAND * cols {
        out.par_chunks_mut(BAND * cols).enumerate().for_each(band);
    } else {
        out.chunks_mut(BAND * cols).enumerate().for_each(band);
    }
}
