use std::borrow::Cow;

use gemm::{Parallelism, gemm};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use prune_core::{Error, Result};

use crate::operator::{
    LinearOperator, check_matrices, check_vectors, for_row_panels, for_rows, rows_per_task,
};
use crate::pages::Pages;
use crate::simd::{Job, KernelPath, Selected, Simd};
use crate::storage::Storage;
use crate::tiles::columns;

/// A dense matrix: what the other formats are measured against, and the layers that stay dense.
///
/// For up to four right-hand sides the weights are read once, as they lie; more go through the
/// crate `gemm`, a panel of rows a task, half-precision weights through an f32 copy of the panel.
/// `gemm` chooses its own instructions: [`DenseKernel::with_path`] is for few right-hand sides.
///
/// ```
/// use half::bf16;
/// use ndarray::array;
/// use prune_kernels::{DenseKernel, LinearOperator};
///
/// let a = DenseKernel::new(array![[1.0f32, -2.0], [0.5, 4.0]].mapv(bf16::from_f32))?;
/// assert_eq!(a.matvec(&[2.0, 1.0])?, [0.0, 5.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DenseKernel<T> {
    rows: usize,
    cols: usize,
    data: Pages<T>,
    selected: Selected,
}

/// Right-hand sides up to which the weights are multiplied as they lie.
const FEW: usize = 4;

/// Rows that share what they load of a vector, which may not fit the first cache.
const TOGETHER: usize = 4;

/// Rows for a task of `gemm`, which packs the right-hand side for each.
const GEMM_ROWS: usize = 256;

impl<T: Storage> DenseKernel<T> {
    /// The operator of `matrix`, `(out_features, in_features)`; copied unless in standard layout.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the row-major index.
    pub fn new(matrix: Array2<T>) -> Result<Self> {
        let (rows, cols) = matrix.dim();
        let data: Vec<T> = if matrix.is_standard_layout() {
            matrix.into_iter().collect()
        } else {
            matrix.iter().copied().collect()
        };
        if let Some(index) = data.iter().position(|v| !v.is_finite()) {
            let value = data[index].to_string();
            return Err(Error::NotFinite { what: "dense matrix".to_string(), index, value });
        }
        Ok(Self { rows, cols, data: data.into(), selected: Selected::best() })
    }

    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        Ok(Self { selected: Selected::new(path)?, ..self })
    }

    fn row_data(&self, first: usize, rows: usize) -> &[T] {
        &self.data[first * self.cols..(first + rows) * self.cols]
    }
}

impl<T: Storage> LinearOperator for DenseKernel<T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nbytes(&self) -> usize {
        size_of_val(&self.data[..])
    }

    fn path(&self) -> KernelPath {
        self.selected.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check_vectors(self, x, y)?;
        for_rows(y, rows_per_task(self, 1, 1), |first, y| {
            let data = self.row_data(first, y.len());
            self.selected.run(Vector { data, x, y });
        });
        Ok(())
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_matrices(self, &x, &y)?;
        let k = x.ncols();
        if k <= FEW {
            let x = columns(x, self.cols);
            let rows = rows_per_task(self, 2, k);
            for_row_panels(y, rows, |first, y| {
                let data = self.row_data(first, y.nrows());
                self.selected.run(Few { data, cols: self.cols, x: &x, y });
            });
            return Ok(());
        }
        multiply_panels(x, y, GEMM_ROWS, |first, rows| T::as_f32(self.row_data(first, rows)));
        Ok(())
    }
}

struct Vector<'a, T> {
    /// As many rows as `y` has.
    data: &'a [T],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<T: Storage> Job for Vector<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.x.is_empty() {
            return self.y.fill(0.0);
        }
        let (y4, y1) = self.y.as_chunks_mut::<TOGETHER>();
        let mut data = self.data.chunks_exact(self.x.len());
        for y in y4 {
            let rows = std::array::from_fn(|_| data.next().unwrap_or_default());
            *y = dot(simd, rows, self.x);
        }
        for (y, row) in y1.iter_mut().zip(data) {
            [*y] = dot(simd, [row], self.x);
        }
    }
}

