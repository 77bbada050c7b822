use std::collections::HashMap;

use prune_core::{Allocation, Allocator, Budget, Error, Result, ScoredLayer};

use crate::fill::{Line, fill};
use crate::layers;

/// Whether a method is computed as it should be or as the code released with its paper does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fidelity {
    /// The budget is met, degenerate input is handled.
    #[default]
    Exact,
    /// What the released code computes, for comparison with published numbers.
    Released,
}

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
        let (group_of, scores) = groups(layers)?;
        let mut weights = vec![0.0; scores.len()];
        group_of.iter().zip(&sizes).for_each(|(&g, &n)| weights[g] += n as f64);
        let shifts: Vec<f64> = unit_range(&scores).iter().map(|u| 2.0 * self.lambda * u).collect();
        let of_group: Vec<f64> = match self.fidelity {
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
        Ok(group_of.iter().map(|&g| of_group[g]).collect())
    }
}

/// The block of each layer, numbered in the order of appearance, and the score of each block.
fn groups(layers: &[ScoredLayer]) -> Result<(Vec<usize>, Vec<f64>)> {
    let mut first_of_block: HashMap<usize, usize> = HashMap::new();
    let mut group_of: Vec<usize> = Vec::with_capacity(layers.len());
    let mut scores = Vec::new();
    for (l, layer) in layers.iter().enumerate() {
        if !layer.score.is_finite() {
            return Err(Error::NotFinite {
                what: format!("score of `{}`", layer.info.id),
                index: 0,
                value: layer.score.to_string(),
            });
        }
        let first = match layer.info.block {
            Some(block) => *first_of_block.entry(block).or_insert(l),
            None => l,
        };
        if first == l {
            group_of.push(scores.len());
            scores.push(layer.score);
        } else if layer.score == layers[first].score {
            group_of.push(group_of[first]);
        } else {
            return Err(Error::OutOfRange {
                what: format!("score of `{}`", layer.info.id),
                found: layer.score.to_string(),
                expected: format!(
                    "{}, as `{}` of the same block has",
                    layers[first].score, layers[first].info.id
                ),
            });
        }
    }
    Ok((group_of, scores))
}

/// Finite `values` mapped linearly so that the least is 0 and the greatest 1; all 0 when they are
/// equal.
pub(super) fn unit_range(values: &[f64]) -> Vec<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Halves, so that the range of the largest numbers does not overflow.
    let range = most / 2.0 - least / 2.0;
    if range > 0.0 {
        values.iter().map(|v| (v / 2.0 - least / 2.0) / range).collect()
    } else {
        vec![0.0; values.len()]
    }
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
            Fidelity::Released => {
                let kept = sizes.iter().zip(&densities).map(|(&n, d)| {
                    let removed = (n as f64 * (1.0 - d) + 1e-9) as usize;
                    n - removed.min(n)
                });
                layers::named(layers, kept.collect())
            }
        }
    }
}
