//! Cholesky on many threads: a left-looking factorisation, one band of columns after the other.
//! Each piece of a band is worked on by one thread with the operations in one order, so that the
//! bits depend on the size alone.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, MatMut, Par};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::faer_backend::factor_in_place;
use crate::{Error, Real, Result};

/// Columns of a band.
pub(crate) const BAND: usize = 192;

/// Rows that one thread works on at a time: a multiple of what the inner loops of the products take
/// at a time (48 in f64, 96 in f32, with AVX-512).
const PIECE: usize = 144;

/// Rows of padding: columns that lie a power of two apart share few places in a cache.
const PADDING: usize = 24;

/// The lower factor of `a`, which is square and finite.
pub(crate) fn factor<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
    let n = a.nrows();
    let stride = n + PADDING;
    // Pages that the system hands out as zeros are first touched by the threads that fill them.
    let mut columns = vec![T::zero(); stride * n];
    let mut l = MatMut::from_column_major_slice_with_stride_mut(&mut columns, n, n, stride);
    column_bands(l.as_mut()).into_par_iter().for_each(|(first, mut band)| {
        for rows in (first..n).step_by(PIECE) {
            for j in 0..band.ncols() {
                for i in rows.max(first + j)..(rows + PIECE).min(n) {
                    band[(i, j)] = a[[i, first + j]];
                }
            }
        }
    });
    for first in (0..n).step_by(BAND) {
        let width = BAND.min(n - first);
        let (done, rest) = l.as_mut().split_at_col_mut(first);
        let done = done.as_ref();
        let mut band = rest.subcols_mut(0, width).subrows_mut(first, n - first);
        let top = done.subrows(first, width).transpose();
        pieces(band.as_mut()).into_par_iter().for_each(|(row, piece)| {
            let left = done.subrows(first + row, piece.nrows());
            matmul(piece, Accum::Add, left, top, -T::one(), Par::Seq);
        });
        let (mut diagonal, below) = band.split_at_row_mut(width);
        factor_in_place(diagonal.as_mut()).map_err(|e| match e {
            Error::NotPositiveDefinite { pivot } => {
                Error::NotPositiveDefinite { pivot: first + pivot }
            }
            other => other,
        })?;
        let diagonal = diagonal.as_ref();
        pieces(below).into_par_iter().for_each(|(_, piece)| {
            solve_lower_triangular_in_place(diagonal, piece.transpose_mut(), Par::Seq);
        });
    }
    let l = l.as_ref();
    let mut out = Array2::zeros((n, n));
    out.axis_chunks_iter_mut(Axis(0), PIECE).into_par_iter().enumerate().for_each(
        |(i, mut out)| {
            let first = i * PIECE;
            for left in (0..(first + PIECE).min(n)).step_by(PIECE) {
                let mut part = out.slice_mut(s![.., left..(left + PIECE).min(n)]);
                part.indexed_iter_mut()
                    .filter(|((i, j), _)| first + i >= left + j)
                    .for_each(|((i, j), v)| *v = l[(first + i, left + j)]);
            }
        },
    );
    Ok(out)
}

/// Runs of [`PIECE`] rows, each with its first row.
fn pieces<T>(mut matrix: MatMut<'_, T>) -> Vec<(usize, MatMut<'_, T>)> {
    let mut found = Vec::new();
    let mut first = 0;
    while matrix.nrows() > 0 {
        let rows = PIECE.min(matrix.nrows());
        let (piece, rest) = matrix.split_at_row_mut(rows);
        found.push((first, piece));
        (first, matrix) = (first + rows, rest);
    }
    found
}

/// Runs of [`BAND`] columns, each with its first column.
fn column_bands<T>(matrix: MatMut<'_, T>) -> Vec<(usize, MatMut<'_, T>)> {
    let mut found = Vec::new();
    let (mut first, mut matrix) = (0, matrix);
    while matrix.ncols() > 0 {
        let cols = BAND.min(matrix.ncols());
        let (band, rest) = matrix.split_at_col_mut(cols);
        found.push((first, band));
        (first, matrix) = (first + cols, rest);
    }
    found
}
