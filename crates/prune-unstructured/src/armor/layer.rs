use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, LinalgScalar, s};
use prune_core::{
    BlockDiagonal, Element, Error, Factor, FactorKind, NmPacked, Result, SparseMatrix,
};

/// A linear layer as ARMOR leaves it: `W ≈ A · S · B` with block-diagonal A and B and an N:M core S.
///
/// A is `out_features` square, B `in_features` square; the norms of the normalisation are folded
/// into them, so that there are no scales beside them.
///
/// ```
/// use ndarray::{Array2, array};
/// use prune_core::{BlockDiagonal, NmPacked, SparseMatrix};
/// use prune_unstructured::ArmorLayer;
///
/// let core = array![[0.0f32, 5.0, 0.0, 4.0], [1.0, 2.0, 0.0, 0.0]];
/// let mut layer = ArmorLayer::new(
///     BlockDiagonal::identity(2, 2)?,
///     NmPacked::from_dense(core.view(), 2, 4)?,
///     BlockDiagonal::identity(4, 4)?,
/// )?;
/// assert_eq!(layer.to_dense(), core);
/// assert_eq!(layer.matvec(array![1.0, 1.0, 1.0, 1.0].view())?, array![9.0, 3.0]);
/// // 4 of the core, 2 · 2 of A and 4 · 4 of B, in place of 8.
/// assert_eq!((layer.parameters(), layer.overhead()), (4 + 4 + 16, 20.0 / 8.0));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ArmorLayer<T> {
    a: BlockDiagonal<T>,
    core: NmPacked<T>,
    b: BlockDiagonal<T>,
}

/// The roles of the three factors; see [`ArmorLayer::factors`].
pub(super) const ROLES: [&str; 3] = ["armor_a", "armor_core", "armor_b"];

impl<T: Element> ArmorLayer<T> {
    /// The layer `a · core · b`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not meet.
    pub fn new(a: BlockDiagonal<T>, core: NmPacked<T>, b: BlockDiagonal<T>) -> Result<Self> {
        for (what, found, expected) in
            [("armor A (rows)", a.rows(), core.rows()), ("armor B (rows)", b.rows(), core.cols())]
        {
            if found != expected {
                return Err(Error::Shape {
                    what: what.to_string(),
                    found: vec![found],
                    expected: vec![expected],
                });
            }
        }
        Ok(Self { a, core, b })
    }

    /// A.
    pub fn a(&self) -> &BlockDiagonal<T> {
        &self.a
    }

    /// The core.
    pub fn core(&self) -> &NmPacked<T> {
        &self.core
    }

    /// B.
    pub fn b(&self) -> &BlockDiagonal<T> {
        &self.b
    }

    /// A, the core and B.
    pub fn into_parts(self) -> (BlockDiagonal<T>, NmPacked<T>, BlockDiagonal<T>) {
        (self.a, self.core, self.b)
    }

    /// `W x`, for `x` of `in_features`: three products.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` has another length.
    pub fn matvec(&self, x: ArrayView1<'_, T>) -> Result<Array1<T>> {
        self.a.matvec(self.core.matvec(self.b.matvec(x)?.view())?.view())
    }

    /// `W X`, for `X` of shape `(in_features, k)`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `X` has another number of rows.
    pub fn matmul(&self, x: ArrayView2<'_, T>) -> Result<Array2<T>> {
        self.a.matmul(self.core.matmul(self.b.matmul(x)?.view())?.view())
    }

    /// The dense weight, `out_features x in_features`. Costs `rows · cols` multiplications for each
    /// row of a block of A and of B.
    pub fn to_dense(&self) -> Array2<T>
    where
        T::Sum: LinalgScalar,
    {
        let widen = |block: ArrayView2<'_, T>| block.mapv(Element::widen);
        let core = self.core.to_dense().mapv(Element::widen);
        let (one, zero) = (T::one().widen(), T::zero().widen());
        let mut left = Array2::from_elem(core.dim(), zero);
        for (i, first) in (0..self.a.blocks()).map(|i| (i, i * self.a.block_size())) {
            let a = widen(self.a.block(i));
            let at = s![first..first + a.nrows(), ..];
            general_mat_mul(one, &a, &core.slice(at), zero, &mut left.slice_mut(at));
        }
        let mut dense = core;
        for (i, first) in (0..self.b.blocks()).map(|i| (i, i * self.b.block_size())) {
            let b = widen(self.b.block(i));
            let at = s![.., first..first + b.nrows()];
            general_mat_mul(one, &left.slice(at), &b, zero, &mut dense.slice_mut(at));
        }
        dense.mapv(T::narrow)
    }

