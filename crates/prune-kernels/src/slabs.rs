//! Products with dense blocks stored column by column, `R` rows side by side: eight or sixteen.

use ndarray::ArrayViewMut2;

use crate::simd::{Job, Simd};
use crate::storage::Storage;
use crate::tiles::{NarrowTile, NarrowTiles};

/// A vector of `R` rows.
pub(crate) trait Rows<const R: usize> {
    type V<S: Simd>: Copy;

    fn splat<S: Simd>(simd: S, v: f32) -> Self::V<S>;
    fn load<S: Simd, T: Storage>(simd: S, from: &[T; R]) -> Self::V<S>;
    fn add<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    fn mul_add<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
    fn store<S: Simd>(simd: S, v: Self::V<S>, to: &mut [f32; R]);
}

/// Has the operations of [`Rows`] for each height.
pub(crate) struct Height;

impl Rows<8> for Height {
    type V<S: Simd> = S::F;

    #[inline(always)]
    fn splat<S: Simd>(simd: S, v: f32) -> S::F {
        simd.splat(v)
    }

    #[inline(always)]
    fn load<S: Simd, T: Storage>(simd: S, from: &[T; 8]) -> S::F {
        T::eight(simd, from)
    }

    #[inline(always)]
    fn add<S: Simd>(simd: S, a: S::F, b: S::F) -> S::F {
        simd.add(a, b)
    }

    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::F, b: S::F, c: S::F) -> S::F {
        simd.mul_add(a, b, c)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::F, to: &mut [f32; 8]) {
        simd.store(v, to);
    }
}

impl Rows<16> for Height {
    type V<S: Simd> = S::W;

    #[inline(always)]
    fn splat<S: Simd>(simd: S, v: f32) -> S::W {
        simd.wide_splat(v)
    }

    #[inline(always)]
    fn load<S: Simd, T: Storage>(simd: S, from: &[T; 16]) -> S::W {
        T::sixteen(simd, from)
    }

    #[inline(always)]
    fn add<S: Simd>(simd: S, a: S::W, b: S::W) -> S::W {
        simd.wide_add(a, b)
    }

    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::W, b: S::W, c: S::W) -> S::W {
        simd.wide_mul_add(a, b, c)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::W, to: &mut [f32; 16]) {
        simd.wide_store(v, to);
    }
}

/// Block rows of blocks of `height x width`, `height` a multiple of `R`.
pub(crate) struct SlabRows<'a, T, const R: usize> {
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Where each block row starts in `indices`, and the end.
    pub(crate) indptr: &'a [usize],
    /// The block column of each block.
    pub(crate) indices: &'a [u32],
    /// For each block row, for each `R` rows of it, for each block: its columns.
    pub(crate) data: &'a [[T; R]],
}

impl<T, const R: usize> Clone for SlabRows<'_, T, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, const R: usize> Copy for SlabRows<'_, T, R> {}

impl<'a, T, const R: usize> SlabRows<'a, T, R> {
    /// The slab that starts at row `row`.
    #[inline(always)]
    fn slab(self, row: usize) -> Slab<'a, T, R> {
        let block_row = row / self.height;
        let (start, end) = (self.indptr[block_row], self.indptr[block_row + 1]);
        let columns = (end - start) * self.width;
        let before = start * (self.height / R) * self.width + row % self.height / R * columns;
        Slab {
            width: self.width,
            indices: &self.indices[start..end],
            data: &self.data[before..before + columns],
        }
    }
}

/// `R` rows of a block row.
struct Slab<'a, T, const R: usize> {
    width: usize,
    /// The block columns of its blocks.
    indices: &'a [u32],
    /// The columns of its blocks.
    data: &'a [[T; R]],
}

pub(crate) struct SlabVector<'a, T, const R: usize> {
    pub(crate) rows: SlabRows<'a, T, R>,
    /// Starts a block row.
    pub(crate) first: usize,
    pub(crate) x: &'a [f32],
    pub(crate) y: &'a mut [f32],
}

