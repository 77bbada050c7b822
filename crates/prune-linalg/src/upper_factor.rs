use std::ops::Range;

use ndarray::{Array2, ArrayView2, Axis, s};

use crate::{Error, Result, check, cholesky};

/// The upper triangular `R` of `A = R Rᵀ`, and from it blocks of the factor `U = R⁻¹` of
/// `A⁻¹ = Uᵀ U`.
///
/// SparseGPT and GPTQ are written with U, but every step of theirs needs only rows of R and a block
/// of U on the diagonal, which is the inverse of that block of R. This saves the inversion: n³/3
/// operations instead of 2 n³/3, on all threads.
///
/// Factored in f64 and handed out in f32, in which the methods apply it. There, what is less than
/// 10⁻²⁰ of the diagonal elements in its row and its column is 0: on inputs that correlate less and
/// less it would soon be subnormal, and products with it a hundred times slower.
///
/// ```
/// use ndarray::{array, s};
/// use prune_linalg::UpperFactor;
///
/// let a = array![[4.0, 1.0, 0.5], [1.0, 3.0, 1.0], [0.5, 1.0, 2.0]];
/// let factor = UpperFactor::new(a.view())?;
/// let r = factor.rows(0..3);
/// assert!((r.dot(&r.t()) - a.mapv(|v| v as f32)).iter().all(|d| d.abs() < 1e-6));
/// let u = factor.inverse_block(1..3);
/// let identity = r.slice(s![1.., 1..]).dot(&u);
/// assert!((identity[[0, 0]] - 1.0).abs() < 1e-6 && identity[[0, 1]].abs() < 1e-6);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct UpperFactor {
    /// With J the reversal of the order, the lower factor of `J A J`; `R = J L J`.
    lower: Array2<f64>,
}

impl UpperFactor {
    /// Factors a symmetric positive definite matrix, of which on and above the diagonal is read.
    ///
    /// # Errors
    /// As [`cholesky`]; [`Error::NotPositiveDefinite`] counts the pivots from the last one down.
    pub fn new(a: ArrayView2<'_, f64>) -> Result<Self> {
        let n = check::square(a)?;
        check::finite(a)?;
        match cholesky(a.slice(s![..;-1, ..;-1])) {
            Ok(lower) => Ok(Self { lower }),
            Err(Error::NotPositiveDefinite { pivot }) => {
                Err(Error::NotPositiveDefinite { pivot: n - 1 - pivot })
            }
            Err(e) => Err(e),
        }
    }

    /// The diagonal of R; that of U is its inverse, element by element.
    #[must_use]
    pub fn diagonal(&self) -> Vec<f64> {
        self.view().diag().to_vec()
    }

    /// Rows `block` of R from column `block.start` on.
    ///
    /// # Panics
    /// When the block ends beyond the matrix.
    #[must_use]
    pub fn rows(&self, block: Range<usize>) -> Array2<f32> {
        let r = self.view();
        let part = r.slice(s![block.clone(), block.start..]);
        in_f32(part, &r.diag().slice(s![block.start..]).to_vec())
    }

    /// Rows and columns `block` of U, by back substitution in about as many operations as the cube
    /// of its size.
    ///
    /// # Panics
    /// When the block ends beyond the matrix.
    #[must_use]
    pub fn inverse_block(&self, block: Range<usize>) -> Array2<f32> {
        let size = block.len();
        let r = self.view();
        let r = r.slice(s![block.clone(), block]);
        let mut u = Array2::<f64>::zeros((size, size));
        for i in (0..size).rev() {
            let scale = 1.0 / r[[i, i]];
            u[[i, i]] = scale;
            for k in i + 1..size {
                let by = -r[[i, k]] * scale;
                let (mut above, below) = u.view_mut().split_at(Axis(0), k);
                above.row_mut(i).scaled_add(by, &below.row(0));
            }
        }
        in_f32(u.view(), &u.diag().to_vec())
    }

    fn view(&self) -> ArrayView2<'_, f64> {
        self.lower.slice(s![..;-1, ..;-1])
    }
}

/// `part` in f32 without what is next to nothing beside its row's and its column's element of
/// `diagonal`.
fn in_f32(part: ArrayView2<'_, f64>, diagonal: &[f64]) -> Array2<f32> {
    Array2::from_shape_fn(part.dim(), |(i, j)| {
        let v = part[[i, j]];
        if v.abs() < 1e-20 * diagonal[i].min(diagonal[j]) { 0.0 } else { v as f32 }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nothing_that_is_handed_out_is_subnormal() {
        // R decays as 0.9^k along a row, U as the inverse of a band.
        let a = Array2::from_shape_fn((1200, 1200), |(i, j)| {
            0.9f64.powi(i.abs_diff(j) as i32) + if i == j { 0.01 } else { 0.0 }
        });
        let factor = UpperFactor::new(a.view()).unwrap();
        assert!(factor.view()[[0, 1199]].abs() < 1e-40);
        let normal = |m: Array2<f32>| m.iter().all(|v| *v == 0.0 || v.is_normal());
        assert!(normal(factor.rows(0..64)));
        assert!(normal(factor.inverse_block(0..600)));
    }

    #[test]
    fn pivots_are_counted_in_the_order_of_the_matrix() {
        let mut a = Array2::<f64>::eye(5);
        a[[1, 1]] = -1.0;
        assert_eq!(UpperFactor::new(a.view()), Err(Error::NotPositiveDefinite { pivot: 1 }));
        let wide = Array2::<f64>::zeros((2, 3));
        assert_eq!(UpperFactor::new(wide.view()), Err(Error::NotSquare { rows: 2, cols: 3 }));
        a[[0, 3]] = f64::NAN;
        assert!(matches!(UpperFactor::new(a.view()), Err(Error::NotFinite { row: 0, col: 3, .. })));
    }
}
