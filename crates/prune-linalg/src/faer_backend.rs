use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{ComputeEigenvectors, SelfAdjointEvdParams};
use faer::linalg::svd::{ComputeSvdVectors, SvdParams};
use faer::linalg::{evd, svd, triangular_inverse, triangular_solve};
use faer::{Mat, MatRef, Par, Spec};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, s};

use crate::products::BAND;
use crate::{Backend, Error, Real, Result, Triangle, check, scale, tiled_cholesky};

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
        Ok(symmetric(a, None)?.0)
    }

    fn eigh<T: Real>(a: ArrayView2<'_, T>) -> Result<(Vec<T>, Array2<T>)> {
        let n = a.nrows();
        let (values, vectors) = symmetric(a, Some(Mat::zeros(n, n)))?;
        let vectors = vectors.map_or_else(
            || Array2::zeros((0, 0)),
            |u| Array2::from_shape_fn((n, n), |(i, j)| u[(i, j)]),
        );
        Ok((values, vectors))
    }

    fn singular_values<T: Real>(a: ArrayView2<'_, T>) -> Result<Vec<T>> {
        const OPERATION: &str = "singular value decomposition";
        check::finite(a)?;
        let (rows, cols) = a.dim();
        let (a, scale) = Operand::new(a);
        let params: Spec<SvdParams, T> = Spec::default();
        let none = ComputeSvdVectors::No;
        let scratch = svd::svd_scratch::<T>(rows, cols, none, none, Par::Seq, params);
        let mut values = faer::diag::Diag::<T>::zeros(rows.min(cols));
        with_stack(scratch, |stack| {
            svd::svd(a.as_ref(), values.as_mut(), None, None, Par::Seq, stack, params)
        })
        .map_err(|_| Error::NoConvergence { operation: OPERATION })?;
        let values: Vec<T> = values.column_vector().iter().map(|v| *v / scale).collect();
        check::in_range(OPERATION, &values)?;
        Ok(values)
    }

    fn cholesky<T: Real>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let n = check::square(a)?;
        check::finite(a)?;
        let l = if n > tiled_cholesky::TILE {
            tiled_cholesky::factor(a)?
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
pub(crate) fn factor_in_place<T: Real>(a: faer::MatMut<'_, T>) -> Result<()> {
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

fn symmetric<T: Real>(
    a: ArrayView2<'_, T>,
    mut vectors: Option<Mat<T>>,
) -> Result<(Vec<T>, Option<Mat<T>>)> {
    const OPERATION: &str = "symmetric eigenvalue decomposition";
    let n = check::square(a)?;
    check::finite(a)?;
    let params: Spec<SelfAdjointEvdParams, T> = Spec::default();
    let compute =
        if vectors.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
    let mut values = faer::diag::Diag::<T>::zeros(n);
    let (a, scale) = Operand::new(a);
    if n > 0 {
        let scratch = evd::self_adjoint_evd_scratch::<T>(n, compute, Par::Seq, params);
        with_stack(scratch, |stack| {
            let vectors = vectors.as_mut().map(|u| u.as_mut());
            evd::self_adjoint_evd(a.as_ref(), values.as_mut(), vectors, Par::Seq, stack, params)
        })
        .map_err(|_| Error::NoConvergence { operation: OPERATION })?;
    }
    let values: Vec<T> = values.column_vector().iter().map(|v| *v / scale).collect();
    check::in_range(OPERATION, &values)?;
    Ok((values, vectors))
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