impl<T: Storage, const R: usize> Job for SlabVector<'_, T, R>
where
    Height: Rows<R>,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (i, y) in self.y.as_chunks_mut::<R>().0.iter_mut().enumerate() {
            let slab = self.rows.slab(self.first + i * R);
            let width = slab.width;
            let mut sums = [Height::splat(simd, 0.0); 4];
            for (block_col, block) in slab.indices.iter().zip(slab.data.chunks_exact(width)) {
                let x = &self.x[*block_col as usize * width..][..width];
                let (w4, w1) = block.as_chunks::<4>();
                let (x4, x1) = x.as_chunks::<4>();
                for (w, x) in w4.iter().zip(x4) {
                    for p in 0..4 {
                        let w = Height::load(simd, &w[p]);
                        sums[p] = Height::mul_add(simd, w, Height::splat(simd, x[p]), sums[p]);
                    }
                }
                for (w, x) in w1.iter().zip(x1) {
                    let w = Height::load(simd, w);
                    sums[0] = Height::mul_add(simd, w, Height::splat(simd, *x), sums[0]);
                }
            }
            let even = Height::add(simd, sums[0], sums[2]);
            let odd = Height::add(simd, sums[1], sums[3]);
            Height::store(simd, Height::add(simd, even, odd), y);
        }
    }
}

pub(crate) struct SlabTile<'a, T, const R: usize> {
    pub(crate) rows: SlabRows<'a, T, R>,
    /// Starts a block row.
    pub(crate) first: usize,
    pub(crate) tiles: &'a NarrowTiles<1>,
    pub(crate) y: ArrayViewMut2<'a, f32>,
}

impl<T: Storage, const R: usize> Job for SlabTile<'_, T, R>
where
    Height: Rows<R>,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for row in (0..self.y.nrows()).step_by(R) {
            for tile in self.tiles.iter() {
                match tile.width {
                    1 => self.slab::<S, 1>(simd, row, tile),
                    2 => self.slab::<S, 2>(simd, row, tile),
                    3 => self.slab::<S, 3>(simd, row, tile),
                    4 => self.slab::<S, 4>(simd, row, tile),
                    5 => self.slab::<S, 5>(simd, row, tile),
                    7 if S::COLUMNS >= 7 => self.slab::<S, 7>(simd, row, tile),
                    8 if S::COLUMNS >= 8 => self.slab::<S, 8>(simd, row, tile),
                    9 if S::COLUMNS >= 9 => self.slab::<S, 9>(simd, row, tile),
                    10 if S::COLUMNS >= 10 => self.slab::<S, 10>(simd, row, tile),
                    11 if S::COLUMNS >= 11 => self.slab::<S, 11>(simd, row, tile),
                    12 if S::COLUMNS >= 12 => self.slab::<S, 12>(simd, row, tile),
                    _ => self.slab::<S, 6>(simd, row, tile),
                }
            }
        }
    }
}

impl<T: Storage, const R: usize> SlabTile<'_, T, R>
where
    Height: Rows<R>,
{
    #[inline(always)]
    fn slab<S: Simd, const N: usize>(&mut self, simd: S, row: usize, tile: &NarrowTile<1>) {
        let slab = self.rows.slab(self.first + row);
        let width = slab.width;
        let x = tile.data.as_flattened().as_chunks::<N>().0;
        let mut sums = [Height::splat(simd, 0.0); N];
        for (block_col, block) in slab.indices.iter().zip(slab.data.chunks_exact(width)) {
            let x = &x[*block_col as usize * width..][..width];
            for (w, x) in block.iter().zip(x) {
                let w = Height::load(simd, w);
                for j in 0..N {
                    sums[j] = Height::mul_add(simd, w, Height::splat(simd, x[j]), sums[j]);
                }
            }
        }
        for (j, sum) in sums.into_iter().enumerate() {
            let mut column = [0.0; R];
            Height::store(simd, sum, &mut column);
            for (r, v) in column.iter().enumerate() {
                self.y[[row + r, tile.first + j]] = *v;
            }
        }
    }
}
