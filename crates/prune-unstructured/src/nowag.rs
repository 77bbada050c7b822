use ndarray::ArrayView2;
use prune_core::{LayerStats, Needs, Result, RowScorer, Target, WeightScorer};

use crate::channel_norms::channel_norms;
use crate::gram_layer::check_weight;

/// Scores a weight by the square of its normalised value times the mean square of its input
/// (NoWag-P, Liu et al. 2025, arXiv 2504.14569).
///
/// ```text
/// S_ij = W̄_ij² · mean_t X_tj²,   W̄ = W with columns, then rows, divided by their norm + 10⁻⁵
/// ```
///
/// Rows and columns of small norm are then worth as much as large ones. The authors compare within
/// the layer or N:M group. Sums run in f64. An input channel that was always 0 has score 0 and
/// goes first; ARMOR's code gives it the mean of the others instead.
///
/// ```
/// use ndarray::array;
/// use prune_core::{
///     ColumnStats, LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target,
/// };
/// use prune_unstructured::NoWag;
///
/// let mut columns = ColumnStats::new(2);
/// columns.update("x", array![[1.0, 1.0]].view())?;
/// let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
/// let mut weight = array![[10.0, 1.0], [2.0, 0.1]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let target = Target { layer: &layer, pattern, scope, remove: 2, stream: Seed::new(0).stream("fc") };
/// ScorePruner(NoWag).prune(weight.view_mut(), &stats, &target)?;
/// // 2 is the best of the second row; 1 is as large in its column as 10 is in its own.
/// assert_eq!(weight, array![[0.0, 1.0], [2.0, 0.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoWag;

/// Added to every norm, as in the released code: rows and columns of zeros stay zeros.
const EPSILON: f64 = 1e-5;

impl WeightScorer for NoWag {
    fn name(&self) -> &str {
        "nowag"
    }

    fn needs(&self) -> Needs {
        Needs::Columns
    }

    /// # Errors
    /// [`Error::NoStatistics`](prune_core::Error::NoStatistics);
    /// [`Error::Shape`](prune_core::Error::Shape) when the statistics have another number of
    /// channels than the weight has columns;
    /// [`Error::NotFinite`](prune_core::Error::NotFinite) for a weight.
    fn prepare(
        &self,
        target: &Target<'_>,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
    ) -> Result<RowScorer> {
        let norms = channel_norms(self.name(), target, weight.ncols(), stats)?;
        let mut squares = vec![0.0; weight.ncols()];
        for row in weight.outer_iter() {
            for (sum, w) in squares.iter_mut().zip(row) {
                *sum += f64::from(*w) * f64::from(*w);
            }
        }
        if squares.iter().any(|s| !s.is_finite()) {
            check_weight(target.layer, weight)?;
        }
        let columns: Vec<f64> = squares.into_iter().map(|s| s.sqrt() + EPSILON).collect();
        Ok(Box::new(move |_row, weights, scores| {
            let normalised = |(w, c): (&f32, &f64)| f64::from(*w) / c;
            let squares: f64 = weights.iter().zip(&columns).map(|p| normalised(p).powi(2)).sum();
            let row = squares.sqrt() + EPSILON;
            for ((s, p), norm) in scores.iter_mut().zip(weights.iter().zip(&columns)).zip(&norms) {
                *s = (normalised(p) / row * norm).powi(2) as f32;
            }
        }))
    }
}
