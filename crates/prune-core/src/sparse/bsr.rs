use ndarray::{Array3, ArrayView2, ArrayView3, s};

use super::{Element, SparseMatrix, check};
use crate::{Error, Mask, Pattern, Result};

const FORMAT: &str = "bsr";

/// A matrix in block sparse rows: whole blocks of `R x C` are stored or are zero.
///
/// Block row `b` stores `data[k, .., ..]` at block column `indices[k]` for `k` in
/// `indptr[b]..indptr[b + 1]`, block columns strictly ascending, each block row-major; the same as
/// scipy's `bsr_matrix` and torch's `sparse_bsr_tensor`. The shape divides exactly.
///
/// Bytes: 8 · (block rows + 1) of `indptr`, 4 a block, the size of `T` a value.
///
/// ```
/// use ndarray::array;
/// use prune_core::{Bsr, SparseMatrix};
///
/// let w = array![[0.0f32, 0.0, 1.0, 2.0], [0.0, 0.0, 3.0, 0.0]];
/// let a = Bsr::from_dense(w.view(), 2, 2)?;
/// assert_eq!(a.indptr(), [0, 1]);
/// assert_eq!(a.indices(), [1]);
/// assert_eq!(a.data(), array![[[1.0, 2.0], [3.0, 0.0]]]);
/// assert_eq!(a.block_shape(), (2, 2));
/// assert_eq!(a.nnz(), 4);
/// assert_eq!(a.to_dense(), w);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Bsr<T> {
    rows: usize,
    cols: usize,
    indptr: Vec<usize>,
    indices: Vec<u32>,
    /// In standard layout.
    data: Array3<T>,
}

