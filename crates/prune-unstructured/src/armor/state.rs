use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};
use prune_core::{Seed, SeedStream};
use rayon::prelude::*;

use super::Precision;
use super::grid::{Axis, Grid};

/// Strips of tiles whose contributions to the gradient of B are summed before they meet those of
/// others: fixed, so that the sum does not depend on threads, and few, since each sum is as large
/// as B.
const PARTIAL_SUMS: usize = 16;

/// A part of the layer that stays in the cache of one thread: whole blocks of A by whole blocks of
/// B.
pub(super) struct Tile<T> {
    /// The part of the normalised weight.
    pub(super) weight: Array2<T>,
    /// The part of the core; 0 where nothing is kept.
    pub(super) core: Array2<T>,
    pub(super) kept: Array2<bool>,
    /// Random numbers of each pair of blocks, in row-major order.
    pub(super) streams: Vec<SeedStream>,
}

/// The decomposition `A · core · B` of a normalised weight, and the weight.
pub(super) struct State<T> {
    pub(super) grid: Grid,
    /// What the squared error of each column counts: `h_j / Σ h W̄²`, so that a core of zeros has
    /// loss 1.
    pub(super) importance: Vec<f64>,
    /// `Σ h W̄²`.
    pub(super) total: f64,
    pub(super) a: Vec<Array2<T>>,
    pub(super) b: Vec<Array2<T>>,
    /// A strip is a row of tiles.
    pub(super) strips: Vec<Vec<Tile<T>>>,
}

impl<T: Precision> State<T> {
    /// Identities around the core that keeps the `n` weights of largest `h_j W̄²` of every group:
    /// NoWag-P.
    pub(super) fn new(
        grid: Grid,
        weight: ArrayView2<'_, T>,
        h: &[f64],
        mut stream: SeedStream,
    ) -> Self {
        let total: f64 = weight
            .outer_iter()
            .map(|row| row.iter().zip(h).map(|(w, h)| w.wide().powi(2) * h).sum::<f64>())
            .sum();
        let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
        let seed = Seed::new(stream.next_u64());
        let strips = (0..grid.rows.tiles()).into_par_iter().map(|i| {
            let tile = |j| {
                let (rows, cols) = (grid.rows.tile(i), grid.cols.tile(j));
                let part = weight.slice(s![rows, cols.clone()]).to_owned();
                let pairs = grid.rows.block_range(i).len() * grid.cols.block_range(j).len();
                let streams = (0..pairs).map(|p| seed.stream(&format!("{i}.{j}.{p}"))).collect();
                Tile::new(part, &h[cols], grid.n, grid.m, streams)
            };
            (0..grid.cols.tiles()).map(tile).collect()
        });
        Self {
            grid,
            importance: h.iter().map(|h| h * scale).collect(),
            total,
            a: identities(&grid.rows),
            b: identities(&grid.cols),
            strips: strips.collect(),
        }
    }

    /// Strips that one task works on; see [`PARTIAL_SUMS`].
    pub(super) fn strips_per_task(&self) -> usize {
        self.strips.len().div_ceil(PARTIAL_SUMS).max(1)
    }
}

fn identities<T: Precision>(axis: &Axis) -> Vec<Array2<T>> {
    (0..axis.blocks()).map(|i| Array2::eye(axis.block(i).len())).collect()
}

impl<T: Precision> Tile<T> {
    fn new(weight: Array2<T>, h: &[f64], n: usize, m: usize, streams: Vec<SeedStream>) -> Self {
        let mut core = weight.clone();
        let mut kept = Array2::from_elem(weight.dim(), true);
        let mut order: Vec<(f64, usize)> = Vec::with_capacity(m);
        for (r, row) in weight.outer_iter().enumerate() {
            for first in (0..row.len()).step_by(m) {
                order.clear();
                order.extend((first..first + m).map(|c| (row[c].wide().powi(2) * h[c], c)));
                // Stable: of equals the lower index goes.
                order.sort_by(|x, y| x.0.total_cmp(&y.0));
                for (_, c) in &order[..m - n] {
                    core[[r, *c]] = T::zero();
                    kept[[r, *c]] = false;
                }
            }
        }
        Self { weight, core, kept, streams }
    }
}

/// Where a tile stands, and the blocks that meet in it: `(index, place within the tile)`.
pub(super) struct Place {
    pub(super) rows: Vec<(usize, std::ops::Range<usize>)>,
    pub(super) cols: Vec<(usize, std::ops::Range<usize>)>,
    /// The first column of the layer that the tile covers.
    pub(super) first_col: usize,
    /// The tile's place in its strip.
    pub(super) col_tile: usize,
}

impl Place {
    /// Tile `(i, j)`. Blocks of A are counted from the first of the strip.
    pub(super) fn new(grid: &Grid, i: usize, j: usize) -> Self {
        let first = grid.rows.block_range(i).start;
        Self {
            rows: grid.rows.blocks_of(i).map(|(block, at)| (block - first, at)).collect(),
            cols: grid.cols.blocks_of(j).collect(),
            first_col: grid.cols.tile(j).start,
            col_tile: j,
        }
    }
}

