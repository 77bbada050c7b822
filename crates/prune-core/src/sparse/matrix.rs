use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use num_traits::Zero;

use super::{Element, check};
use crate::{Error, Mask, Result};

/// A matrix that stores some of its elements; the others are zero.
///
/// The products here are the definition: one thread, ascending columns, sums in
/// [`Element::Sum`]. Only stored elements take part, so an infinity in the right-hand side does
/// not meet the zeros that are not stored.
///
/// ```
/// use ndarray::array;
/// use prune_core::{Csr, SparseMatrix};
///
/// let a = Csr::from_dense(array![[0.0f32, 2.0], [0.0, 0.0], [3.0, 0.0]].view())?;
/// assert_eq!(a.matvec(array![10.0, 1.0].view())?, array![2.0, 0.0, 30.0]);
/// assert_eq!(a.matmul(array![[1.0, 2.0], [3.0, 4.0]].view())?.row(2), array![3.0, 6.0]);
/// assert_eq!((a.rows(), a.cols(), a.nnz()), (3, 2, 2));
/// assert_eq!(a.row(2).collect::<Vec<_>>(), [(0, 3.0)]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub trait SparseMatrix {
    /// The type of the stored elements.
    type Element: Element;

    /// The number of rows.
    fn rows(&self) -> usize;

    /// The number of columns.
    fn cols(&self) -> usize;

    /// The number of stored elements, zeros among them included.
    fn nnz(&self) -> usize;

    /// Bytes of all parts as they lie in memory, without the struct itself.
    fn nbytes(&self) -> usize;

    /// Column and value of the stored elements of one row, columns ascending. Empty outside the
    /// matrix.
    fn row(&self, row: usize) -> impl Iterator<Item = (usize, Self::Element)> + '_;

    /// The dense matrix; what is not stored is `+0.0`.
    ///
    /// Allocates `rows · cols` elements, however few are stored: compare the shape of a matrix
    /// from an untrusted file with what is expected before calling this.
    fn to_dense(&self) -> Array2<Self::Element> {
        let mut dense =
            Array2::from_elem((self.rows(), self.cols()), <Self::Element as Zero>::zero());
        for (r, mut out) in dense.outer_iter_mut().enumerate() {
            for (c, v) in self.row(r) {
                out[c] = v;
            }
        }
        dense
    }

    /// The stored positions, whether or not their value is zero. Allocates `rows · cols` bits.
    fn mask(&self) -> Mask {
        let mut mask = Mask::all_removed(self.rows(), self.cols());
        for r in 0..self.rows() {
            for (c, _) in self.row(r) {
                mask.keep(r, c);
            }
        }
        mask
    }

    /// `y = A x`, with `x` of length [`cols`](SparseMatrix::cols). One multiplication a stored
    /// element.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` has another length.
    fn matvec(&self, x: ArrayView1<'_, Self::Element>) -> Result<Array1<Self::Element>> {
        if x.len() != self.cols() {
            return Err(Error::Shape {
                what: "right-hand side".to_string(),
                found: vec![x.len()],
                expected: vec![self.cols()],
            });
        }
        let mut y = Array1::from_elem(self.rows(), <Self::Element as Zero>::zero());
        for (r, out) in y.iter_mut().enumerate() {
            let mut sum = <Self::Element as Element>::Sum::zero();
            for (c, v) in self.row(r) {
                sum += v.widen() * x[c].widen();
            }
            *out = Self::Element::narrow(sum);
        }
        Ok(y)
    }

    /// `Y = A X`, with `X` of shape `(cols, k)`; `Y` has shape `(rows, k)`. `k` multiplications a
    /// stored element, scratch of `k` sums.
    ///
    /// # Errors
    /// [`Error::Shape`] when `X` has another number of rows.
    fn matmul(&self, x: ArrayView2<'_, Self::Element>) -> Result<Array2<Self::Element>> {
        if x.nrows() != self.cols() {
            return Err(Error::Shape {
                what: "right-hand side".to_string(),
                found: x.shape().to_vec(),
                expected: vec![self.cols(), x.ncols()],
            });
        }
        if x.ncols() > 0 {
            check::addressable::<Self::Element>("product", self.rows(), x.ncols())?;
        }
        let mut y = Array2::from_elem((self.rows(), x.ncols()), <Self::Element as Zero>::zero());
        let mut sums = vec![<Self::Element as Element>::Sum::zero(); x.ncols()];
        for (r, mut out) in y.outer_iter_mut().enumerate() {
            sums.fill(Zero::zero());
            for (c, v) in self.row(r) {
                let v = v.widen();
                for (sum, x) in sums.iter_mut().zip(x.row(c)) {
                    *sum += v * x.widen();
                }
            }
            for (out, sum) in out.iter_mut().zip(&sums) {
                *out = Self::Element::narrow(*sum);
            }
        }
        Ok(y)
    }
}
