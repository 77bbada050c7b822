use ndarray::{Array3, ArrayView1, ArrayView2, ArrayView3, Axis, aview2, s};
use num_traits::{One, Zero};

use super::{Element, SparseMatrix, check};
use crate::{Error, Result};

const FORMAT: &str = "block diagonal";

/// A square matrix whose nonzeros stand in square blocks along the diagonal.
///
/// `data` has shape `(blocks, block, block)`; block `i` covers rows and columns from `i · block`
/// on. Where `block` does not divide `size` the last block is smaller: its lower right corner is
/// padded with zeros in `data`, and the padding belongs to no row or column.
///
/// ```
/// use ndarray::{Array3, array};
/// use prune_core::{BlockDiagonal, SparseMatrix};
///
/// let mut data = Array3::zeros((2, 2, 2));
/// data[[0, 0, 1]] = 3.0f32;
/// data[[1, 0, 0]] = 5.0;
/// let a = BlockDiagonal::from_parts(3, data)?;
/// assert_eq!(a.to_dense(), array![[0.0, 3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]);
/// assert_eq!((a.rows(), a.nnz(), a.block(1).dim()), (3, 4 + 1, (1, 1)));
///
/// let identity = BlockDiagonal::<f32>::identity(3, 2)?;
/// assert_eq!(identity.matvec(array![1.0, 2.0, 3.0].view())?, array![1.0, 2.0, 3.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockDiagonal<T> {
    size: usize,
    /// In standard layout, so that a block is a slice.
    data: Array3<T>,
}

impl<T: Element> BlockDiagonal<T> {
    /// A `size x size` matrix from its blocks, which may come from an untrusted file.
    /// O(size · block).
    ///
    /// # Errors
    /// [`Error::InvalidSparse`] naming the part at fault: `shape` for a dense size beyond the
    /// address space; `data` for blocks that are not square, too many or too few for `size`, padding
    /// that is not zero, or a value that is NaN or infinite.
    pub fn from_parts(size: usize, data: Array3<T>) -> Result<Self> {
        let invalid = |reason| Err(Error::InvalidSparse { format: FORMAT, field: "data", reason });
        check::addressable::<T>(FORMAT, size, size)?;
        let (blocks, block, width) = data.dim();
        if block != width {
            return invalid(format!("found blocks of {block} x {width}, expected square ones"));
        }
        if (block == 0 && size > 0) || (block > 0 && blocks != size.div_ceil(block)) {
            return invalid(format!("found {blocks} blocks of {block} for {size} rows"));
        }
        check::finite_data(FORMAT, &data)?;
        let padded = blocks * block - size;
        if padded > 0 {
            let used = block - padded;
            let last = data.index_axis(Axis(0), blocks - 1);
            let outside = |(i, j): (usize, usize)| i >= used || j >= used;
            if last.indexed_iter().any(|(at, v)| outside(at) && *v != T::zero()) {
                return invalid(format!("the last block is not zero beyond its first {used} rows"));
            }
        }
        let data =
            if data.is_standard_layout() { data } else { data.as_standard_layout().into_owned() };
        Ok(Self { size, data })
    }

    /// The identity of `size x size` in blocks of `block`.
    ///
    /// # Errors
    /// [`Error::InvalidSparse`] for a block of 0 rows or a size beyond the address space.
    pub fn identity(size: usize, block: usize) -> Result<Self> {
        check::addressable::<T>(FORMAT, size, size)?;
        let block = block.min(size.max(1));
        let blocks = if block == 0 { 0 } else { size.div_ceil(block) };
        let mut data = Array3::from_elem((blocks, block, block), <T as Zero>::zero());
        for i in 0..size.min(blocks * block) {
            data[[i / block, i % block, i % block]] = <T as One>::one();
        }
        Self::from_parts(size, data)
    }

    /// Rows of a whole block.
    pub fn block_size(&self) -> usize {
        self.data.dim().1
    }

    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.data.dim().0
    }

    /// Block `index` without its padding; empty beyond the last.
    pub fn block(&self, index: usize) -> ArrayView2<'_, T> {
        if index >= self.blocks() {
            return aview2::<T, 0>(&[]);
        }
        let rows = self.block_size().min(self.size - index * self.block_size());
        self.data.slice(s![index, ..rows, ..rows])
    }

    /// All blocks, `(blocks, block, block)`.
    pub fn data(&self) -> ArrayView3<'_, T> {
        self.data.view()
    }

    /// The blocks themselves; the inverse of [`BlockDiagonal::from_parts`].
    pub fn into_data(self) -> Array3<T> {
        self.data
    }
}

impl<T: Element> SparseMatrix for BlockDiagonal<T> {
    type Element = T;

    fn rows(&self) -> usize {
        self.size
    }

    fn cols(&self) -> usize {
        self.size
    }

    fn nnz(&self) -> usize {
        (0..self.blocks()).map(|i| self.block(i).len()).sum()
    }

    fn nbytes(&self) -> usize {
        self.data.len() * size_of::<T>()
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (usize, T)> + '_ {
        let block = self.block_size().max(1);
        let first = row / block * block;
        let values = match row < self.size {
            true => self.data.slice(s![row / block, row % block, ..block.min(self.size - first)]),
            false => ArrayView1::from(&[]),
        };
        values.into_iter().enumerate().map(move |(j, v)| (first + j, *v))
    }
}
