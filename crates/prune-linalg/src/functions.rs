use ndarray::{Array2, ArrayView2};

use crate::{Backend, DefaultBackend, Real, Result, Triangle, Workspace};

/// The eigenvalues of a symmetric matrix, ascending.
///
/// `a` is square; only its lower triangle is read. No vectors are computed. Runs on one thread, so
/// that the bits never depend on how many there are: run many matrices side by side instead.
/// Absolute errors in f64 are far below 1e-10 of the largest eigenvalue (4e-13 was the worst seen
/// up to n = 2000); in f32 they stay below 1e-5 + 1.2e-7 n of it, so that eigenvalues of f32 under
/// a ten-thousandth of the largest carry few digits or none. Costs about 4/3 n³ operations and a
/// copy of `a`.
///
/// # Errors
/// [`Error::NotSquare`](crate::Error::NotSquare), [`Error::NotFinite`](crate::Error::NotFinite),
/// [`Error::NoConvergence`](crate::Error::NoConvergence),
/// [`Error::Overflow`](crate::Error::Overflow).
///
/// ```
/// use ndarray::array;
/// let values = prune_linalg::eigenvalues_symmetric(array![[2.0, 1.0], [1.0, 2.0]].view())?;
/// assert!((values[0] - 1.0f64).abs() < 1e-14 && (values[1] - 3.0).abs() < 1e-14);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn eigenvalues_symmetric<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>> {
    DefaultBackend::eigenvalues_symmetric(a)
}

/// The eigenvalues of a symmetric matrix, ascending, and its eigenvectors in the columns of the
/// second result.
///
/// As [`eigenvalues_symmetric`], at several times its cost. The sign of a vector is not
/// specified.
///
/// # Errors
/// As [`eigenvalues_symmetric`].
///
/// ```
/// use ndarray::{Array2, array};
/// let a = array![[2.0, 1.0], [1.0, 3.0]];
/// let (values, vectors) = prune_linalg::eigh(a.view())?;
/// let back = vectors.dot(&Array2::from_diag(&ndarray::Array1::from(values))).dot(&vectors.t());
/// assert!((&back - &a).iter().all(|d: &f64| d.abs() < 1e-14));
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn eigh<T: Real>(a: ArrayView2<'_, T>) -> Result<(Vec<T>, Array2<T>)> {
    DefaultBackend::eigh(a)
}

/// The singular values of a matrix of any shape, descending; as many as its smaller dimension.
///
/// No vectors are computed. Runs on one thread. Absolute errors are as for
/// [`eigenvalues_symmetric`], relative to the largest singular value: for the small values of a
/// matrix of f64 that is twice as many digits as the eigenvalues of its Gram matrix have. Costs
/// about 8/3 n³ operations for a square matrix.
///
/// # Errors
/// [`Error::NotFinite`](crate::Error::NotFinite),
/// [`Error::NoConvergence`](crate::Error::NoConvergence),
/// [`Error::Overflow`](crate::Error::Overflow).
///
/// ```
/// use ndarray::array;
/// let values = prune_linalg::singular_values(array![[3.0, 0.0], [4.0, 0.0], [0.0, 2.0]].view())?;
/// assert!((values[0] - 5.0f64).abs() < 1e-14 && (values[1] - 2.0).abs() < 1e-14);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn singular_values<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>> {
    DefaultBackend::singular_values(a)
}

/// The squares of the singular values in f64, ascending; as many as the smaller dimension.
///
/// [`singular_values`] of the matrix in f64, squared: small squares keep twice as many digits as
/// those of [`gram_eigenvalues`]. Runs on one thread; the workspace grows to the size of `x`, and
/// the decomposition makes a copy of it.
///
/// # Errors
/// As [`singular_values`].
///
/// ```
/// use ndarray::array;
/// let x = array![[3.0f32, 0.0], [4.0, 0.0], [0.0, 2.0]];
/// let squares = prune_linalg::squared_singular_values(x.view(), &mut Default::default())?;
/// assert!((squares[0] - 4.0).abs() < 1e-13 && (squares[1] - 25.0).abs() < 1e-13);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn squared_singular_values<T: Real>(
    x: ArrayView2<'_, T>,
    workspace: &mut Workspace,
) -> Result<Vec<f64>> {
    DefaultBackend::squared_singular_values(x, workspace)
}

/// The same as [`squared_singular_values`], as eigenvalues of the smaller of `Xᵀ X` and `X Xᵀ`.
///
/// Three to ten times as fast, but absolute errors are relative to the largest *square*: a small
/// multiple of the unit roundoff times n times it, where n is the smaller dimension. So squares
/// below about n · 2e-16 of the largest are noise, and may be negative. Sums are in f64 for `x` of
/// f32 too. Runs on one thread; the workspace grows to n x n values and n for each of 256 rows
/// (with LAPACK: for each row of `x`).
///
/// # Errors
/// As [`eigenvalues_symmetric`].
///
/// ```
/// use ndarray::array;
/// let x = array![[3.0f32, 0.0], [4.0, 0.0], [0.0, 2.0]];
/// let squares = prune_linalg::gram_eigenvalues(x.view(), &mut Default::default())?;
/// assert!((squares[0] - 4.0).abs() < 1e-13 && (squares[1] - 25.0).abs() < 1e-13);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn gram_eigenvalues<T: Real>(
    x: ArrayView2<'_, T>,
    workspace: &mut Workspace,
) -> Result<Vec<f64>> {
    DefaultBackend::gram_eigenvalues(x, workspace)
}