impl<T: Element> Bsr<T> {
    /// A `rows x cols` matrix from its parts, which may come from an untrusted file. The shape of
    /// a block is that of `data`, `(blocks, R, C)`. O(stored elements).
    ///
    /// # Errors
    /// [`Error::InvalidSparse`] naming the part at fault:
    /// - `shape`: not a multiple of the block, more block columns than u32 can count, rows
    ///   without columns, or a dense size beyond the address space;
    /// - `indptr`: not `rows / R + 1` long, not from 0 up to the number of indices, or decreasing;
    /// - `indices`: at or beyond `cols / C`, or not strictly ascending within a block row;
    /// - `data`: blocks without extent, not as many as `indices`, or a value that is NaN or
    ///   infinite.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        indptr: Vec<usize>,
        indices: Vec<u32>,
        data: Array3<T>,
    ) -> Result<Self> {
        let invalid = |field, reason| Error::InvalidSparse { format: FORMAT, field, reason };
        let (blocks, height, width) = data.dim();
        if height == 0 || width == 0 {
            return Err(invalid("data", format!("blocks of {height} x {width}")));
        }
        if !rows.is_multiple_of(height) || !cols.is_multiple_of(width) {
            return Err(invalid(
                "shape",
                format!("{rows} x {cols} does not divide into blocks of {height} x {width}"),
            ));
        }
        check::indexable(FORMAT, cols / width)?;
        check::addressable::<T>(FORMAT, rows, cols)?;
        check::compressed_rows(FORMAT, rows / height, cols / width, &indptr, &indices)?;
        check::length(FORMAT, "data", blocks, indices.len())?;
        check::finite_data(FORMAT, &data)?;
        let data =
            if data.is_standard_layout() { data } else { data.as_standard_layout().into_owned() };
        Ok(Self { rows, cols, indptr, indices, data })
    }

    /// The matrix that stores the blocks of `block_rows x block_cols` in which `dense` has a
    /// nonzero (−0.0 is zero).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a block without extent; [`Error::PatternShape`] when the shape
    /// does not divide; [`Error::NotFinite`] with the row-major index; [`Error::InvalidSparse`]
    /// for 2³² block columns or more.
    pub fn from_dense(
        dense: ArrayView2<'_, T>,
        block_rows: usize,
        block_cols: usize,
    ) -> Result<Self> {
        let pattern = Pattern::block(block_rows, block_cols)?;
        pattern.check_shape("dense matrix", dense.nrows(), dense.ncols())?;
        Self::select(dense, block_rows, block_cols, |_, _, block| {
            block.iter().any(|v| *v != T::zero())
        })
    }

    /// The matrix that stores exactly the blocks that `mask` keeps, zeros included.
    ///
    /// # Errors
    /// As [`Bsr::from_dense`]; [`Error::Shape`] when the shapes differ; [`Error::PatternBroken`]
    /// naming the first block that is kept in part.
    pub fn from_dense_masked(
        dense: ArrayView2<'_, T>,
        mask: &Mask,
        block_rows: usize,
        block_cols: usize,
    ) -> Result<Self> {
        check::same_shape(&dense, mask)?;
        mask.check(Pattern::block(block_rows, block_cols)?)?;
        Self::select(dense, block_rows, block_cols, |r, c, _| mask.is_kept(r, c))
    }

    /// Stores the blocks for which `stored(first row, first column, block)` holds. The shape
    /// divides.
    fn select(
        dense: ArrayView2<'_, T>,
        height: usize,
        width: usize,
        stored: impl Fn(usize, usize, &ArrayView2<'_, T>) -> bool,
    ) -> Result<Self> {
        let (rows, cols) = dense.dim();
        check::indexable(FORMAT, cols / width)?;
        check::addressable::<T>(FORMAT, rows, cols)?;
        check::finite_dense(&dense)?;
        let mut indptr = Vec::with_capacity(rows / height + 1);
        let (mut indices, mut data) = (Vec::new(), Vec::new());
        indptr.push(0);
        for r in (0..rows).step_by(height) {
            for c in (0..cols).step_by(width) {
                let block = dense.slice(s![r..r + height, c..c + width]);
                if stored(r, c, &block) {
                    indices.push((c / width) as u32);
                    data.extend(block.iter().copied());
                }
            }
            indptr.push(indices.len());
        }
        let data = Array3::from_shape_vec((indices.len(), height, width), data).map_err(|e| {
            Error::InvalidSparse { format: FORMAT, field: "data", reason: e.to_string() }
        })?;
        Ok(Self { rows, cols, indptr, indices, data })
    }

    /// Where each block row starts in `indices` and `data`, and after the last its end;
    /// `rows / R + 1` long.
    pub fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// The block column of each stored block.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The stored blocks, `(blocks, R, C)`, contiguous.
    pub fn data(&self) -> ArrayView3<'_, T> {
        self.data.view()
    }

    /// Height and width of a block.
    pub fn block_shape(&self) -> (usize, usize) {
        let (_, height, width) = self.data.dim();
        (height, width)
    }

    /// `indptr`, `indices` and `data`, without a copy.
    pub fn into_parts(self) -> (Vec<usize>, Vec<u32>, Array3<T>) {
        (self.indptr, self.indices, self.data)
    }
}

impl<T: Element> SparseMatrix for Bsr<T> {
    type Element = T;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nnz(&self) -> usize {
        self.data.len()
    }

    fn nbytes(&self) -> usize {
        size_of_val(&self.indptr[..])
            + size_of_val(&self.indices[..])
            + self.data.len() * size_of::<T>()
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (usize, T)> + '_ {
        let (height, width) = self.block_shape();
        let (block_row, inner) = (row / height, row % height);
        let span =
            if row < self.rows { self.indptr[block_row]..self.indptr[block_row + 1] } else { 0..0 };
        // In standard layout there is a slice.
        let data = self.data.as_slice().unwrap_or_default();
        span.flat_map(move |k| {
            let first = self.indices[k] as usize * width;
            let values = &data[(k * height + inner) * width..][..width];
            (first..).zip(values.iter().copied())
        })
    }
}
