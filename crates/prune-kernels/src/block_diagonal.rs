use ndarray::{Array3, ArrayView2, ArrayViewMut2};
use prune_core::{Bsr, Error, Result};

use crate::KernelPath;
use crate::bsr::BsrKernel;
use crate::operator::LinearOperator;
use crate::storage::Storage;

/// A block-diagonal matrix that multiplies fast: dense blocks of one shape, zeros elsewhere.
///
/// Block `i` covers rows from `i · R` and columns from `i · C`. It is a [`BsrKernel`] with one
/// block in each block row and is laid out as one.
///
/// ```
/// use ndarray::array;
/// use prune_kernels::{BlockDiagonalKernel, LinearOperator};
///
/// let blocks = array![[[1.0f32, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]];
/// let a = BlockDiagonalKernel::new(blocks)?;
/// assert_eq!(a.matvec(&[1.0, 10.0, 100.0, 1000.0])?, [21.0, 43.0, 6500.0, 8700.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockDiagonalKernel<T>(BsrKernel<T>);

impl<T: Storage> BlockDiagonalKernel<T> {
    /// The operator of `blocks`, `(blocks, R, C)`.
    ///
    /// # Errors
    /// [`Error::InvalidSparse`] for blocks without extent, 2³² of them or more, or a value that is
    /// NaN or infinite.
    pub fn new(blocks: Array3<T>) -> Result<Self> {
        let (count, height, width) = blocks.dim();
        let size = |extent: usize| {
            count.checked_mul(extent).ok_or_else(|| Error::InvalidSparse {
                format: "block diagonal",
                field: "shape",
                reason: format!("{count} blocks of {height} x {width} exceed the address space"),
            })
        };
        let (rows, cols) = (size(height)?, size(width)?);
        let indices = (0..count).map(|i| i as u32).collect();
        Bsr::from_parts(rows, cols, (0..=count).collect(), indices, blocks)
            .map(|bsr| Self(BsrKernel::from(bsr)))
    }

    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        self.0.with_path(path).map(Self)
    }
}

impl<T: Storage> LinearOperator for BlockDiagonalKernel<T> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn cols(&self) -> usize {
        self.0.cols()
    }

    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    fn path(&self) -> KernelPath {
        self.0.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.0.matvec_into(x, y)
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.0.matmul_into(x, y)
    }
}
