use ndarray::ArrayView2;
use prune_core::{LayerStats, Result, RowScorer, Target, WeightScorer};

/// Scores a weight by its absolute value. Data-free.
///
/// ```
/// use ndarray::array;
/// use prune_core::{LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target};
/// use prune_unstructured::Magnitude;
///
/// let mut weight = array![[1.0, -2.0], [3.0, -0.5]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let target = Target { layer: &layer, pattern, scope, remove: 2, stream: Seed::new(0).stream("fc") };
/// ScorePruner(Magnitude).prune(weight.view_mut(), &LayerStats::default(), &target)?;
/// assert_eq!(weight, array![[0.0, -2.0], [3.0, 0.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Magnitude;

impl WeightScorer for Magnitude {
    fn name(&self) -> &str {
        "magnitude"
    }

    fn prepare(
        &self,
        _target: &Target<'_>,
        _weight: ArrayView2<'_, f32>,
        _stats: &LayerStats,
    ) -> Result<RowScorer> {
        Ok(Box::new(|_row, weights, scores| {
            scores.iter_mut().zip(weights).for_each(|(s, w)| *s = w.abs());
        }))
    }
}