/// Products of `R` rows with `x`, of one length. Each has two sums, so that a row's does not depend
/// on how many there are.
#[inline(always)]
fn dot<S: Simd, T: Storage, const R: usize>(simd: S, rows: [&[T]; R], x: &[f32]) -> [f32; R] {
    let (eights, last_x) = x.as_chunks::<8>();
    let (pairs, ones) = eights.as_chunks::<2>();
    let mut of_rows: [&[[[T; 8]; 2]]; R] = [&[]; R];
    for r in 0..R {
        of_rows[r] = &rows[r].as_chunks::<8>().0.as_chunks::<2>().0[..pairs.len()];
    }
    let mut sums = [[simd.splat(0.0); 2]; R];
    for (i, x) in pairs.iter().enumerate() {
        for p in 0..2 {
            let x = simd.load(&x[p]);
            for r in 0..R {
                sums[r][p] = simd.mul_add(T::eight(simd, &of_rows[r][i][p]), x, sums[r][p]);
            }
        }
    }
    let mut out = [0.0; R];
    for r in 0..R {
        let (eights, last) = rows[r].as_chunks::<8>();
        for (w, x) in eights[2 * pairs.len()..].iter().zip(ones) {
            sums[r][0] = simd.mul_add(T::eight(simd, w), simd.load(x), sums[r][0]);
        }
        let mut rest = 0.0;
        for (w, x) in last.iter().zip(last_x) {
            rest += w.one() * x;
        }
        out[r] = simd.sum(simd.add(sums[r][0], sums[r][1])) + rest;
    }
    out
}

struct Few<'a, T> {
    /// As many rows of `cols` as `y` has.
    data: &'a [T],
    cols: usize,
    /// As many columns as `y` has, one after the other.
    x: &'a [f32],
    /// At most [`FEW`] columns.
    y: ArrayViewMut2<'a, f32>,
}

impl<T: Storage> Job for Few<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match self.y.ncols() {
            0 => {}
            1 => self.columns::<S, 1>(simd),
            2 => self.columns::<S, 2>(simd),
            3 => self.columns::<S, 3>(simd),
            _ => self.columns::<S, FEW>(simd),
        }
    }
}

impl<T: Storage> Few<'_, T> {
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S) {
        let rows = self.y.nrows();
        for row in (0..rows / 2 * 2).step_by(2) {
            self.rows::<S, N, 2>(simd, row);
        }
        if rows % 2 == 1 {
            self.rows::<S, N, 1>(simd, rows - 1);
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const N: usize, const R: usize>(&mut self, simd: S, row: usize) {
        let (cols, eights) = (self.cols, self.cols / 8);
        let mut w: [&[[T; 8]]; R] = [&[]; R];
        let mut x: [&[[f32; 8]]; N] = [&[]; N];
        for r in 0..R {
            w[r] = self.data[(row + r) * cols..][..cols].as_chunks().0;
            w[r] = &w[r][..eights];
        }
        for j in 0..N {
            x[j] = self.x[j * cols..][..cols].as_chunks().0;
            x[j] = &x[j][..eights];
        }
        let mut sums = [[simd.splat(0.0); N]; R];
        for i in 0..eights {
            for r in 0..R {
                let w = T::eight(simd, &w[r][i]);
                for j in 0..N {
                    sums[r][j] = simd.mul_add(w, simd.load(&x[j][i]), sums[r][j]);
                }
            }
        }
        for r in 0..R {
            for j in 0..N {
                let mut last = 0.0;
                for i in 8 * eights..cols {
                    last += self.data[(row + r) * cols + i].one() * self.x[j * cols + i];
                }
                self.y[[row + r, j]] = simd.sum(sums[r][j]) + last;
            }
        }
    }
}

/// Writes `Y = W X`, of which `panel(first, rows)` gives `rows` rows of `W`, a task each.
///
/// Always in one layout, for `gemm` sums in another order in others.
pub(crate) fn multiply_panels<'a>(
    x: ArrayView2<'_, f32>,
    y: ArrayViewMut2<'_, f32>,
    rows: usize,
    panel: impl Fn(usize, usize) -> Cow<'a, [f32]> + Sync,
) {
    let x = x.as_standard_layout();
    for_row_panels(y, rows, |first, mut y| {
        let w = panel(first, y.nrows());
        match y.as_slice_mut() {
            Some(y) => multiply(&w, x.view(), y),
            None => {
                let mut product = vec![0.0; y.len()];
                multiply(&w, x.view(), &mut product);
                y.iter_mut().zip(product).for_each(|(y, v)| *y = v);
            }
        }
    });
}

/// Writes `Y = W X` in row-major order, on this thread.
fn multiply(w: &[f32], x: ArrayView2<'_, f32>, y: &mut [f32]) {
    let (cols, k) = x.dim();
    let rows = y.len() / k.max(1);
    assert_eq!((w.len(), y.len()), (rows * cols, rows * k), "a panel of the product");
    let (x_down, x_across) = (x.strides()[0], x.strides()[1]);
    // SAFETY: the pointers are those of a slice of `rows x cols` and one of `rows x k`, both in
    // row-major order as just checked, and of a view of `cols x k` with its strides; `y` is
    // borrowed mutably and overlaps nothing.
    #[allow(unsafe_code)]
    unsafe {
        gemm(
            rows,
            k,
            cols,
            y.as_mut_ptr(),
            1,
            k as isize,
            false,
            w.as_ptr(),
            1,
            cols as isize,
            x.as_ptr(),
            x_across,
            x_down,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
