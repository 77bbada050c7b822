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
    /// the first step and at the end.
    pub loss: [f64; 2],
    /// What happened on the way.
    pub report: PruneReport,
}

/// One factor of a layer.
///
/// ```
/// use prune_core::{Factor, LayerId};
/// let factor = Factor { role: "armor_a", values: ndarray::ArrayD::zeros(vec![1, 4, 4]) };
/// assert_eq!(factor.tensor_name(&LayerId::new("mlp.up_proj")), "mlp.up_proj.armor_a");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// What it is, in the words of the method; the last part of its tensor's name.
    pub role: &'static str,
    /// The values, in standard layout.
    pub values: ArrayD<f32>,
}

impl Factor {
    /// The name of the factor's tensor in a checkpoint: the layer's name, a dot and the role.
    pub fn tensor_name(&self, layer: &LayerId) -> String {
        format!("{layer}.{}", self.role)
    }
}
