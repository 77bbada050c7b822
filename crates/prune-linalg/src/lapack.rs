use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use ndarray_linalg::{Diag, JobSvd, Lapack as Routines, MatrixLayout, UPLO};

use crate::{Backend, Error, Real, Result, Triangle, Workspace, check};

/// LAPACK, through the crate `ndarray-linalg` and the system's OpenBLAS. Feature `ndarray-linalg`.
///
/// OpenBLAS has threads of its own, and its results depend on their number: set
/// `OPENBLAS_NUM_THREADS=1` for the same bits everywhere, and because threads within threads are
/// slow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lapack;

impl Backend for Lapack {
    fn eigenvalues_symmetric<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>> {
        Ok(symmetric(a, false)?.0)
    }

    fn eigh<T: Real>(a: ArrayView2<'_, T>) -> Result<(Vec<T>, Array2<T>)> {
        let (values, vectors) = symmetric(a, true)?;
        Ok((values, vectors.reversed_axes().as_standard_layout().into_owned()))
    }

    fn gram_eigenvalues<T: Real>(
        x: ArrayView2<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<Vec<f64>> {
        check::finite(x)?;
        let x = if x.nrows() < x.ncols() { x.reversed_axes() } else { x };
        let (k, n) = x.dim();
        if n == 0 {
            return Ok(Vec::new());
        }
        let (gram, rows) = workspace.split(n * n, k * n);
        rows.iter_mut().zip(x.iter()).for_each(|(r, v)| *r = v.to_f64().unwrap_or(f64::NAN));
        let layout = column_major(n, n)?;
        // Sizes fit: both slices were cut to them.
        if let (Ok(rows), Ok(mut square)) =
            (ArrayView2::from_shape((k, n), &*rows), ArrayViewMut2::from_shape((n, n), &mut *gram))
        {
            general_mat_mul(1.0, &rows.t(), &rows, 0.0, &mut square);
        }
        check::in_range("Gram matrix", &*gram)?;
        let values = f64::eigh(false, layout, UPLO::Upper, gram)
            .map_err(|_| Error::NoConvergence { operation: SYMMETRIC })?;
        check::in_range(SYMMETRIC, &values)?;
        Ok(values)
    }

    fn singular_values<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>> {
        check::finite(a)?;
        let mut buffer: Vec<T> = a.iter().copied().collect();
        let values = singular_values(a.dim(), &mut buffer)?;
        check::in_range(SINGULAR, &values)?;
        Ok(values)
    }

    fn squared_singular_values<T: Real>(
        x: ArrayView2<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<Vec<f64>> {
        check::finite(x)?;
        let values = singular_values(x.dim(), workspace.copy(x))?;
        let squares: Vec<f64> = values.iter().rev().map(|v| v * v).collect();
        check::in_range(SINGULAR, &squares)?;
        Ok(squares)
    }

    fn cholesky<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let n = check::square(a)?;
        check::finite(a)?;
        if n == 0 {
            return Ok(Array2::zeros((0, 0)));
        }
        let mut l = a.as_standard_layout().into_owned();
        if let Some(buffer) = l.as_slice_mut() {
            // The lower triangle by rows is the upper one by columns.
            T::cholesky(column_major(n, n)?, UPLO::Upper, buffer).map_err(|e| match e {
                lax::error::Error::LapackComputationalFailure { return_code } => {
                    let pivot = usize::try_from(return_code).unwrap_or(1).saturating_sub(1);
                    Error::NotPositiveDefinite { pivot }
                }
                _ => Error::NoConvergence { operation: "Cholesky factor" },
            })?;
        }
        l.indexed_iter_mut().filter(|((i, j), _)| j > i).for_each(|(_, v)| *v = T::zero());
        check::in_range("Cholesky factor", &l)?;
        Ok(l)
    }

    fn solve_triangular<T: Real>(
        triangle: Triangle,
        a: ArrayView2<'_, T>,
        b: ArrayView2<'_, T>,
    ) -> Result<Array2<T>> {
        let n = check::triangular_system(a, b)?;
        if b.is_empty() {
            return Ok(b.to_owned());
        }
        let by_columns = |m: ArrayView2<'_, T>| m.t().iter().copied().collect::<Vec<T>>();
        let (a, mut x) = (by_columns(a), by_columns(b));
        let half = match triangle {
            Triangle::Lower => UPLO::Lower,
            Triangle::Upper => UPLO::Upper,
        };
        let layouts = (column_major(n, n)?, column_major(n, b.ncols())?);
        T::solve_triangular(layouts.0, layouts.1, half, Diag::NonUnit, &a, &mut x)
            .map_err(|_| Error::NoConvergence { operation: "triangular solution" })?;
        let x = Array2::from_shape_fn(b.dim(), |(i, j)| x[j * n + i]);
        check::in_range("triangular solution", &x)?;
        Ok(x)
    }

    fn invert_lower<T: Real>(l: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let n = check::square(l)?;
        Self::solve_triangular(Triangle::Lower, l, Array2::eye(n).view())
    }
}

const SINGULAR: &str = "singular value decomposition";

/// Of a matrix whose elements lie row by row in `buffer`, which is overwritten.
fn singular_values<T: Real>((rows, cols): (usize, usize), buffer: &mut [T]) -> Result<Vec<T>> {
    if buffer.is_empty() {
        return Ok(Vec::new());
    }
    // Rows read as columns are the transpose, which has the same singular values.
    let decomposition = T::svddc(column_major(cols, rows)?, JobSvd::None, buffer)
        .map_err(|_| Error::NoConvergence { operation: SINGULAR })?;
    Ok(decomposition.s)
}

const SYMMETRIC: &str = "symmetric eigenvalue decomposition";

/// Values and, in the rows of the second result, vectors.
fn symmetric<T: Real>(a: ArrayView2<'_, T>, vectors: bool) -> Result<(Vec<T>, Array2<T>)> {
    let n = check::square(a)?;
    check::finite(a)?;
    let mut a = a.as_standard_layout().into_owned();
    if n == 0 {
        return Ok((Vec::new(), a));
    }
    let mut values = Vec::new();
    if let Some(buffer) = a.as_slice_mut() {
        // Not the methods of ndarray-linalg: they compute vectors even for values alone.
        values = T::eigh(vectors, column_major(n, n)?, UPLO::Upper, buffer)
            .map_err(|_| Error::NoConvergence { operation: SYMMETRIC })?;
    }
    check::in_range(SYMMETRIC, &values)?;
    Ok((values, a))
}

fn column_major(rows: usize, cols: usize) -> Result<MatrixLayout> {
    let index = |n: usize| i32::try_from(n).map_err(|_| Error::TooLarge { rows, cols });
    Ok(MatrixLayout::F { col: index(cols)?, lda: index(rows)? })
}
