use ndarray::{Array3, ArrayView2, ArrayViewMut2};
use prune_core::{Bsr, Result, SparseMatrix};

use crate::operator::{
    LinearOperator, check_matrices, check_vectors, for_row_panels, for_rows, rows_per_task,
};
use crate::pages::Pages;
use crate::simd::{Job, KernelPath, Selected, Simd};
use crate::slabs::{SlabRows, SlabTile, SlabVector};
use crate::storage::Storage;
use crate::tiles::{ByTile, ElementRows, NarrowTiles, WideTiles, add, add_scaled};

/// A [`Bsr`] matrix that multiplies fast.
///
/// Blocks whose height is a multiple of sixteen or eight are stored column by column in slabs of
/// that many rows, so that each number of the right-hand side multiplies a vector of rows and
/// nothing is summed across a vector. Blocks of other heights stay as they are and are multiplied a
/// row at a time, best with a width that is a multiple of eight.
///
/// A product reads the stored blocks and 4 bytes of index for each; it pays from 50 % sparsity on.
///
/// ```
/// use ndarray::Array2;
/// use prune_core::Bsr;
/// use prune_kernels::{BsrKernel, LinearOperator};
///
/// let w = Array2::from_shape_fn((32, 32), |(r, c)| if r / 16 == c / 16 { 1.0f32 } else { 0.0 });
/// let a = BsrKernel::from(Bsr::from_dense(w.view(), 16, 16)?);
/// assert_eq!(a.matvec(&[0.5; 32])?, [8.0; 32]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BsrKernel<T> {
    rows: usize,
    cols: usize,
    nbytes: usize,
    height: usize,
    width: usize,
    indptr: Vec<usize>,
    indices: Vec<u32>,
    blocks: Blocks<T>,
    selected: Selected,
}

#[derive(Debug, Clone, PartialEq)]
enum Blocks<T> {
    /// For each block row, for each sixteen rows of it: the columns of its blocks, one after the
    /// other.
    Sixteen(Pages<[T; 16]>),
    /// The same for each eight rows.
    Eight(Pages<[T; 8]>),
    /// As in [`Bsr`].
    RowMajor(Pages<T>),
}

impl<T: Storage> From<Bsr<T>> for BsrKernel<T> {
    fn from(bsr: Bsr<T>) -> Self {
        let (rows, cols, nbytes) = (bsr.rows(), bsr.cols(), bsr.nbytes());
        let (height, width) = bsr.block_shape();
        let (indptr, indices, data) = bsr.into_parts();
        let blocks = if height.is_multiple_of(16) {
            Blocks::Sixteen(slabs(&indptr, &data).into())
        } else if height.is_multiple_of(8) {
            Blocks::Eight(slabs(&indptr, &data).into())
        } else {
            Blocks::RowMajor(data.into_iter().collect::<Vec<T>>().into())
        };
        let selected = Selected::best();
        Self { rows, cols, nbytes, height, width, indptr, indices, blocks, selected }
    }
}

/// The columns of the blocks of each `R` rows.
fn slabs<T: Storage, const R: usize>(indptr: &[usize], blocks: &Array3<T>) -> Vec<[T; R]> {
    let (_, height, width) = blocks.dim();
    let mut slabs = Vec::with_capacity(blocks.len() / R);
    for ends in indptr.windows(2) {
        for first in (0..height).step_by(R) {
            for block in ends[0]..ends[1] {
                for c in 0..width {
                    slabs.push(std::array::from_fn(|r| blocks[[block, first + r, c]]));
                }
            }
        }
    }
    slabs
}

impl<T: Storage> BsrKernel<T> {
    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](prune_core::Error::OutOfRange) when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        Ok(Self { selected: Selected::new(path)?, ..self })
    }

    fn slab_rows<'a, const R: usize>(&'a self, data: &'a [[T; R]]) -> SlabRows<'a, T, R> {
        let (height, width) = (self.height, self.width);
        SlabRows { height, width, indptr: &self.indptr, indices: &self.indices, data }
    }
}

