use prune_core::{Allocation, Allocator, Budget, Error, Result, ScoredLayer};

use crate::Fidelity;
use crate::fill::{Line, fill};
use crate::groups::{Granularity, Groups, check_scores, unit_range};
use crate::layers;

/// Outlier-weighed sparsity: blocks with more outliers keep more.
///
/// The score of a layer is the outlier percentage D of the block it stands in, as
/// `prune_importance::OutlierDistribution` measures it; all layers of a block get the same density.
/// Layers outside the blocks stand for themselves.
///
/// ```text
/// δ = 2λ · (D − min D) / (max D − min D)
/// density = δ − mean(δ) + (1 − sparsity)
/// ```
///
/// So densities span 2λ, centred on the budget in the mean and not in the middle: a single block
/// can be almost 2λ away. Blocks of equal score are pruned uniformly. The mean is weighted by the
/// weights of each block, and densities beyond 1 or below the minimum of the budget stay there
/// while the others move together to make up for it, so the budget is met.
///
/// [`Fidelity::Released`] does as the authors' code: an unweighted mean, and a sparsity of 0 or
/// less becomes 0.01. Then the budget is met only if all blocks are of one size and no density is
/// out of range, and each layer keeps `n − ⌊sparsity · n⌋`, whatever the minimum of the budget.
///
/// Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", 2023.
///
/// ```
/// use prune_allocate::Owl;
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layer = |block: usize, role: &str, score| ScoredLayer {
///     info: LayerInfo::linear(format!("model.layers.{block}.{role}"), 100, 10),
///     score,
/// };
/// let layers = [layer(0, "q", 6.0), layer(0, "k", 6.0), layer(1, "q", 2.0), layer(1, "k", 2.0)];
/// let kept = Owl::default().allocate(&layers, &Budget::sparsity(0.7)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [380, 380, 220, 220]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Owl {
    lambda: f64,
    fidelity: Fidelity,
}

impl Default for Owl {
    /// λ = 0.08, [`Fidelity::Exact`].
    fn default() -> Self {
        Self { lambda: Self::LAMBDA, fidelity: Fidelity::Exact }
    }
}

impl Owl {
    /// The λ of the paper's experiments.
    pub const LAMBDA: f64 = 0.08;

    /// An allocator whose densities span `2 · lambda`; `0 <= lambda <= 0.5`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn new(lambda: f64) -> Result<Self> {
        if !(0.0..=0.5).contains(&lambda) {
            return Err(Error::OutOfRange {
                what: "owl lambda".to_string(),
                found: lambda.to_string(),
                expected: "0 to 0.5".to_string(),
            });
        }
        Ok(Self { lambda, fidelity: Fidelity::Exact })
    }

    /// The same allocator with another fidelity.
    #[must_use]
    pub fn with_fidelity(self, fidelity: Fidelity) -> Self {
        Self { fidelity, ..self }
    }

    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming the layer of a score that is NaN or infinite;
    /// [`Error::OutOfRange`] for two scores in one block, a weight given twice or an overflowing
    /// shape; [`Error::Infeasible`] without layers.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let sizes = layers::sizes(layers)?;
        let blocks = Groups::new(layers, Granularity::Block);
        let scores = block_scores(layers, &blocks)?;
        let weights = blocks.sums(sizes.iter().map(|&n| n as f64));
        let shifts: Vec<f64> = unit_range(&scores).iter().map(|u| 2.0 * self.lambda * u).collect();
        let of_block: Vec<f64> = match self.fidelity {
            Fidelity::Exact => {
                let least = 1.0 - budget.max_layer_sparsity();
                let lines: Vec<Line> = shifts
                    .iter()
                    .zip(&weights)
                    .map(|(d, &n)| Line { at_zero: d * n, slope: n, least: least * n, most: n })
                    .collect();
                let targets = fill(&lines, budget.density() * weights.iter().sum::<f64>());
                targets.iter().zip(&weights).map(|(t, n)| layers::density(*t, *n)).collect()
            }
            Fidelity::Released => {
                let mean = shifts.iter().sum::<f64>() / shifts.len() as f64;
                let sparsity = |d: f64| 1.0 - (d - mean + budget.density());
                let guarded = |s: f64| if s <= 0.0 { 0.01 } else { s.min(1.0) };
                shifts.iter().map(|d| 1.0 - guarded(sparsity(*d))).collect()
            }
        };
        Ok(blocks.spread(&of_block))
    }
}

/// The score of each block, which all its layers have.
fn block_scores(layers: &[ScoredLayer], blocks: &Groups) -> Result<Vec<f64>> {
    check_scores(layers)?;
    for (layer, &block) in layers.iter().zip(&blocks.of_layer) {
        let first = &layers[blocks.first[block]];
        if layer.score != first.score {
            return Err(Error::OutOfRange {
                what: format!("score of `{}`", layer.info.id),
                found: layer.score.to_string(),
                expected: format!("{}, as `{}` of the same block has", first.score, first.info.id),
            });
        }
    }
    Ok(blocks.first.iter().map(|&l| layers[l].score).collect())
}

impl Allocator for Owl {
    type Share = usize;

    fn name(&self) -> &str {
        "owl"
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let densities = self.densities(layers, budget)?;
        let sizes = layers::sizes(layers)?;
        match self.fidelity {
            Fidelity::Exact => layers::rounded(layers, &sizes, &densities, budget),
            Fidelity::Released => layers::released(layers, &sizes, &densities),
        }
    }
}
