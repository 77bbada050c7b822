use ndarray::ArrayView2;
use prune_core::{Error, LayerStats, Needs, Result, RowScorer, Target, WeightScorer};

use crate::channel_norms::channel_norms;
use crate::gram_layer::check_weight;

/// Scores a weight by its share of its row and of its column, times a power of the norm of its
/// input: relative importance and activations (Zhang et al., ICLR 2024).
///
/// ```text
/// S_ij = (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖X_j‖₂^α
/// ```
///
/// α is 1/2; with α = 0 no data is needed. A weight that is large among small ones survives even
/// where the whole row is small, so that no channel dies. The authors compare within the layer.
/// A row or column of zeros has share 0. Norms are per token; a factor common to all columns
/// changes no comparison. Sums run in f64.
///
/// [`permute_channels`](crate::permute_channels) reorders columns to lose less in N:M groups, as
/// the paper does.
///
/// ```
/// use ndarray::array;
/// use prune_core::{LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target};
/// use prune_unstructured::Ria;
///
/// // The second row is small, but its 0.9 is most of it.
/// let mut weight = array![[4.0, 2.0], [0.1, 0.9]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let target = Target { layer: &layer, pattern, scope, remove: 2, stream: Seed::new(0).stream("fc") };
/// let ria = ScorePruner(Ria::default().with_alpha(0.0)?);
/// ria.prune(weight.view_mut(), &LayerStats::default(), &target)?;
/// assert_eq!(weight, array![[4.0, 0.0], [0.0, 0.9]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ria {
    alpha: f64,
}

impl Default for Ria {
    /// α = 0.5, as in the paper and its code.
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

impl Ria {
    /// The score with another power of the norms of the inputs.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= alpha <= 4`.
    pub fn with_alpha(self, alpha: f64) -> Result<Self> {
        if !(0.0..=4.0).contains(&alpha) {
            return Err(Error::OutOfRange {
                what: "alpha of RIA".to_string(),
                found: alpha.to_string(),
                expected: "0 to 4".to_string(),
            });
        }
        Ok(Self { alpha })
    }
}

impl WeightScorer for Ria {
    fn name(&self) -> &str {
        "ria"
    }

    fn needs(&self) -> Needs {
        if self.alpha == 0.0 { Needs::Nothing } else { Needs::Columns }
    }

    /// # Errors
    /// [`Error::NoStatistics`]; [`Error::Shape`] when the statistics have another number of
    /// channels than the weight has columns; [`Error::NotFinite`] for a weight.
    fn prepare(
        &self,
        target: &Target<'_>,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
    ) -> Result<RowScorer> {
        let cols = weight.ncols();
        let powers: Vec<f64> = match self.needs() {
            Needs::Nothing => vec![1.0; cols],
            _ => {
                let norms = channel_norms(self.name(), target, cols, stats)?;
                norms.into_iter().map(|n| n.powf(self.alpha)).collect()
            }
        };
        let mut column_sums = vec![0.0; cols];
        for row in weight.outer_iter() {
            for (sum, w) in column_sums.iter_mut().zip(row) {
                *sum += f64::from(w.abs());
            }
        }
        if column_sums.iter().any(|s| !s.is_finite()) {
            check_weight(target.layer, weight)?;
        }
        let columns: Vec<f64> = column_sums.into_iter().map(reciprocal).collect();
        Ok(Box::new(move |_row, weights, scores| {
            let row = reciprocal(weights.iter().map(|w| f64::from(w.abs())).sum());
            for (((s, w), column), power) in
                scores.iter_mut().zip(weights).zip(&columns).zip(&powers)
            {
                *s = (f64::from(w.abs()) * (column + row) * power) as f32;
            }
        }))
    }
}

/// `1 / sum`, or 0 for a sum of 0: nothing has a share of nothing.
fn reciprocal(sum: f64) -> f64 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}
