use ndarray::{Array2, ArrayD, ArrayView2};

use crate::{LayerId, LayerStats, Mask, Needs, Pattern, PruneReport, Result, Scope, Target};

/// Replaces the weight of one layer by a product of factors, one of which is sparse.
///
/// What a [`Pruner`](crate::Pruner) leaves can be written in place of the weight and is sparse
/// itself. Here the weight that a runtime without knowledge of the factors needs is dense; what is
/// sparse, and what [`Target::remove`] counts, is a factor. So the result carries both: the dense
/// product and the factors.
pub trait Factoriser: Send + Sync {
    /// A short name: `armor`.
    fn name(&self) -> &str;

    /// The statistics that [`Factoriser::factorise`] reads.
    fn needs(&self) -> Needs;

    /// Whether the sparse factor can have this pattern at this scope.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) saying what to use instead.
    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()>;

    /// The factors that [`Factoriser::factorise`] makes of a weight of `rows x cols`, in its order.
    fn factors(&self, rows: usize, cols: usize) -> Vec<FactorInfo>;

    /// Bytes that [`Factoriser::factorise`] takes for a weight of `rows x cols` besides the weight
    /// itself and the statistics, for estimates. Includes what it returns.
    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize;

    /// The weight that factors stand for, as [`Factored::weight`] has it: for factors that were
    /// rounded, or read back from a checkpoint.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for factors whose number or sizes do not meet;
    /// [`Error::PatternBroken`](crate::Error::PatternBroken) when the sparse one has not `pattern`;
    /// [`Error::InvalidSparse`](crate::Error::InvalidSparse).
    fn product(&self, factors: &[Factor], pattern: Pattern) -> Result<Array2<f32>>;

    /// The factors of `weight` (`out_features x in_features`). The same inputs give the same bits,
    /// whatever the number of threads.
    ///
    /// # Errors
    /// Those of [`Pruner::prune`](crate::Pruner::prune).
    fn factorise(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Factored>;
}

/// What a [`Factoriser`] makes of one layer.
#[derive(Debug, Clone)]
pub struct Factored {
    /// The product of the factors: what stands in for the weight where the factors are not known.
    pub weight: Array2<f32>,
    /// The factors, as a checkpoint stores them.
    pub factors: Vec<Factor>,
    /// What the sparse factor keeps; [`Target::remove`] of its weights are removed.
    pub mask: Mask,
    /// Numbers that a runtime which knows the factors has to hold: those that the sparse factor
    /// keeps and all of the others.
    pub parameters: usize,
    /// The weighted error that the method minimises, as a part of that of a layer of zeros: before
    /// the first step and at the end. `None` where it is not reckoned.
    pub loss: Option<[f64; 2]>,
    /// What happened on the way.
    pub report: PruneReport,
}

/// What a factor is, and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FactorKind {
    /// Real numbers.
    Dense,
    /// The matrix that has the pattern, with its zeros.
    Sparse,
    /// Whole numbers from 0 and below 2^24.
    Indices,
}

/// The form of one factor of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FactorInfo {
    /// What it is, in the words of the method; the last part of its tensor's name.
    pub role: &'static str,
    /// Whether it is the sparse one.
    pub kind: FactorKind,
    /// The shape of its tensor.
    pub shape: Vec<usize>,
}

/// One factor of a layer.
///
/// ```
/// use prune_core::{Factor, FactorKind, LayerId};
/// let values = ndarray::ArrayD::zeros(vec![1, 4, 4]);
/// let factor = Factor { role: "armor_a", kind: FactorKind::Dense, values };
/// assert_eq!(factor.info().tensor_name(&LayerId::new("mlp.up_proj")), "mlp.up_proj.armor_a");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// What it is, in the words of the method; the last part of its tensor's name.
    pub role: &'static str,
    /// Whether it is the sparse one.
    pub kind: FactorKind,
    /// The values, in standard layout.
    pub values: ArrayD<f32>,
}

impl Factor {
    /// The factor without its values.
    pub fn info(&self) -> FactorInfo {
        FactorInfo { role: self.role, kind: self.kind, shape: self.values.shape().to_vec() }
    }
}

impl FactorInfo {
    /// The name of the factor's tensor in a checkpoint: the layer's name, a dot and the role.
    pub fn tensor_name(&self, layer: &LayerId) -> String {
        format!("{layer}.{}", self.role)
    }
}
