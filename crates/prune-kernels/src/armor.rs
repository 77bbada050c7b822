use ndarray::{ArrayView2, ArrayViewMut2};
use prune_core::{BlockDiagonal, Csr, NmPacked, Result, SparseMatrix};

use crate::KernelPath;
use crate::block_diagonal::BlockDiagonalKernel;
use crate::csr::CsrKernel;
use crate::nm::NmKernel;
use crate::operator::{LinearOperator, check_shape};
use crate::storage::Storage;

/// The product `A S B` of a block-diagonal, an N:M and another block-diagonal matrix: the form in
/// which ARMOR stores a weight (arXiv 2510.05528, equation 2).
///
/// `B` is applied first, then the core, then `A`; the product of the three is never formed. Beside
/// the core, a vector costs one multiplication for each element of the blocks: `d (out + in)` for
/// blocks of `d`, 6 % of a dense 4096 x 4096 for blocks of 128.
///
/// ```
/// use ndarray::array;
/// use prune_core::{BlockDiagonal, NmPacked};
/// use prune_kernels::{ArmorKernel, LinearOperator};
///
/// let core = array![[1.0f32, 0.0, 0.0, 2.0], [0.0, 3.0, 0.0, 0.0]];
/// let core = NmPacked::from_dense(core.view(), 2, 4)?;
/// let a = BlockDiagonal::from_parts(2, array![[[1.0, 1.0], [0.0, 1.0]]])?;
/// let b = array![[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]];
/// let w = ArmorKernel::new(a, &core, BlockDiagonal::from_parts(4, b)?)?;
/// assert_eq!(w.matvec(&[1.0, 10.0, 100.0, 1000.0])?, [2013.0, 3.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ArmorKernel<T> {
    a: BlockDiagonalKernel<T>,
    core: Core<T>,
    b: BlockDiagonalKernel<T>,
}

#[derive(Debug, Clone, PartialEq)]
enum Core<T> {
    TwoOfFour(NmKernel<T>),
    Other(CsrKernel<T>),
}

impl<T: Storage> ArmorKernel<T> {
    /// The operator of `a` over the rows of `core`, `core`, and `b` over its columns.
    ///
    /// # Errors
    /// [`Error::Shape`](prune_core::Error::Shape) when `a` has not as many columns as `core` has
    /// rows, or `b` not as many rows as `core` has columns; those of [`BlockDiagonalKernel`].
    pub fn new(a: BlockDiagonal<T>, core: &NmPacked<T>, b: BlockDiagonal<T>) -> Result<Self> {
        let (a, b) = (BlockDiagonalKernel::try_from(a)?, BlockDiagonalKernel::try_from(b)?);
        check_shape("columns of the first factor", &[a.cols()], &[core.rows()])?;
        check_shape("rows of the last factor", &[b.rows()], &[core.cols()])?;
        let core = if core.n_m() == (2, 4) {
            Core::TwoOfFour(NmKernel::try_from(core)?)
        } else {
            let dense = core.to_dense();
            Core::Other(CsrKernel::from(Csr::from_dense_masked(dense.view(), &core.mask())?))
        };
        Ok(Self { a, core, b })
    }

    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](prune_core::Error::OutOfRange) when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        let core = match self.core {
            Core::TwoOfFour(core) => Core::TwoOfFour(core.with_path(path)?),
            Core::Other(core) => Core::Other(core.with_path(path)?),
        };
        Ok(Self { a: self.a.with_path(path)?, core, b: self.b.with_path(path)? })
    }

    fn core(&self) -> &dyn LinearOperator {
        match &self.core {
            Core::TwoOfFour(core) => core,
            Core::Other(core) => core,
        }
    }
}

impl<T: Storage> LinearOperator for ArmorKernel<T> {
    fn rows(&self) -> usize {
        self.a.rows()
    }

    fn cols(&self) -> usize {
        self.b.cols()
    }

    fn nbytes(&self) -> usize {
        self.a.nbytes() + self.core().nbytes() + self.b.nbytes()
    }

    fn path(&self) -> KernelPath {
        self.a.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        let x = self.b.matvec(x)?;
        let x = self.core().matvec(&x)?;
        self.a.matvec_into(&x, y)
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        let x = self.b.matmul(x)?;
        let x = self.core().matmul(x.view())?;
        self.a.matmul_into(x.view(), y)
    }
}