/// What is known of a tile at the current factors: scratch of one thread.
pub(super) struct Products<T> {
    /// `A C`.
    pub(super) ac: Array2<T>,
    /// `dL/dŴ = 2 (A C B − W̄) diag(h) / L0`.
    pub(super) gradient: Array2<T>,
    /// `dL/dŴ Bᵀ`.
    pub(super) rb: Array2<T>,
    /// `dL/dC = Aᵀ dL/dŴ Bᵀ`, at removed weights too.
    pub(super) core: Array2<T>,
}

impl<T: Precision> Products<T> {
    pub(super) fn empty() -> Self {
        let none = || Array2::zeros((0, 0));
        Self { ac: none(), gradient: none(), rb: none(), core: none() }
    }

    /// Makes room for a tile.
    pub(super) fn fit(&mut self, dim: (usize, usize)) {
        for part in [&mut self.ac, &mut self.gradient, &mut self.rb, &mut self.core] {
            if part.dim() != dim {
                *part = Array2::zeros(dim);
            }
        }
    }

    /// Fills `ac` and `gradient`; the loss of the tile. Two of the products whose number decides
    /// the cost of an iteration, each rows · columns · block multiplications.
    pub(super) fn forward(
        &mut self,
        tile: &Tile<T>,
        place: &Place,
        a: &[Array2<T>],
        b: &[Array2<T>],
        importance: &[f64],
    ) -> f64 {
        self.fit(tile.weight.dim());
        for (block, at) in &place.rows {
            let core = tile.core.slice(s![at.clone(), ..]);
            let mut out = self.ac.slice_mut(s![at.clone(), ..]);
            general_mat_mul(T::one(), &a[*block], &core, T::zero(), &mut out);
        }
        self.gradient.assign(&tile.weight);
        for (block, at) in &place.cols {
            let ac = self.ac.slice(s![.., at.clone()]);
            let mut out = self.gradient.slice_mut(s![.., at.clone()]);
            general_mat_mul(T::one(), &ac, &b[*block], -T::one(), &mut out);
        }
        let importance = &importance[place.first_col..place.first_col + tile.weight.ncols()];
        let twice: Vec<T> = importance.iter().map(|h| T::of(2.0 * h)).collect();
        let mut squares = vec![0.0f64; importance.len()];
        for mut row in self.gradient.outer_iter_mut() {
            for ((r, square), twice) in row.iter_mut().zip(&mut squares).zip(&twice) {
                let wide = r.wide();
                *square += wide * wide;
                *r *= *twice;
            }
        }
        squares.iter().zip(importance).map(|(s, h)| s * h).sum()
    }

    /// Fills `rb` and `core`. Two products.
    pub(super) fn backward(&mut self, place: &Place, a: &[Array2<T>], b: &[Array2<T>]) {
        for (block, at) in &place.cols {
            let gradient = self.gradient.slice(s![.., at.clone()]);
            let mut out = self.rb.slice_mut(s![.., at.clone()]);
            general_mat_mul(T::one(), &gradient, &b[*block].t(), T::zero(), &mut out);
        }
        for (block, at) in &place.rows {
            let rb = self.rb.slice(s![at.clone(), ..]);
            let mut out = self.core.slice_mut(s![at.clone(), ..]);
            general_mat_mul(T::one(), &a[*block].t(), &rb, T::zero(), &mut out);
        }
    }

    /// Adds the tile's part of `dL/dA` and `dL/dB`. Two products.
    pub(super) fn add_factor_gradients(
        &self,
        tile: &Tile<T>,
        place: &Place,
        a: &mut [Array2<T>],
        b: &mut [Array2<T>],
    ) {
        for (block, at) in &place.rows {
            let rb = self.rb.slice(s![at.clone(), ..]);
            let core = tile.core.slice(s![at.clone(), ..]);
            general_mat_mul(T::one(), &rb, &core.t(), T::one(), &mut a[*block]);
        }
        for (block, at) in &place.cols {
            let ac = self.ac.slice(s![.., at.clone()]);
            let gradient = self.gradient.slice(s![.., at.clone()]);
            general_mat_mul(T::one(), &ac.t(), &gradient, T::one(), &mut b[*block]);
        }
    }
}

/// One zero matrix for each of `like`.
pub(super) fn zeros_like<T: Precision>(like: &[Array2<T>]) -> Vec<Array2<T>> {
    like.iter().map(|m| Array2::zeros(m.dim())).collect()
}

/// Adds `parts` in their order; each is a list of matrices of the same shapes.
pub(super) fn sum<T: Precision>(parts: Vec<Vec<Array2<T>>>) -> Vec<Array2<T>> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    let rest: Vec<_> = parts.collect();
    total.par_iter_mut().enumerate().for_each(|(i, sum)| {
        for part in &rest {
            *sum += &part[i];
        }
    });
    total
}
