use ndarray::{Array2, ArrayView2, s};

use crate::products::gram_of_lower;
use crate::{Error, Real, Result, Triangle, Workspace, check};

/// What a linear algebra library has to provide.
///
/// [`Faer`](crate::Faer) is always there; with feature `ndarray-linalg` there is `Lapack` too, and
/// the functions of this crate call it. Every method checks its arguments itself: sizes that do
/// not fit, NaN and infinity are refused with a typed error. Empty matrices give empty results.
pub trait Backend {
    /// See [`eigenvalues_symmetric`](crate::eigenvalues_symmetric).
    ///
    /// # Errors
    /// As there.
    fn eigenvalues_symmetric<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>>;

    /// See [`eigh`](crate::eigh).
    ///
    /// # Errors
    /// As there.
    fn eigh<T: Real>(a: ArrayView2<'_, T>) -> Result<(Vec<T>, Array2<T>)>;

    /// See [`singular_values`](crate::singular_values).
    ///
    /// # Errors
    /// As there.
    fn singular_values<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>>;

    /// See [`squared_singular_values`](crate::squared_singular_values).
    ///
    /// # Errors
    /// As there.
    fn squared_singular_values<T: Real>(
        x: ArrayView2<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<Vec<f64>>;

    /// See [`gram_eigenvalues`](crate::gram_eigenvalues).
    ///
    /// # Errors
    /// As there.
    fn gram_eigenvalues<T: Real>(
        x: ArrayView2<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<Vec<f64>>;

    /// See [`cholesky`](crate::cholesky).
    ///
    /// # Errors
    /// As there.
    fn cholesky<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>>;

    /// The solution `X` of `A X = B`, where `A` is `triangle` of `a`.
    ///
    /// # Errors
    /// As [`solve_lower`](crate::solve_lower).
    fn solve_triangular<T: Real>(
        triangle: Triangle,
        a: ArrayView2<'_, T>,
        b: ArrayView2<'_, T>,
    ) -> Result<Array2<T>>;

    /// The inverse of the lower triangle of `l`; its upper triangle is zero.
    ///
    /// # Errors
    /// As [`solve_lower`](crate::solve_lower).
    fn invert_lower<T: Real>(l: ArrayView2<'_, T>) -> Result<Array2<T>>;

    /// See [`cholesky_solve`](crate::cholesky_solve).
    ///
    /// # Errors
    /// As there.
    fn cholesky_solve<T: Real>(l: ArrayView2<'_, T>, b: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let y = Self::solve_triangular(Triangle::Lower, l, b)?;
        Self::solve_triangular(Triangle::Upper, l.t(), y.view())
    }

    /// See [`cholesky_inverse`](crate::cholesky_inverse).
    ///
    /// # Errors
    /// As there.
    fn cholesky_inverse<T: Real>(l: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let inverse = Self::invert_lower(l)?;
        let product = gram_of_lower(inverse.view());
        check::in_range("inverse", &product)?;
        Ok(product)
    }

    /// See [`inverse_upper_factor`](crate::inverse_upper_factor).
    ///
    /// # Errors
    /// As there.
    fn inverse_upper_factor<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
        // With J the reversal of the order, J A J = L Lᵀ gives A = R Rᵀ for R = J L J, which is
        // upper triangular, and A⁻¹ = R⁻ᵀ R⁻¹: the factor is R⁻¹ = J L⁻¹ J. The inverse of A
        // itself, and a second factorisation, are never needed.
        let n = check::square(a)?;
        check::finite(a)?;
        let factor = Self::cholesky(a.slice(s![..;-1, ..;-1])).map_err(|e| match e {
            Error::NotPositiveDefinite { pivot } => {
                Error::NotPositiveDefinite { pivot: n - 1 - pivot }
            }
            other => other,
        })?;
        let inverse = Self::invert_lower(factor.view())?;
        Ok(inverse.slice(s![..;-1, ..;-1]).as_standard_layout().into_owned())
    }
}
