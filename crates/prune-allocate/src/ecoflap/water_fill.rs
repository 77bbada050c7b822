use prune_core::{Allocation, Allocator, Budget, Error, Result, ScoredLayer};

use super::released::released_counts;
use crate::fill::{Line, fill};
use crate::groups::{Granularity, Groups, check_scores};
use crate::{Fidelity, layers};

/// How the scores of the layers of one group become the score of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Aggregate {
    /// Their sum.
    #[default]
    Sum,
    /// Their sum divided by the weights of the group.
    Average,
}

/// What a layer may lose at most.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cap {
    /// This much more than the budget removes.
    Above(f64),
    /// This fraction.
    At(f64),
}

/// Kept weights by loss change: every group keeps a floor, and what the budget keeps above the
/// floors is shared in proportion to the scores of the groups, whatever their sizes.
///
/// The score of a layer is what `prune_importance::ZerothOrder` measures: how much the loss moves
/// when the layer's weights are perturbed. With groups of n weights, scores c ≥ 0 and the largest
/// sparsity p (0.1 above the budget's unless set):
///
/// ```text
/// kept = min(n, ⌈n (1 − p)⌉ + t · c),   one t such that the budget is met
/// ```
///
/// The closed form replaces the rounds of the paper's code, which over-fills by up to two weights a
/// group. When every group of score above 0 is full, the others share the rest by their free room.
/// All layers of a group get the same density. `p` equal to the budget's sparsity is uniform; `p`
/// = 1 is purely proportional. Multiplying all scores by a number changes nothing.
///
/// [`Fidelity::Released`] runs the rounds of the released code, in which an excess is added once
/// more instead of taken away; the counts are kept in f64 where that code rounds them to f32. Each
/// layer keeps `n − ⌊sparsity · n⌋`.
///
/// Source: Sung, Yoon, Bansal, "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for
/// Vision-Language Models", 2024, section 3.
///
/// ```
/// use prune_allocate::Ecoflap;
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layer = |block: usize, score| ScoredLayer {
///     info: LayerInfo::linear(format!("model.layers.{block}.up_proj"), 100, 10),
///     score,
/// };
/// let layers = [layer(0, 4.0), layer(1, 3.0), layer(2, 2.0), layer(3, 1.0)];
/// let kept = Ecoflap::default().allocate(&layers, &Budget::sparsity(0.5)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [560, 520, 480, 440]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ecoflap {
    cap: Cap,
    granularity: Granularity,
    aggregate: Aggregate,
    fidelity: Fidelity,
}

impl Default for Ecoflap {
    /// A largest sparsity 0.1 above the budget's, [`Granularity::Block`], [`Aggregate::Sum`],
    /// [`Fidelity::Exact`]: what the released scripts use.
    fn default() -> Self {
        Self {
            cap: Cap::Above(Self::MARGIN),
            granularity: Granularity::Block,
            aggregate: Aggregate::Sum,
            fidelity: Fidelity::Exact,
        }
    }
}

impl Ecoflap {
    /// How far above the budget's sparsity a group goes at most in all released scripts.
    pub const MARGIN: f64 = 0.1;

