use ndarray::{ArrayView2, ArrayViewMut2};
use prune_core::{Csr, Result, SparseMatrix};

use crate::operator::{
    LinearOperator, TILE, by_column, check_matrices, check_vectors, for_row_panels, for_rows,
    rows_per_task,
};
use crate::pages::Pages;
use crate::simd::{Job, KernelPath, Selected, Simd};
use crate::storage::Storage;
use crate::tiles::{ByTile, ElementRows, WideTiles, add, add_scaled};

/// A [`Csr`] matrix that multiplies fast.
///
/// It is cut into panels of 4096 columns, so that what a panel meets of a vector stays in the first
/// cache, and is gathered there by eight indices at a time. Of a matrix, each stored element
/// multiplies a vector of columns.
///
/// A product reads 8 bytes an f32 element stored, 6 a half-precision one, so that for a vector it
/// can pay from 50 % sparsity on and does so in practice from about 75 %.
///
/// ```
/// use ndarray::array;
/// use prune_core::Csr;
/// use prune_kernels::{CsrKernel, LinearOperator};
///
/// let a = CsrKernel::from(Csr::from_dense(array![[0.0f32, 2.0], [0.0, 0.0], [3.0, 0.0]].view())?);
/// assert_eq!(a.matvec(&[10.0, 1.0])?, [2.0, 0.0, 30.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CsrKernel<T> {
    rows: usize,
    cols: usize,
    nbytes: usize,
    panels: Vec<Panel<T>>,
    selected: Selected,
}

/// The elements of some columns, a row after the other.
#[derive(Debug, Clone, PartialEq)]
struct Panel<T> {
    /// Where each row starts, and the end.
    indptr: Vec<usize>,
    /// Columns of the whole matrix.
    indices: Pages<u32>,
    data: Pages<T>,
}

/// Right-hand sides up to which one after the other is faster.
const FEW: usize = 3;

impl<T: Storage> From<Csr<T>> for CsrKernel<T> {
    fn from(csr: Csr<T>) -> Self {
        let (rows, cols, nbytes) = (csr.rows(), csr.cols(), csr.nbytes());
        // Where the panel begins in each row.
        let mut starts = csr.indptr()[..rows].to_vec();
        let mut panel = |end: usize| {
            let (mut indptr, mut indices, mut data) = (vec![0], Vec::new(), Vec::new());
            for (start, last) in starts.iter_mut().zip(&csr.indptr()[1..]) {
                let row = &csr.indices()[*start..*last];
                let next = *start + row.partition_point(|c| (*c as usize) < end);
                indices.extend_from_slice(&csr.indices()[*start..next]);
                data.extend_from_slice(&csr.data()[*start..next]);
                indptr.push(indices.len());
                *start = next;
            }
            Panel { indptr, indices: indices.into(), data: data.into() }
        };
        let panels = (0..cols.div_ceil(TILE)).map(|p| panel((p + 1) * TILE)).collect();
        Self { rows, cols, nbytes, panels, selected: Selected::best() }
    }
}

impl<T: Storage> CsrKernel<T> {
    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](prune_core::Error::OutOfRange) when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        Ok(Self { selected: Selected::new(path)?, ..self })
    }
}

impl<T: Storage> LinearOperator for CsrKernel<T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nbytes(&self) -> usize {
        self.nbytes
    }

    fn path(&self) -> KernelPath {
        self.selected.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check_vectors(self, x, y)?;
        // The instructions that gather take signed indices.
        let selected =
            if i32::try_from(x.len()).is_ok() { self.selected } else { Selected::portable() };
        for_rows(y, rows_per_task(self, 1, 1), |first, y| {
            selected.run(Gather { panels: &self.panels, first, x, y });
        });
        Ok(())
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_matrices(self, &x, &y)?;
        if y.ncols() <= FEW {
            return by_column(self, x, y);
        }
        let tiles = WideTiles::new(x);
        let rows = rows_per_task(self, 1, y.ncols());
        for_row_panels(y, rows, |first, y| {
            self.selected.run(ByTile { matrix: self, first, tiles: &tiles, y });
        });
        Ok(())
    }
}

struct Gather<'a, T> {
    panels: &'a [Panel<T>],
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<T: Storage> Job for Gather<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.y.fill(0.0);
        for panel in self.panels {
            let ends = &panel.indptr[self.first..];
            for (y, end) in self.y.iter_mut().zip(ends.windows(2)) {
                let (indices, data) = (&panel.indices[end[0]..end[1]], &panel.data[end[0]..end[1]]);
                *y += gather_dot(simd, indices, data, self.x);
            }
        }
    }
}

/// The product of the elements of a row with `x`.
#[inline(always)]
fn gather_dot<S: Simd, T: Storage>(simd: S, indices: &[u32], data: &[T], x: &[f32]) -> f32 {
    let (indices, last_indices) = indices.as_chunks::<8>();
    let (data, last_data) = data.as_chunks::<8>();
    let mut sums = [simd.splat(0.0); 4];
    let (indices4, indices1) = indices.as_chunks::<4>();
    let (data4, data1) = data.as_chunks::<4>();
    for (indices, data) in indices4.iter().zip(data4) {
        for p in 0..4 {
            // SAFETY: the panels of a `CsrKernel` are made of a `Csr`, whose indices are below its
            // number of columns, which is the length of `x` and below 2^31: `matvec_into` checked
            // both.
            #[allow(unsafe_code)]
            let x = unsafe { simd.gather(x, simd.load_u32(&indices[p])) };
            sums[p] = simd.mul_add(T::eight(simd, &data[p]), x, sums[p]);
        }
    }
    for (indices, data) in indices1.iter().zip(data1) {
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let x = unsafe { simd.gather(x, simd.load_u32(indices)) };
        sums[0] = simd.mul_add(T::eight(simd, data), x, sums[0]);
    }
    let sums = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
    let mut last = 0.0;
    for (c, w) in last_indices.iter().zip(last_data) {
        last += w.one() * x[*c as usize];
    }
    simd.sum(sums) + last
}

impl<T: Storage> ElementRows for CsrKernel<T> {
    #[inline(always)]
    fn row<S: Simd, const P: usize>(&self, simd: S, row: usize, x: &[[[f32; 16]; P]]) -> [S::W; P] {
        // Two sums that do not wait for each other.
        let (mut even, mut odd) = ([simd.wide_splat(0.0); P], [simd.wide_splat(0.0); P]);
        for panel in &self.panels {
            let (start, end) = (panel.indptr[row], panel.indptr[row + 1]);
            let (indices, last_indices) = panel.indices[start..end].as_chunks::<2>();
            let (data, last_data) = panel.data[start..end].as_chunks::<2>();
            for (c, w) in indices.iter().zip(data) {
                even = add_scaled(simd, w[0].one(), &x[c[0] as usize], even);
                odd = add_scaled(simd, w[1].one(), &x[c[1] as usize], odd);
            }
            for (c, w) in last_indices.iter().zip(last_data) {
                even = add_scaled(simd, w.one(), &x[*c as usize], even);
            }
        }
        add(simd, even, odd)
    }
}