impl<T: Storage> LinearOperator for BsrKernel<T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nbytes(&self) -> usize {
        self.nbytes
    }

    fn path(&self) -> KernelPath {
        self.selected.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check_vectors(self, x, y)?;
        for_rows(y, rows_per_task(self, self.height, 1), |first, y| match &self.blocks {
            Blocks::Sixteen(data) => {
                self.selected.run(SlabVector { rows: self.slab_rows(data), first, x, y });
            }
            Blocks::Eight(data) => {
                self.selected.run(SlabVector { rows: self.slab_rows(data), first, x, y });
            }
            Blocks::RowMajor(data) => {
                self.selected.run(RowVector { matrix: self, data, first, x, y });
            }
        });
        Ok(())
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_matrices(self, &x, &y)?;
        let rows = rows_per_task(self, self.height, y.ncols());
        match &self.blocks {
            Blocks::Sixteen(data) => {
                let tiles = NarrowTiles::new(x, self.selected.columns());
                for_row_panels(y, rows, |first, y| {
                    let rows = self.slab_rows(data);
                    self.selected.run(SlabTile { rows, first, tiles: &tiles, y });
                });
            }
            Blocks::Eight(data) => {
                let tiles = NarrowTiles::new(x, self.selected.columns());
                for_row_panels(y, rows, |first, y| {
                    let rows = self.slab_rows(data);
                    self.selected.run(SlabTile { rows, first, tiles: &tiles, y });
                });
            }
            Blocks::RowMajor(data) => {
                let tiles = WideTiles::new(x);
                for_row_panels(y, rows, |first, y| {
                    let matrix = &RowMajor { matrix: self, data };
                    self.selected.run(ByTile { matrix, first, tiles: &tiles, y });
                });
            }
        }
        Ok(())
    }
}

impl<T> BsrKernel<T> {
    /// The blocks of row `row`: the first, the block columns of all, and the row inside of each.
    #[inline(always)]
    fn blocks_of(&self, row: usize) -> (usize, &[u32], usize) {
        let block_row = row / self.height;
        let (start, end) = (self.indptr[block_row], self.indptr[block_row + 1]);
        (start, &self.indices[start..end], row % self.height)
    }
}

struct RowVector<'a, T> {
    matrix: &'a BsrKernel<T>,
    data: &'a [T],
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<T: Storage> Job for RowVector<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (height, width) = (self.matrix.height, self.matrix.width);
        for (i, y) in self.y.iter_mut().enumerate() {
            let (start, block_cols, r) = self.matrix.blocks_of(self.first + i);
            // Four blocks have a sum each, so that they do not wait for each other.
            let mut sums = [simd.splat(0.0); 4];
            let mut rest = 0.0;
            let (fours, ones) = block_cols.as_chunks::<4>();
            for (k, block_cols) in fours.iter().enumerate() {
                for p in 0..4 {
                    let w = &self.data[((start + 4 * k + p) * height + r) * width..][..width];
                    let x = &self.x[block_cols[p] as usize * width..][..width];
                    sums[p] = dot_add(simd, w, x, sums[p], &mut rest);
                }
            }
            let start = start + 4 * fours.len();
            for (k, block_col) in ones.iter().enumerate() {
                let w = &self.data[((start + k) * height + r) * width..][..width];
                let x = &self.x[*block_col as usize * width..][..width];
                sums[0] = dot_add(simd, w, x, sums[0], &mut rest);
            }
            let sums = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
            *y = simd.sum(sums) + rest;
        }
    }
}

/// `sums` and the products of `w` and `x`, of one length; the products of the last ones, fewer than
/// eight, go to `rest`.
#[inline(always)]
fn dot_add<S: Simd, T: Storage>(
    simd: S,
    w: &[T],
    x: &[f32],
    mut sums: S::F,
    rest: &mut f32,
) -> S::F {
    let (w, last_w) = w.as_chunks::<8>();
    let (x, last_x) = x.as_chunks::<8>();
    for (w, x) in w.iter().zip(x) {
        sums = simd.mul_add(T::eight(simd, w), simd.load(x), sums);
    }
    for (w, x) in last_w.iter().zip(last_x) {
        *rest += w.one() * x;
    }
    sums
}

struct RowMajor<'a, T> {
    matrix: &'a BsrKernel<T>,
    data: &'a [T],
}

impl<T: Storage> ElementRows for RowMajor<'_, T> {
    #[inline(always)]
    fn row<S: Simd, const P: usize>(&self, simd: S, row: usize, x: &[[[f32; 16]; P]]) -> [S::W; P] {
        // Two sums that do not wait for each other.
        let (mut even, mut odd) = ([simd.wide_splat(0.0); P], [simd.wide_splat(0.0); P]);
        let (height, width) = (self.matrix.height, self.matrix.width);
        let (start, block_cols, r) = self.matrix.blocks_of(row);
        for (k, block_col) in block_cols.iter().enumerate() {
            let w = &self.data[((start + k) * height + r) * width..][..width];
            let x = &x[*block_col as usize * width..][..width];
            let (w, last_w) = w.as_chunks::<2>();
            let (x, last_x) = x.as_chunks::<2>();
            for (w, x) in w.iter().zip(x) {
                even = add_scaled(simd, w[0].one(), &x[0], even);
                odd = add_scaled(simd, w[1].one(), &x[1], odd);
            }
            for (w, x) in last_w.iter().zip(last_x) {
                even = add_scaled(simd, w.one(), x, even);
            }
        }
        add(simd, even, odd)
    }
}
