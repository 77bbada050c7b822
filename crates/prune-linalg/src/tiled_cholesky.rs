//! Cholesky on many threads: a right-looking factorisation over square tiles, each tile worked on
//! by one thread with the operations in one order, so that the bits depend on the size alone.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, Par};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::faer_backend::factor_in_place;
use crate::{Error, Real, Result};

/// Side of a tile.
pub(crate) const TILE: usize = 256;

struct Tile<T> {
    row: usize,
    col: usize,
    values: Mat<T>,
}

/// The lower factor of `a`, which is square and finite.
pub(crate) fn factor<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
    let n = a.nrows();
    let count = n.div_ceil(TILE);
    let side = |t: usize| TILE.min(n - t * TILE);
    // Lower triangle, one column of tiles after the other.
    let mut tiles: Vec<Tile<T>> = (0..count)
        .flat_map(|col| (col..count).map(move |row| (row, col)))
        .map(|(row, col)| {
            let (r, c) = (row * TILE, col * TILE);
            Tile { row, col, values: Mat::from_fn(side(row), side(col), |i, j| a[[r + i, c + j]]) }
        })
        .collect();
    let mut remaining = tiles.as_mut_slice();
    for col in 0..count {
        let (panel, rest) = remaining.split_at_mut(count - col);
        let Some((diagonal, below)) = panel.split_first_mut() else { break };
        factor_in_place(diagonal.values.as_mut()).map_err(|e| match e {
            Error::NotPositiveDefinite { pivot } => {
                Error::NotPositiveDefinite { pivot: col * TILE + pivot }
            }
            other => other,
        })?;
        let diagonal = diagonal.values.as_ref();
        below.par_iter_mut().for_each(|tile| {
            let transposed = tile.values.as_mut().transpose_mut();
            solve_lower_triangular_in_place(diagonal, transposed, Par::Seq);
        });
        let below = &*below;
        rest.par_iter_mut().for_each(|tile| {
            let (lhs, rhs) = (&below[tile.row - col - 1], &below[tile.col - col - 1]);
            matmul(
                tile.values.as_mut(),
                Accum::Add,
                lhs.values.as_ref(),
                rhs.values.as_ref().transpose(),
                -T::one(),
                Par::Seq,
            );
        });
        remaining = rest;
    }
    let mut l = Array2::zeros((n, n));
    for tile in &tiles {
        let (r, c) = (tile.row * TILE, tile.col * TILE);
        let mut part = l.slice_mut(s![r..r + side(tile.row), c..c + side(tile.col)]);
        part.indexed_iter_mut()
            .filter(|((i, j), _)| r + i >= c + j)
            .for_each(|((i, j), v)| *v = tile.values[(i, j)]);
    }
    Ok(l)
}
