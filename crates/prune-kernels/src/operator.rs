use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use prune_core::{Error, Result, check_finite};
use rayon::prelude::*;

use crate::KernelPath;

/// A matrix that multiplies vectors and matrices of f32.
///
/// Every kernel of this crate is one, so a model can hold layers of any format as
/// `Box<dyn LinearOperator>`. Rows of the product are divided into tasks by the shape of the
/// matrix alone and each is summed in one order, so that the result has the same bits for any
/// number of threads; it runs on the threads of rayon's current pool.
///
/// ```
/// use ndarray::array;
/// use prune_kernels::{DenseKernel, LinearOperator};
///
/// let a = DenseKernel::new(array![[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]])?;
/// assert_eq!(a.matvec(&[1.0, 10.0])?, [21.0, 43.0, 65.0]);
/// assert_eq!(a.matmul(array![[1.0, 0.0], [0.0, 1.0]].view())?.row(2), array![5.0, 6.0]);
/// assert_eq!((a.rows(), a.cols(), a.nbytes()), (3, 2, 24));
/// # Ok::<(), prune_core::Error>(())
/// ```
pub trait LinearOperator: Send + Sync {
    /// The number of rows.
    fn rows(&self) -> usize;

    /// The number of columns.
    fn cols(&self) -> usize;

    /// Bytes that a product with a vector reads of the matrix.
    fn nbytes(&self) -> usize;

    /// The instruction set in use.
    fn path(&self) -> KernelPath;

    /// Writes `y = A x`, with `x` of [`cols`](LinearOperator::cols) and `y` of
    /// [`rows`](LinearOperator::rows) elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when a length differs; [`Error::NotFinite`] for a NaN or infinity in `x`.
    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()>;

    /// Writes `Y = A X`, with `X` of shape `(cols, k)` and `Y` of shape `(rows, k)`, in any layout.
    /// For activations of shape `(tokens, in)` pass their transpose.
    ///
    /// # Errors
    /// [`Error::Shape`] when a shape differs; [`Error::NotFinite`] for a NaN or infinity in `X`.
    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()>;

    /// `A x`.
    ///
    /// # Errors
    /// As [`LinearOperator::matvec_into`].
    fn matvec(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut y = vec![0.0; self.rows()];
        self.matvec_into(x, &mut y)?;
        Ok(y)
    }

    /// `A X`, of shape `(rows, k)`.
    ///
    /// # Errors
    /// As [`LinearOperator::matmul_into`].
    fn matmul(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let mut y = Array2::zeros((self.rows(), x.ncols()));
        self.matmul_into(x, y.view_mut())?;
        Ok(y)
    }
}

const INPUT: &str = "right-hand side";

pub(crate) fn check_vectors(op: &dyn LinearOperator, x: &[f32], y: &[f32]) -> Result<()> {
    check_shape(INPUT, &[x.len()], &[op.cols()])?;
    check_shape("product", &[y.len()], &[op.rows()])?;
    check_finite(INPUT, x)
}

pub(crate) fn check_matrices(
    op: &dyn LinearOperator,
    x: &ArrayView2<'_, f32>,
    y: &ArrayViewMut2<'_, f32>,
) -> Result<()> {
    check_shape(INPUT, x.shape(), &[op.cols(), x.ncols()])?;
    check_shape("product", y.shape(), &[op.rows(), x.ncols()])?;
    if let Some(values) = x.as_slice().or_else(|| x.t().to_slice()) {
        return check_finite(INPUT, values);
    }
    match x.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((index, v)) => {
            Err(Error::NotFinite { what: INPUT.to_string(), index, value: v.to_string() })
        }
    }
}

pub(crate) fn check_shape(what: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { what: what.to_string(), found: found.to_vec(), expected: expected.to_vec() })
}

/// The product a right-hand side at a time.
pub(crate) fn by_column(
    op: &dyn LinearOperator,
    x: ArrayView2<'_, f32>,
    mut y: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    let mut product = vec![0.0; op.rows()];
    for (x, mut y) in x.axis_iter(Axis(1)).zip(y.axis_iter_mut(Axis(1))) {
        op.matvec_into(&x.to_vec(), &mut product)?;
        y.iter_mut().zip(&product).for_each(|(y, v)| *y = *v);
    }
    Ok(())
}

/// The least that a task reads of a matrix for one right-hand side: ten microseconds or so, which is
/// what it takes to wake a thread.
const TASK_BYTES: usize = 256 << 10;

/// Right-hand sides that take about as long as reading the matrix once.
const COLUMNS_A_READ: usize = 8;

/// Columns that a task takes for all of its rows before the next: what they meet of a right-hand side
/// then stays in the first cache.
pub(crate) const TILE: usize = 4096;

/// The most tasks of a product: enough for the threads to end together.
const TASKS: usize = 64;

/// Rows for a task of a product with `columns` right-hand sides: a multiple of `unit`, by the bytes
/// that a row takes. Never by the number of threads.
pub(crate) fn rows_per_task(op: &dyn LinearOperator, unit: usize, columns: usize) -> usize {
    let least = TASK_BYTES / columns.div_ceil(COLUMNS_A_READ).max(1);
    let bytes = least.max(op.nbytes() / TASKS);
    let per_row = (op.nbytes() / op.rows().max(1)).max(1);
    bytes.div_ceil(per_row).next_multiple_of(unit)
}

/// Calls `task(first row, rows of y)` for every `rows` rows, on all threads.
pub(crate) fn for_rows(y: &mut [f32], rows: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
    if y.len() <= rows {
        // Without a trip to the thread pool.
        return task(0, y);
    }
    y.par_chunks_mut(rows).enumerate().for_each(|(i, y)| task(i * rows, y));
}

/// As [`for_rows`], for the rows of a matrix.
pub(crate) fn for_row_panels(
    mut y: ArrayViewMut2<'_, f32>,
    rows: usize,
    task: impl Fn(usize, ArrayViewMut2<'_, f32>) + Sync,
) {
    if y.nrows() <= rows {
        return task(0, y);
    }
    y.axis_chunks_iter_mut(Axis(0), rows)
        .into_par_iter()
        .enumerate()
        .for_each(|(i, y)| task(i * rows, y));
}
