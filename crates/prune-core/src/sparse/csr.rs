use ndarray::ArrayView2;

use super::{Element, SparseMatrix, check};
use crate::{Mask, Result};

const FORMAT: &str = "csr";

/// A matrix in compressed sparse rows.
///
/// Row `r` stores `data[k]` at column `indices[k]` for `k` in `indptr[r]..indptr[r + 1]`, columns
/// strictly ascending, as scipy's `csr_matrix` in canonical form. Stored zeros are allowed.
///
/// Bytes: 8 · (rows + 1) of `indptr`, 4 an index, the size of `T` a value. For f32 that is less
/// than the dense matrix from 50 % sparsity on.
///
/// ```
/// use ndarray::array;
/// use prune_core::{Csr, SparseMatrix};
///
/// let a = Csr::from_dense(array![[0.0f32, 5.0, 0.0], [1.0, 0.0, -2.0]].view())?;
/// assert_eq!(a.indptr(), [0, 1, 3]);
/// assert_eq!(a.indices(), [1, 0, 2]);
/// assert_eq!(a.data(), [5.0, 1.0, -2.0]);
/// assert_eq!(a.nbytes(), 3 * 8 + 3 * 4 + 3 * 4);
///
/// let broken = Csr::from_parts(2, 3, vec![0, 1, 3], vec![1, 2, 0], vec![5.0f32, 1.0, -2.0]);
/// assert_eq!(
///     broken.unwrap_err().to_string(),
///     "invalid csr: indices: row 1 has 2 before 0, expected ascending"
/// );
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Csr<T> {
    rows: usize,
    cols: usize,
    indptr: Vec<usize>,
    indices: Vec<u32>,
    data: Vec<T>,
}

impl<T: Element> Csr<T> {
    /// A `rows x cols` matrix from its parts, which may come from an untrusted file. O(nnz).
    ///
    /// # Errors
    /// [`Error::InvalidSparse`](crate::Error::InvalidSparse) naming the part at fault:
    /// - `shape`: more columns than u32 can count, or rows without columns,
    ///   or a dense size beyond the address space;
    /// - `indptr`: not `rows + 1` long, not from 0 up to the number of indices, or decreasing;
    /// - `indices`: at or beyond `cols`, or not strictly ascending within a row;
    /// - `data`: not as long as `indices`, or a value that is NaN or infinite.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        indptr: Vec<usize>,
        indices: Vec<u32>,
        data: Vec<T>,
    ) -> Result<Self> {
        check::indexable(FORMAT, cols)?;
        check::addressable::<T>(FORMAT, rows, cols)?;
        check::compressed_rows(FORMAT, rows, cols, &indptr, &indices)?;
        check::length(FORMAT, "data", data.len(), indices.len())?;
        check::finite_data(FORMAT, &data)?;
        Ok(Self { rows, cols, indptr, indices, data })
    }

    /// The matrix that stores exactly the nonzeros of `dense` (−0.0 is zero).
    ///
    /// # Errors
    /// [`Error::NotFinite`](crate::Error::NotFinite) with the row-major index;
    /// [`Error::InvalidSparse`](crate::Error::InvalidSparse) for 2³² columns or more.
    pub fn from_dense(dense: ArrayView2<'_, T>) -> Result<Self> {
        Self::select(dense, |_, _, v| v != T::zero())
    }

    /// The matrix that stores exactly what `mask` keeps of `dense`, zeros included.
    ///
    /// # Errors
    /// As [`Csr::from_dense`]; [`Error::Shape`](crate::Error::Shape) when the shapes differ.
    pub fn from_dense_masked(dense: ArrayView2<'_, T>, mask: &Mask) -> Result<Self> {
        check::same_shape(&dense, mask)?;
        Self::select(dense, |r, c, _| mask.is_kept(r, c))
    }

    fn select(dense: ArrayView2<'_, T>, stored: impl Fn(usize, usize, T) -> bool) -> Result<Self> {
        let (rows, cols) = dense.dim();
        check::indexable(FORMAT, cols)?;
        check::addressable::<T>(FORMAT, rows, cols)?;
        check::finite_dense(&dense)?;
        let mut indptr = Vec::with_capacity(rows + 1);
        let (mut indices, mut data) = (Vec::new(), Vec::new());
        indptr.push(0);
        for (r, row) in dense.outer_iter().enumerate() {
            for (c, &v) in row.iter().enumerate() {
                if stored(r, c, v) {
                    indices.push(c as u32);
                    data.push(v);
                }
            }
            indptr.push(indices.len());
        }
        Ok(Self { rows, cols, indptr, indices, data })
    }

    /// Where each row starts in `indices` and `data`, and after the last its end; `rows + 1` long.
    pub fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// The column of each stored element.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The stored elements.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// `indptr`, `indices` and `data`, without a copy.
    pub fn into_parts(self) -> (Vec<usize>, Vec<u32>, Vec<T>) {
        (self.indptr, self.indices, self.data)
    }
}

impl<T: Element> SparseMatrix for Csr<T> {
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
        size_of_val(&self.indptr[..]) + size_of_val(&self.indices[..]) + size_of_val(&self.data[..])
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (usize, T)> + '_ {
        let span = if row < self.rows { self.indptr[row]..self.indptr[row + 1] } else { 0..0 };
        let columns = self.indices[span.clone()].iter().map(|&c| c as usize);
        columns.zip(self.data[span].iter().copied())
    }
}