    /// Groups lose at most `margin` more than the budget removes (and never more than
    /// everything); `0 <= margin <= 1`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn new(margin: f64) -> Result<Self> {
        unit("ecoflap margin", margin)?;
        Ok(Self { cap: Cap::Above(margin), ..Self::default() })
    }

    /// The same allocator where groups lose at most the fraction `p`, whatever the budget; a budget
    /// with a higher sparsity is refused.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= p <= 1`.
    pub fn with_max_sparsity(self, p: f64) -> Result<Self> {
        unit("ecoflap largest sparsity", p)?;
        Ok(Self { cap: Cap::At(p), ..self })
    }

    /// The same allocator for blocks or for layers.
    #[must_use]
    pub fn with_granularity(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// The same allocator with another score of groups.
    #[must_use]
    pub fn with_aggregate(self, aggregate: Aggregate) -> Self {
        Self { aggregate, ..self }
    }

    /// The same allocator with another fidelity.
    #[must_use]
    pub fn with_fidelity(self, fidelity: Fidelity) -> Self {
        Self { fidelity, ..self }
    }

    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming the layer; [`Error::OutOfRange`] for a negative score, a largest
    /// sparsity below the budget's, a weight given twice or an overflowing shape;
    /// [`Error::Infeasible`] without layers, and in [`Fidelity::Released`] where that code would
    /// divide by zero.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let sizes = layers::sizes(layers)?;
        check_scores(layers)?;
        if let Some(layer) = layers.iter().find(|l| l.score < 0.0) {
            return Err(Error::OutOfRange {
                what: format!("score of `{}`", layer.info.id),
                found: layer.score.to_string(),
                expected: "at least 0".to_string(),
            });
        }
        let cap = self.cap(budget)?;
        let groups = Groups::new(layers, self.granularity);
        let weights = groups.sums(sizes.iter().map(|&n| n as f64));
        // Divided by the largest first, so that no sum overflows.
        let largest = layers.iter().fold(0.0, |m: f64, l| m.max(l.score));
        let scale = if largest > 0.0 { largest } else { 1.0 };
        let mut scores = groups.sums(layers.iter().map(|l| l.score / scale));
        if self.aggregate == Aggregate::Average {
            scores.iter_mut().zip(&weights).for_each(|(s, n)| *s /= n.max(1.0));
        }
        let kept = match self.fidelity {
            Fidelity::Exact => {
                let floors = |&n: &f64| (n * (1.0 - cap) - 1e-9).ceil().max(0.0);
                let floors: Vec<f64> = weights.iter().map(floors).collect();
                water_fill(
                    &scores,
                    &weights,
                    &floors,
                    budget.density() * weights.iter().sum::<f64>(),
                )
            }
            Fidelity::Released => {
                let all: f64 = weights.iter().sum();
                let keep = (all * (1.0 - budget.target_sparsity()) + 1e-9).floor();
                released_counts(&scores, &weights, keep, cap)?
            }
        };
        let densities: Vec<f64> =
            kept.iter().zip(&weights).map(|(k, n)| layers::density(*k, *n).min(1.0)).collect();
        Ok(groups.spread(&densities))
    }

    fn cap(&self, budget: &Budget) -> Result<f64> {
        let sparsity = budget.target_sparsity();
        match self.cap {
            Cap::Above(margin) => Ok((sparsity + margin).min(budget.max_layer_sparsity())),
            Cap::At(p) if p < sparsity => Err(Error::OutOfRange {
                what: "ecoflap largest sparsity".to_string(),
                found: p.to_string(),
                expected: format!("at least {sparsity}, the sparsity of the budget"),
            }),
            Cap::At(p) => Ok(p.min(budget.max_layer_sparsity())),
        }
    }
}

fn unit(what: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::OutOfRange {
        what: what.to_string(),
        found: value.to_string(),
        expected: "0 to 1".to_string(),
    })
}

/// `min(n, floor + t · score)` that sum to `keep`; a rest that the scores cannot place goes to the
/// groups of score 0 by their free room.
fn water_fill(scores: &[f64], weights: &[f64], floors: &[f64], keep: f64) -> Vec<f64> {
    let lines = |slope: &dyn Fn(usize) -> f64, least: &[f64]| -> Vec<Line> {
        (0..weights.len())
            .map(|g| Line { at_zero: least[g], slope: slope(g), least: least[g], most: weights[g] })
            .collect()
    };
    let kept = fill(&lines(&|g| scores[g], floors), keep);
    if kept.iter().sum::<f64>() >= keep - 1e-9 * keep.max(1.0) {
        return kept;
    }
    fill(&lines(&|g| weights[g] - kept[g], &kept), keep)
}

impl Allocator for Ecoflap {
    type Share = usize;

    fn name(&self) -> &str {
        match self.granularity {
            Granularity::Block => "ecoflap",
            Granularity::Layer => "ecoflap-layer",
        }
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
