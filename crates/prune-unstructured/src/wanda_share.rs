use ndarray::ArrayView2;
use prune_core::{LayerStats, Needs, Result, RowScorer, Target, WeightScorer};

use crate::channel_norms::channel_norms;

/// Scores a weight by the share of its row's Wanda scores that lies at or below its own.
///
/// ```text
/// S_ij = Σ_{k: s_ik <= s_ij} s_ik / Σ_k s_ik,   s_ij = |W_ij| · ‖X_j‖₂
/// ```
///
/// Compared within the layer, every row loses the same share of its scores instead of the same
/// number of weights: rows with few large weights lose more. It is the variant of Wanda that the
/// released code finds by bisecting that share (`use_variant`), with an exact count. Of equal
/// scores in a row the earlier has the lower share. O(n log n) a row. A row of zeros has score 0.
///
/// ```
/// use ndarray::array;
/// use prune_core::{
///     ColumnStats, LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target,
/// };
/// use prune_unstructured::WandaShare;
///
/// let mut columns = ColumnStats::new(4);
/// columns.update("x", array![[1.0, 1.0, 1.0, 1.0]].view())?;
/// let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
/// // Three weights of the first row are 3 % of it, one of the second is 25 %.
/// let mut weight = array![[1.0, 97.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let target = Target { layer: &layer, pattern, scope, remove: 4, stream: Seed::new(0).stream("fc") };
/// ScorePruner(WandaShare).prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight, array![[0.0, 97.0, 0.0, 0.0], [0.0, 2.0, 2.0, 2.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WandaShare;

impl WeightScorer for WandaShare {
    fn name(&self) -> &str {
        "wanda-share"
    }

    fn needs(&self) -> Needs {
        Needs::Columns
    }

    /// # Errors
    /// [`Error::NoStatistics`](prune_core::Error::NoStatistics);
    /// [`Error::Shape`](prune_core::Error::Shape) when the statistics have another number of
    /// channels than the weight has columns.
    fn prepare(
        &self,
        target: &Target<'_>,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
    ) -> Result<RowScorer> {
        let norms = channel_norms(self.name(), target, weight.ncols(), stats)?;
        Ok(Box::new(move |_row, weights, scores| {
            let score = |c: usize| f64::from(weights[c].abs()) * norms[c];
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
            let total: f64 = order.iter().map(|&c| score(c)).sum();
            let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
            let mut sum = 0.0;
            for c in order {
                sum += score(c);
                scores[c] = (sum * scale) as f32;
            }
        }))
    }
}