/// The lower triangular `L` with `A = L Lᵀ` and a positive diagonal; zero above it.
///
/// `a` is symmetric; only its lower triangle is read. Large matrices are factored on all rayon
/// threads in blocks of fixed size: the bits do not depend on how many there are. Costs n³/3
/// operations.
///
/// # Errors
/// [`Error::NotSquare`](crate::Error::NotSquare), [`Error::NotFinite`](crate::Error::NotFinite);
/// [`Error::NotPositiveDefinite`](crate::Error::NotPositiveDefinite) with the pivot that failed;
/// [`Error::Overflow`](crate::Error::Overflow).
///
/// ```
/// use ndarray::array;
/// let l = prune_linalg::cholesky(array![[4.0, 2.0], [2.0, 5.0]].view())?;
/// assert_eq!(l, array![[2.0, 0.0], [1.0, 2.0]]);
/// let e = prune_linalg::cholesky(array![[1.0, 2.0], [2.0, 1.0]].view()).unwrap_err();
/// assert_eq!(e, prune_linalg::Error::NotPositiveDefinite { pivot: 1 });
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn cholesky<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
    DefaultBackend::cholesky(a)
}

/// The solution `X` of `A X = B`, given the Cholesky factor `L` of `A = L Lᵀ`.
///
/// `b` has the rows of `l` and any number of columns. Costs 2 n² operations a column.
///
/// # Errors
/// As [`solve_lower`].
///
/// ```
/// use ndarray::array;
/// let a = array![[4.0, 2.0], [2.0, 5.0]];
/// let l = prune_linalg::cholesky(a.view())?;
/// let x = prune_linalg::cholesky_solve(l.view(), array![[8.0], [12.0]].view())?;
/// assert_eq!(x, array![[1.0], [2.0]]);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn cholesky_solve<T: Real>(l: ArrayView2<'_, T>, b: ArrayView2<'_, T>) -> Result<Array2<T>> {
    DefaultBackend::cholesky_solve(l, b)
}

/// `A⁻¹`, given the Cholesky factor `L` of `A = L Lᵀ`; symmetric to the bit.
///
/// Costs 2/3 n³ operations on all rayon threads.
///
/// # Errors
/// As [`solve_lower`].
///
/// ```
/// use ndarray::array;
/// let l = prune_linalg::cholesky(array![[2.0, 0.0], [0.0, 4.0]].view())?;
/// let inverse: ndarray::Array2<f64> = prune_linalg::cholesky_inverse(l.view())?;
/// assert!((inverse[[0, 0]] - 0.5).abs() < 1e-15 && (inverse[[1, 1]] - 0.25).abs() < 1e-15);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn cholesky_inverse<T: Real>(l: ArrayView2<'_, T>) -> Result<Array2<T>> {
    DefaultBackend::cholesky_inverse(l)
}

/// The upper triangular `U` with `A⁻¹ = Uᵀ U` and a positive diagonal; zero below it.
///
/// This is what SparseGPT and GPTQ read of the Hessian `A`: row `i` of `U`, divided by its diagonal
/// element, says how the columns after `i` make up for a change of column `i`. `a` is symmetric;
/// its upper triangle is read. One factorisation and one triangular inverse, 2/3 n³ operations;
/// `A⁻¹` itself is never formed, which costs less and keeps more digits than the usual
/// "factor, invert, factor again".
///
/// # Errors
/// As [`cholesky`]; [`Error::NotPositiveDefinite`](crate::Error::NotPositiveDefinite) counts the
/// pivots from the last one down.
///
/// ```
/// use ndarray::array;
/// let a = array![[2.0, 1.0], [1.0, 2.0]];
/// let u = prune_linalg::inverse_upper_factor(a.view())?;
/// let identity = u.t().dot(&u).dot(&a);
/// assert!((&identity - &ndarray::Array2::<f64>::eye(2)).iter().all(|d| d.abs() < 1e-14));
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn inverse_upper_factor<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
    DefaultBackend::inverse_upper_factor(a)
}

/// The solution `X` of `L X = B` for a lower triangular `L`.
///
/// Nothing above the diagonal of `l` is read. Columns of `b` are solved on all rayon threads in
/// groups of fixed size. Costs n² operations a column.
///
/// # Errors
/// [`Error::NotSquare`](crate::Error::NotSquare), [`Error::Shape`](crate::Error::Shape),
/// [`Error::NotFinite`](crate::Error::NotFinite), [`Error::Singular`](crate::Error::Singular),
/// [`Error::Overflow`](crate::Error::Overflow).
///
/// ```
/// use ndarray::array;
/// let l = array![[2.0, 0.0], [1.0, 4.0]];
/// let x = prune_linalg::solve_lower(l.view(), array![[2.0], [9.0]].view())?;
/// assert_eq!(x, array![[1.0], [2.0]]);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn solve_lower<T: Real>(l: ArrayView2<'_, T>, b: ArrayView2<'_, T>) -> Result<Array2<T>> {
    DefaultBackend::solve_triangular(Triangle::Lower, l, b)
}

/// The solution `X` of `U X = B` for an upper triangular `U`; otherwise as [`solve_lower`].
///
/// # Errors
/// As [`solve_lower`].
///
/// ```
/// use ndarray::array;
/// let u = array![[2.0, 1.0], [0.0, 4.0]];
/// let x = prune_linalg::solve_upper(u.view(), array![[4.0], [8.0]].view())?;
/// assert_eq!(x, array![[1.0], [2.0]]);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
pub fn solve_upper<T: Real>(u: ArrayView2<'_, T>, b: ArrayView2<'_, T>) -> Result<Array2<T>> {
    DefaultBackend::solve_triangular(Triangle::Upper, u, b)
}
