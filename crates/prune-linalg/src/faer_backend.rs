use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::tridiag::{self, TridiagParams};
use faer::linalg::evd::{ComputeEigenvectors, SelfAdjointEvdParams};
use faer::linalg::matmul::triangular::{self as triangular_product, BlockStructure};
use faer::linalg::svd::{ComputeSvdVectors, SvdParams};
use faer::linalg::{evd, svd, triangular_inverse, triangular_solve};
use faer::{Accum, Mat, MatMut, MatRef, Par, Spec};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, s};

use crate::products::BAND;
use crate::{
    Backend, Error, Real, Result, Triangle, Workspace, banded_cholesky, check, scale, tridiagonal,
};

/// Pure Rust: the crate [`faer`]. Needs no system library.
///
/// ```
/// use ndarray::array;
/// use prune_linalg::{Backend, Faer};
/// assert_eq!(Faer::singular_values(array![[-3.0]].view())?, [3.0]);
/// # Ok::<(), prune_linalg::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Faer;

impl Backend for Faer {
    fn eigenvalues_symmetric<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>> {
        let n = check::square(a)?;
        check::finite(a)?;
        let scale = scale::into_range(a);
        let mut copy = Mat::from_fn(n, n, |i, j| a[[i, j]] * scale);
        let mut values = eigenvalues_in_place(copy.as_mut())?;
        values.iter_mut().for_each(|v| *v /= scale);
        check::in_range(SYMMETRIC, &values)?;
        Ok(values)
    }

