use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use prune_core::{BlockDiagonal, Bsr, Error, Result, SparseMatrix};

use crate::KernelPath;
use crate::bsr::BsrKernel;
use crate::operator::{LinearOperator, check_matrices, check_vectors};
use crate::storage::Storage;

/// A [`BlockDiagonal`] matrix that multiplies fast.
///
/// It is a [`BsrKernel`] with one block in each block row, and is laid out as one. A smaller last
/// block is multiplied with its padding.
///
/// ```
/// use ndarray::array;
/// use prune_core::BlockDiagonal;
/// use prune_kernels::{BlockDiagonalKernel, LinearOperator};
///
/// let blocks = array![[[1.0f32, 2.0], [3.0, 4.0]], [[5.0, 0.0], [0.0, 0.0]]];
/// let a = BlockDiagonalKernel::try_from(BlockDiagonal::from_parts(3, blocks)?)?;
/// assert_eq!(a.matvec(&[1.0, 10.0, 100.0])?, [21.0, 43.0, 500.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockDiagonalKernel<T> {
    size: usize,
    /// Of whole blocks.
    blocks: BsrKernel<T>,
}

impl<T: Storage> TryFrom<BlockDiagonal<T>> for BlockDiagonalKernel<T> {
    type Error = Error;

    /// # Errors
    /// [`Error::InvalidSparse`] for blocks of 0 rows, or 2³² blocks or more.
    fn try_from(matrix: BlockDiagonal<T>) -> Result<Self> {
        let size = matrix.rows();
        let (count, padded) = (matrix.blocks(), matrix.blocks() * matrix.block_size());
        let data = matrix.into_data();
        let indices = (0..count).map(|i| i as u32).collect();
        let bsr = Bsr::from_parts(padded, padded, (0..=count).collect(), indices, data)?;
        Ok(Self { size, blocks: BsrKernel::from(bsr) })
    }
}

impl<T: Storage> BlockDiagonalKernel<T> {
    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        Ok(Self { blocks: self.blocks.with_path(path)?, ..self })
    }
}

impl<T: Storage> LinearOperator for BlockDiagonalKernel<T> {
    fn rows(&self) -> usize {
        self.size
    }

    fn cols(&self) -> usize {
        self.size
    }

    fn nbytes(&self) -> usize {
        self.blocks.nbytes()
    }

    fn path(&self) -> KernelPath {
        self.blocks.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check_vectors(self, x, y)?;
        let padded = self.blocks.rows();
        if padded == self.size {
            return self.blocks.matvec_into(x, y);
        }
        let mut whole = x.to_vec();
        whole.resize(padded, 0.0);
        y.copy_from_slice(&self.blocks.matvec(&whole)?[..self.size]);
        Ok(())
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, mut y: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_matrices(self, &x, &y)?;
        let padded = self.blocks.rows();
        if padded == self.size {
            return self.blocks.matmul_into(x, y);
        }
        let mut whole = Array2::zeros((padded, x.ncols()));
        whole.slice_mut(s![..self.size, ..]).assign(&x);
        y.assign(&self.blocks.matmul(whole.view())?.slice(s![..self.size, ..]));
        Ok(())
    }
}