    /// Numbers that the layer holds: what the core stores and all of the blocks.
    pub fn parameters(&self) -> usize {
        self.core.nnz() + self.a.nnz() + self.b.nnz()
    }

    /// Bytes as the layer lies in memory: the blocks, the core's values and a bit for each of its
    /// positions.
    pub fn nbytes(&self) -> usize {
        self.core.nbytes() + self.a.nbytes() + self.b.nbytes()
    }

    /// The numbers in A and B over those of the dense layer: `b (1/d_out + 1/d_in)` for blocks of
    /// `b`. 0 for an empty layer.
    pub fn overhead(&self) -> f64 {
        match self.core.rows() * self.core.cols() {
            0 => 0.0,
            dense => (self.a.nnz() + self.b.nnz()) as f64 / dense as f64,
        }
    }

    /// The layer in another element type, each number rounded to the nearest.
    ///
    /// # Errors
    /// [`Error::InvalidSparse`] when a number overflows it.
    pub fn cast<U: Element>(&self) -> Result<ArmorLayer<U>> {
        let to = |x: &T| U::from(*x).unwrap_or_else(U::nan);
        let (n, m) = self.core.n_m();
        ArmorLayer::new(
            BlockDiagonal::from_parts(self.a.rows(), self.a.data().map(to))?,
            NmPacked::from_parts(
                self.core.cols(),
                n,
                m,
                self.core.indices().to_vec(),
                self.core.data().map(to),
            )?,
            BlockDiagonal::from_parts(self.b.rows(), self.b.data().map(to))?,
        )
    }
}

impl ArmorLayer<f32> {
    /// The factors as a checkpoint stores them, three tensors a layer beside or in place of its
    /// weight:
    ///
    /// - `<layer>.armor_a`, `(blocks, b, b)`: the blocks of A, zeros where the last is smaller;
    /// - `<layer>.armor_core`, `(out_features, in_features)`: the core with its zeros, as runtimes
    ///   for N:M weights read it;
    /// - `<layer>.armor_b`, `(blocks, b, b)`: the blocks of B.
    ///
    /// In PyTorch the weight is `block_diag(*a)[:out, :out] @ core @ block_diag(*b)[:in, :in]`.
    ///
    /// ```
    /// use prune_core::{BlockDiagonal, NmPacked};
    /// use prune_unstructured::ArmorLayer;
    /// # let core = ndarray::array![[0.0f32, 5.0, 0.0, 4.0]];
    /// # let a = BlockDiagonal::identity(1, 1)?;
    /// # let b = BlockDiagonal::identity(4, 4)?;
    /// # let layer = ArmorLayer::new(a, NmPacked::from_dense(core.view(), 2, 4)?, b)?;
    /// let factors = layer.factors();
    /// assert_eq!(factors[1].role, "armor_core");
    /// assert_eq!(ArmorLayer::from_factors(&factors, 2, 4)?, layer);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn factors(&self) -> [Factor; 3] {
        let [a, core, b] = ROLES;
        [
            Factor {
                role: a,
                kind: FactorKind::Dense,
                values: self.a.data().to_owned().into_dyn(),
            },
            Factor {
                role: core,
                kind: FactorKind::Sparse,
                values: self.core.to_dense().into_dyn(),
            },
            Factor {
                role: b,
                kind: FactorKind::Dense,
                values: self.b.data().to_owned().into_dyn(),
            },
        ]
    }

    /// The layer of three factors, in the order of [`ArmorLayer::factors`], whose core holds
    /// `n` of every `m`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of dimensions or sizes that do not meet;
    /// [`Error::InvalidSparse`], [`Error::PatternShape`], [`Error::PatternBroken`],
    /// [`Error::OutOfRange`] as the parts' constructors give.
    pub fn from_factors(factors: &[Factor; 3], n: usize, m: usize) -> Result<Self> {
        let [a, core, b] = factors;
        let shape = |factor: &Factor, expected: usize| Error::Shape {
            what: format!("{} (number of dimensions)", factor.role),
            found: vec![factor.values.ndim()],
            expected: vec![expected],
        };
        let matrix =
            core.values.view().into_dimensionality::<ndarray::Ix2>().map_err(|_| shape(core, 2))?;
        let blocks = |factor: &Factor, size: usize| {
            let data = factor.values.clone().into_dimensionality::<ndarray::Ix3>();
            BlockDiagonal::from_parts(size, data.map_err(|_| shape(factor, 3))?)
        };
        Self::new(
            blocks(a, matrix.nrows())?,
            NmPacked::from_dense(matrix, n, m)?,
            blocks(b, matrix.ncols())?,
        )
    }
}
