//! Right-hand sides in the orders in which the kernels read them.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::simd::{Job, Simd};

/// Right-hand sides that are read a vector of columns at a time, for formats whose rows are lists
/// of elements: a tile holds 16 · `parts` columns, row after row, zeros beyond the last column.
pub(crate) struct WideTiles {
    tiles: Vec<WideTile>,
}

struct WideTile {
    first: usize,
    parts: usize,
    /// `parts` for each row.
    data: Vec<[f32; 16]>,
}

/// Bytes of a tile of 64 columns that stays in the second cache; a longer one has 32 columns.
const TALL: usize = 512 << 10;

impl WideTiles {
    /// As few tiles of 64, 32 and 16 columns as hold all.
    pub(crate) fn new(x: ArrayView2<'_, f32>) -> Self {
        let widest = if x.nrows() * 64 * size_of::<f32>() <= TALL { 4 } else { 2 };
        let mut shapes = Vec::new();
        let mut first = 0;
        while first < x.ncols() {
            let parts = match x.ncols() - first {
                ..=16 => 1,
                17..=32 => 2,
                _ => widest,
            };
            shapes.push((first, parts));
            first += 16 * parts;
        }
        let pack = |(first, parts): (usize, usize)| {
            let mut data = vec![[0.0; 16]; x.nrows() * parts];
            let last = x.ncols().min(first + 16 * parts);
            for (to, row) in data.chunks_exact_mut(parts).zip(x.outer_iter()) {
                let to = to.as_flattened_mut();
                match row.as_slice() {
                    Some(row) => to[..last - first].copy_from_slice(&row[first..last]),
                    None => (first..last).for_each(|c| to[c - first] = row[c]),
                }
            }
            WideTile { first, parts, data }
        };
        Self { tiles: shapes.into_par_iter().map(pack).collect() }
    }
}

/// A matrix whose rows are lists of elements.
pub(crate) trait ElementRows: Sync {
    /// The sum of the products of each stored element `(row, c)` with `x[c]`. Must be
    /// `#[inline(always)]`.
    fn row<S: Simd, const P: usize>(&self, simd: S, row: usize, x: &[[[f32; 16]; P]]) -> [S::W; P];
}

/// `sums + w x`.
#[inline(always)]
pub(crate) fn add_scaled<S: Simd, const P: usize>(
    simd: S,
    w: f32,
    x: &[[f32; 16]; P],
    mut sums: [S::W; P],
) -> [S::W; P] {
    let w = simd.wide_splat(w);
    for p in 0..P {
        sums[p] = simd.wide_mul_add(w, simd.wide_load(&x[p]), sums[p]);
    }
    sums
}

/// `a + b`.
#[inline(always)]
pub(crate) fn add<S: Simd, const P: usize>(simd: S, mut a: [S::W; P], b: [S::W; P]) -> [S::W; P] {
    for p in 0..P {
        a[p] = simd.wide_add(a[p], b[p]);
    }
    a
}

/// Rows of the product of `matrix` with all tiles.
pub(crate) struct ByTile<'a, M> {
    pub(crate) matrix: &'a M,
    /// The row of the matrix that is the first of `y`.
    pub(crate) first: usize,
    pub(crate) tiles: &'a WideTiles,
    pub(crate) y: ArrayViewMut2<'a, f32>,
}

impl<M: ElementRows> Job for ByTile<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for tile in &self.tiles.tiles {
            match tile.parts {
                1 => self.tile::<S, 1>(simd, tile),
                2 => self.tile::<S, 2>(simd, tile),
                _ => self.tile::<S, 4>(simd, tile),
            }
        }
    }
}

impl<M: ElementRows> ByTile<'_, M> {
    #[inline(always)]
    fn tile<S: Simd, const P: usize>(&mut self, simd: S, tile: &WideTile) {
        let x = tile.data.as_chunks::<P>().0;
        let count = (16 * P).min(self.y.ncols() - tile.first);
        for r in 0..self.y.nrows() {
            let sums = self.matrix.row(simd, self.first + r, x);
            let mut values = [[0.0; 16]; P];
            for p in 0..P {
                simd.wide_store(sums[p], &mut values[p]);
            }
            for (c, v) in values.as_flattened()[..count].iter().enumerate() {
                self.y[[r, tile.first + c]] = *v;
            }
        }
    }
}

/// Right-hand sides for formats whose vectors are rows of the matrix: a tile holds at most `most`
/// columns, for each `G` rows those rows of the first column, of the second, and so on.
pub(crate) struct NarrowTiles<const G: usize> {
    tiles: Vec<NarrowTile<G>>,
}

pub(crate) struct NarrowTile<const G: usize> {
    pub(crate) first: usize,
    pub(crate) width: usize,
    /// `width` for each `G` rows.
    pub(crate) data: Vec<[f32; G]>,
}

impl<const G: usize> NarrowTiles<G> {
    /// As few tiles as possible, of widths that differ by at most one. The rows of `x` are a
    /// multiple of `G`.
    pub(crate) fn new(x: ArrayView2<'_, f32>, most: usize) -> Self {
        let count = x.ncols().div_ceil(most);
        let (base, wider) = match count {
            0 => (0, 0),
            _ => (x.ncols() / count, x.ncols() % count),
        };
        let pack = |i: usize| {
            let first = i * base + i.min(wider);
            let width = base + usize::from(i < wider);
            let mut data = vec![[0.0; G]; x.nrows() / G * width];
            for (r, row) in x.outer_iter().enumerate() {
                let to = &mut data[r / G * width..][..width];
                for (c, to) in to.iter_mut().enumerate() {
                    to[r % G] = row[first + c];
                }
            }
            NarrowTile { first, width, data }
        };
        Self { tiles: (0..count).into_par_iter().map(pack).collect() }
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, NarrowTile<G>> {
        self.tiles.iter()
    }
}

/// The columns of `x` one after the other, each with zeros behind it up to `length`.
pub(crate) fn columns(x: ArrayView2<'_, f32>, length: usize) -> Vec<f32> {
    let mut data = vec![0.0; x.ncols() * length];
    if length > 0 {
        for (to, column) in data.chunks_exact_mut(length).zip(x.axis_iter(Axis(1))) {
            to.iter_mut().zip(column).for_each(|(to, v)| *to = *v);
        }
    }
    data
}