    fn gram_eigenvalues<T: Real>(
        x: ArrayView2<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<Vec<f64>> {
        /// Rows that are copied at a time.
        const ROWS: usize = 256;
        check::finite(x)?;
        let x = if x.nrows() < x.ncols() { x.reversed_axes() } else { x };
        let (k, n) = x.dim();
        let (gram, rows) = workspace.split(n * n, ROWS.min(k) * n);
        let mut gram = MatMut::from_column_major_slice_mut(gram, n, n);
        for top in (0..k).step_by(ROWS) {
            let count = ROWS.min(k - top);
            let mut rows = MatMut::from_column_major_slice_mut(&mut rows[..count * n], count, n);
            for j in 0..n {
                for i in 0..count {
                    rows[(i, j)] = x[[top + i, j]].to_f64().unwrap_or(f64::NAN);
                }
            }
            triangular_product::matmul(
                gram.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Add,
                rows.as_ref().transpose(),
                BlockStructure::Rectangular,
                rows.as_ref(),
                BlockStructure::Rectangular,
                1.0,
                Par::Seq,
            );
        }
        // The largest element of a Gram matrix stands on its diagonal.
        let largest = gram.as_ref().diagonal().column_vector().norm_max();
        if !largest.is_finite() {
            return Err(Error::Overflow { operation: "Gram matrix" });
        }
        let scale = scale::of_largest(largest);
        if scale != 1.0 {
            gram *= faer::Scale(scale);
        }
        let mut values = eigenvalues_in_place(gram)?;
        values.iter_mut().for_each(|v| *v /= scale);
        check::in_range(SYMMETRIC, &values)?;
        Ok(values)
    }

    fn eigh<T: Real>(a: ArrayView2<'_, T>) -> Result<(Vec<T>, Array2<T>)> {
        let n = check::square(a)?;
        check::finite(a)?;
        let mut values = faer::diag::Diag::<T>::zeros(n);
        let mut vectors = Mat::zeros(n, n);
        let (a, scale) = Operand::new(a);
        if n > 0 {
            let params: Spec<SelfAdjointEvdParams, T> = Spec::default();
            let wanted = ComputeEigenvectors::Yes;
            let scratch = evd::self_adjoint_evd_scratch::<T>(n, wanted, Par::Seq, params);
            with_stack(scratch, |stack| {
                let (s, u) = (values.as_mut(), Some(vectors.as_mut()));
                evd::self_adjoint_evd(a.as_ref(), s, u, Par::Seq, stack, params)
            })
            .map_err(|_| Error::NoConvergence { operation: SYMMETRIC })?;
        }
        let values: Vec<T> = values.column_vector().iter().map(|v| *v / scale).collect();
        check::in_range(SYMMETRIC, &values)?;
        Ok((values, Array2::from_shape_fn((n, n), |(i, j)| vectors[(i, j)])))
    }

    fn singular_values<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>> {
        check::finite(a)?;
        let (a, scale) = Operand::new(a);
        let values: Vec<T> = singular_values(a.as_ref())?.iter().map(|v| *v / scale).collect();
        check::in_range(SINGULAR, &values)?;
        Ok(values)
    }

    fn squared_singular_values<T: Real>(
        x: ArrayView2<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<Vec<f64>> {
        check::finite(x)?;
        let copy = workspace.copy(x);
        let largest = copy.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let scale = scale::of_largest(largest);
        if scale != 1.0 {
            copy.iter_mut().for_each(|v| *v *= scale);
        }
        let values = singular_values(MatRef::from_row_major_slice(copy, x.nrows(), x.ncols()))?;
        let squares: Vec<f64> = values.iter().rev().map(|v| (v / scale).powi(2)).collect();
        check::in_range(SINGULAR, &squares)?;
        Ok(squares)
    }

    fn cholesky<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let n = check::square(a)?;
        check::finite(a)?;
        let l = if n > banded_cholesky::BAND {
            banded_cholesky::factor(a)?
        } else {
            let mut l = Mat::from_fn(n, n, |i, j| a[[i, j]]);
            factor_in_place(l.as_mut())?;
            Array2::from_shape_fn((n, n), |(i, j)| if j <= i { l[(i, j)] } else { T::zero() })
        };
        check::in_range("Cholesky factor", &l)?;
        Ok(l)
    }

    fn solve_triangular<T: Real>(
        triangle: Triangle,
        a: ArrayView2<'_, T>,
        b: ArrayView2<'_, T>,
    ) -> Result<Array2<T>> {
        let n = check::triangular_system(a, b)?;
        let a = Mat::from_fn(n, n, |i, j| a[[i, j]]);
        let mut x = b.as_standard_layout().into_owned();
        x.axis_chunks_iter_mut(Axis(1), BAND).into_par_iter().for_each(|mut columns| {
            let mut rhs = Mat::from_fn(n, columns.ncols(), |i, j| columns[[i, j]]);
            match triangle {
                Triangle::Lower => triangular_solve::solve_lower_triangular_in_place(
                    a.as_ref(),
                    rhs.as_mut(),
                    Par::Seq,
                ),
                Triangle::Upper => triangular_solve::solve_upper_triangular_in_place(
                    a.as_ref(),
                    rhs.as_mut(),
                    Par::Seq,
                ),
            }
            columns.indexed_iter_mut().for_each(|((i, j), v)| *v = rhs[(i, j)]);
        });
        check::in_range("triangular solution", &x)?;
        Ok(x)
    }

    fn invert_lower<T: Real>(l: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let n = check::triangular_system(l, l)?;
        let l = Mat::from_fn(n, n, |i, j| l[[i, j]]);
        let mut out = Array2::zeros((n, n));
        out.axis_chunks_iter_mut(Axis(1), BAND).into_par_iter().enumerate().for_each(
            |(chunk, mut columns)| {
                // Columns from `top` on are zero above `top`: first the small triangle on the
                // diagonal, then what hangs below it.
                let (top, width) = (chunk * BAND, columns.ncols());
                let mut x = Mat::zeros(n - top, width);
                x.as_mut().diagonal_mut().column_vector_mut().fill(T::one());
                if n - top == width {
                    let corner = l.as_ref().submatrix(top, top, width, width);
                    let mut inverse = Mat::zeros(width, width);
                    triangular_inverse::invert_lower_triangular(inverse.as_mut(), corner, Par::Seq);
                    x = inverse;
                } else {
                    triangular_solve::solve_lower_triangular_in_place(
                        l.as_ref().submatrix(top, top, n - top, n - top),
                        x.as_mut(),
                        Par::Seq,
                    );
                }
                columns
                    .slice_mut(s![top.., ..])
                    .indexed_iter_mut()
                    .for_each(|((i, j), v)| *v = if i >= j { x[(i, j)] } else { T::zero() });
            },
        );
        check::in_range("triangular inverse", &out)?;
        Ok(out)
    }
}

/// Replaces the lower triangle of `a` by its Cholesky factor, on one thread.
pub(crate) fn factor_in_place<T: Real>(a: MatMut<'_, T>) -> Result<()> {
    let params: Spec<llt::factor::LltParams, T> = Spec::default();
    let scratch = llt::factor::cholesky_in_place_scratch::<T>(a.nrows(), Par::Seq, params);
    let plain = llt::factor::LltRegularization::default();
    match with_stack(scratch, |stack| {
        llt::factor::cholesky_in_place(a, plain, Par::Seq, stack, params)
    }) {
        Ok(_) => Ok(()),
        Err(llt::factor::LltError::NonPositivePivot { index }) => {
            Err(Error::NotPositiveDefinite { pivot: index })
        }
    }
}

const SINGULAR: &str = "singular value decomposition";

fn singular_values<T: Real>(a: MatRef<'_, T>) -> Result<Vec<T>> {
    let (rows, cols) = a.shape();
    let params: Spec<SvdParams, T> = Spec::default();
    let none = ComputeSvdVectors::No;
    let scratch = svd::svd_scratch::<T>(rows, cols, none, none, Par::Seq, params);
    let mut values = faer::diag::Diag::<T>::zeros(rows.min(cols));
    with_stack(scratch, |stack| svd::svd(a, values.as_mut(), None, None, Par::Seq, stack, params))
        .map_err(|_| Error::NoConvergence { operation: SINGULAR })?;
    Ok(values.column_vector().iter().copied().collect())
}

const SYMMETRIC: &str = "symmetric eigenvalue decomposition";

/// The ascending eigenvalues of the symmetric matrix whose lower triangle is that of `a`. In
/// place, because a large window and its workspace would else be in memory twice.
fn eigenvalues_in_place<T: Real>(mut a: MatMut<'_, T>) -> Result<Vec<T>> {
    let n = a.nrows();
    let params: Spec<TridiagParams, T> = Spec::default();
    let scratch = tridiag::tridiag_in_place_scratch::<T>(n, Par::Seq, params);
    // One row: reflections are not applied in blocks, because no vectors are asked for.
    let mut reflections = Mat::zeros(1, n.saturating_sub(1));
    with_stack(scratch, |stack| {
        tridiag::tridiag_in_place(a.as_mut(), reflections.as_mut(), Par::Seq, stack, params);
    });
    let mut diagonal: Vec<T> = (0..n).map(|i| a[(i, i)]).collect();
    let mut off: Vec<T> = (1..n).map(|i| a[(i, i - 1)]).collect();
    tridiagonal::eigenvalues(&mut diagonal, &mut off)?;
    Ok(diagonal)
}

/// A matrix as faer reads it: borrowed where it lies in standard layout and needs no scaling,
/// because the copies of large windows would double their memory.
enum Operand<'a, T> {
    Borrowed(MatRef<'a, T>),
    Owned(Mat<T>),
}

impl<'a, T: Real> Operand<'a, T> {
    /// The matrix times the second result, which is a power of two.
    fn new(a: ArrayView2<'a, T>) -> (Self, T) {
        let (rows, cols) = a.dim();
        let scale = scale::into_range(a);
        match a.to_slice() {
            Some(slice) if scale == T::one() => {
                (Self::Borrowed(MatRef::from_row_major_slice(slice, rows, cols)), scale)
            }
            _ => (Self::Owned(Mat::from_fn(rows, cols, |i, j| a[[i, j]] * scale)), scale),
        }
    }

    fn as_ref(&self) -> MatRef<'_, T> {
        match self {
            Self::Borrowed(a) => *a,
            Self::Owned(a) => a.as_ref(),
        }
    }
}

fn with_stack<R>(scratch: StackReq, work: impl FnOnce(&mut MemStack) -> R) -> R {
    let mut memory = MemBuffer::new(scratch);
    work(MemStack::new(&mut memory))
}
