use ndarray::ArrayView2;
use prune_core::{Error, LayerStats, Needs, Result, RowScorer, Scope, Target, WeightScorer};

use crate::channel_norms::channel_norms;

/// Scores a weight by its absolute value times the norm of the input that it multiplies:
/// `|W_ij| · ‖X_j‖₂` (Sun, Liu, Bair, Kolter 2023, arXiv 2306.11695).
///
/// The paper compares within each output row ([`Scope::PerRow`](prune_core::Scope)) or N:M group.
/// Of all masks with the same counts, its mask has the least `Σ ΔW_ij² · ‖X_j‖²`.
///
/// The norm is divided by the square root of the number of tokens, in f64, before it is rounded to
/// f32. The released code divides by the number of sequences instead; a factor common to all
/// columns changes no comparison. A channel that was always 0 has score 0 and goes first.
///
/// ```
/// use ndarray::array;
/// use prune_core::{
///     ColumnStats, LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target,
/// };
/// use prune_unstructured::Wanda;
///
/// let mut columns = ColumnStats::new(2);
/// columns.update("x", array![[10.0, 1.0], [-10.0, 1.0]].view())?;
/// let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
/// let mut weight = array![[1.0, 5.0], [0.1, 5.0]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerRow);
/// let target = Target { layer: &layer, pattern, scope, remove: 2, stream: Seed::new(0).stream("fc") };
/// ScorePruner(Wanda).prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight, array![[1.0, 0.0], [0.0, 5.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanda;

impl WeightScorer for Wanda {
    fn name(&self) -> &str {
        "wanda"
    }

    fn needs(&self) -> Needs {
        Needs::Columns
    }

    fn default_scope(&self) -> Scope {
        Scope::PerRow
    }

    /// # Errors
    /// [`Error::NoStatistics`]; [`Error::Shape`] when the statistics have another number of
    /// channels than the weight has columns; [`Error::NotFinite`] for a norm beyond f32.
    fn prepare(
        &self,
        target: &Target<'_>,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
    ) -> Result<RowScorer> {
        let norms = channel_norms(self.name(), target, weight.ncols(), stats)?;
        let norms: Vec<f32> = norms.into_iter().map(|n| n as f32).collect();
        if let Some(index) = norms.iter().position(|n| !n.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("{} (norm of an input channel)", target.layer),
                index,
                value: norms[index].to_string(),
            });
        }
        Ok(Box::new(move |_row, weights, scores| {
            for ((s, w), norm) in scores.iter_mut().zip(weights).zip(&norms) {
                *s = w.abs() * norm;
            }
        }))
    }
}
