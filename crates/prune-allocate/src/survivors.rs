use ndarray::ArrayViewD;
use prune_core::{
    Allocation, Allocator, Budget, Error, GlobalSelector, LayerId, Result, ScoredLayer,
};

use crate::fill::{Line, fill};
use crate::groups::check_scores;
use crate::{Saliency, layers};

/// The ratios of a global selection: each layer keeps as many weights as it has among the best of
/// the whole network.
///
/// The score of a layer is that number of its weights, 0 to all, which [`survivors`] counts for any
/// saliency: magnitude (a global threshold), SNIP, GraSP, SynFlow. Where the numbers sum to what
/// the budget keeps and every layer has its minimum, they are returned as they are; else layers
/// below their minimum are lifted to it and the others share what is left in proportion to their
/// numbers. A layer that the saliency would empty thus keeps its minimum.
///
/// Random pruning with "SNIP ratios" takes these numbers and draws the positions afresh.
///
/// Source: Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022, section 4.
///
/// ```
/// use prune_allocate::{Saliency, Survivors};
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layers = [("a", 70.0), ("b", 30.0), ("c", 0.0)]
///     .map(|(name, score)| ScoredLayer { info: LayerInfo::linear(name, 10, 10), score });
/// let budget = Budget::sparsity(2.0 / 3.0)?;
/// let kept = Survivors::new(Saliency::Snip).allocate(&layers, &budget)?;
/// // Each layer keeps at least 1 weight in 100.
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [69, 30, 1]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survivors {
    saliency: Saliency,
}

impl Survivors {
    /// The ratios of this saliency.
    pub fn new(saliency: Saliency) -> Self {
        Self { saliency }
    }

    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming the layer; [`Error::OutOfRange`] for a number of weights that
    /// the layer does not have, a weight given twice or an overflowing shape;
    /// [`Error::Infeasible`] without layers.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let sizes = layers::sizes(layers)?;
        check_scores(layers)?;
        for (layer, &size) in layers.iter().zip(&sizes) {
            if !(0.0..=size as f64).contains(&layer.score) {
                return Err(Error::OutOfRange {
                    what: format!("score of `{}`", layer.info.id),
                    found: layer.score.to_string(),
                    expected: format!("a number of weights to keep, 0 to {size}"),
                });
            }
        }
        let lines: Vec<Line> = layers
            .iter()
            .zip(&sizes)
            .map(|(layer, &size)| Line {
                at_zero: 0.0,
                slope: layer.score,
                least: budget.min_keep(size) as f64,
                most: size as f64,
            })
            .collect();
        let total: usize = sizes.iter().sum();
        let targets = fill(&lines, budget.keep_total(total) as f64);
        Ok(targets.iter().zip(&sizes).map(|(t, &n)| layers::density(*t, n as f64)).collect())
    }
}

impl Allocator for Survivors {
    type Share = usize;

    fn name(&self) -> &str {
        self.saliency.name()
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let densities = self.densities(layers, budget)?;
        layers::rounded(layers, &layers::sizes(layers)?, &densities, budget)
    }
}

/// How many weights each layer has among the `keep` of highest saliency, in the order of the
/// layers; of equal saliencies those of later layers and higher indices stay.
///
/// Three passes over the saliencies, which may have any shape; O(weights), 512 KiB of scratch.
///
/// # Errors
/// [`Error::NotFinite`] naming the layer and the index; [`Error::OutOfRange`] when there are fewer
/// than `keep` weights.
///
/// ```
/// use ndarray::array;
/// use prune_allocate::survivors;
/// use prune_core::LayerId;
///
/// let (a, b) = (array![[0.9, 0.1], [0.2, 0.3]].into_dyn(), array![0.8, 0.7].into_dyn());
/// let layers = [(LayerId::new("a"), a.view()), (LayerId::new("b"), b.view())];
/// assert_eq!(survivors(&layers, 3)?, [1, 2]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn survivors(layers: &[(LayerId, ArrayViewD<'_, f32>)], keep: usize) -> Result<Vec<usize>> {
    let sizes: Vec<_> = layers.iter().map(|(id, saliency)| (id.clone(), saliency.len())).collect();
    let total: usize = sizes.iter().map(|(_, n)| n).sum();
    let remove = total.checked_sub(keep).ok_or_else(|| Error::OutOfRange {
        what: "weights to keep of all layers".to_string(),
        found: keep.to_string(),
        expected: format!("at most all {total} weights"),
    })?;
    let mut selector = GlobalSelector::new(sizes, remove)?;
    while !selector.is_done() {
        for (l, (_, saliency)) in layers.iter().enumerate() {
            match saliency.as_slice() {
                Some(values) => selector.feed(l, values)?,
                None => selector.feed(l, &saliency.iter().copied().collect::<Vec<_>>())?,
            }
        }
        selector.end_pass()?;
    }
    let removed = selector.finish()?.removed;
    Ok(layers.iter().zip(removed).map(|((_, saliency), r)| saliency.len() - r).collect())
}
