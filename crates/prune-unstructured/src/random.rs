use ndarray::ArrayView2;
use prune_core::{LayerStats, Result, RowScorer, Seed, Target, WeightScorer};

/// Scores a weight by a random number: a uniformly random mask of exact count.
///
/// Numbers come from [`Target::stream`](prune_core::Target), a stream of its own for each row, so
/// that a mask depends on the seed and the layer's name alone. The baseline of Liu et al. 2022
/// (arXiv 2202.02643), who find that random masks train well when layers get fitting sparsities.
///
/// ```
/// use ndarray::Array2;
/// use prune_core::{LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target};
/// use prune_unstructured::Random;
///
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let stream = Seed::new(7).stream(layer.as_str());
/// let target = Target { layer: &layer, pattern, scope, remove: 30, stream };
/// let mut weight = Array2::ones((8, 8));
/// let pruned = ScorePruner(Random).prune(weight.view_mut(), &LayerStats::default(), &target)?;
/// assert_eq!(pruned.mask.removed(), 30);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Random;

impl WeightScorer for Random {
    fn name(&self) -> &str {
        "random"
    }

    fn prepare(
        &self,
        target: &Target<'_>,
        _weight: ArrayView2<'_, f32>,
        _stats: &LayerStats,
    ) -> Result<RowScorer> {
        let rows = Seed::new(target.stream.clone().next_u64());
        Ok(Box::new(move |row, _weights, scores| {
            let mut stream = rows.stream(&row.to_string());
            scores.iter_mut().for_each(|s| *s = any_positive(stream.next_u64()));
        }))
    }
}

/// One of all finite f32 that are not negative, each as likely: 2 billion values where a uniform
/// number in `[0, 1)` has 17 million, so that ties, which favour the lower index, hardly occur.
fn any_positive(random: u64) -> f32 {
    const FINITE: u64 = 0x7f80_0000;
    f32::from_bits((((random >> 32) * FINITE) >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_score_is_finite() {
        assert_eq!(any_positive(0), 0.0);
        assert_eq!(any_positive(u64::MAX), f32::MAX);
    }
}
