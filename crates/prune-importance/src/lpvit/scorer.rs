use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};
use prune_core::{Error, LayerId, LayerStats, Result, RowScorer, Target, WeightScorer};

/// Scores a weight by `|w · g|` with gradients that the caller gives: LPViT's ranking of blocks
/// where a [`ScorePruner`](prune_core::ScorePruner) applies it with a block pattern, and SNIP's of
/// weights without one.
///
/// ```
/// use std::collections::HashMap;
/// use ndarray::array;
/// use prune_core::{LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target};
/// use prune_importance::BlockTaylor;
///
/// let layer = LayerId::new("fc");
/// let mut weight = array![[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]];
/// let gradient = array![[0.1, 0.1, 0.2, -0.2], [0.1, 0.1, 0.2, -0.2]];
/// let pruner = ScorePruner(BlockTaylor::new(HashMap::from([(layer.clone(), gradient)])));
/// let target = Target {
///     layer: &layer,
///     pattern: Pattern::Block { rows: 2, cols: 2 },
///     scope: Scope::PerLayer,
///     remove: 4,
///     stream: Seed::new(0).stream("fc"),
/// };
/// pruner.prune(weight.view_mut(), &LayerStats::default(), &target)?;
/// assert_eq!(weight, array![[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BlockTaylor {
    gradients: HashMap<LayerId, Arc<Array2<f32>>>,
}

impl BlockTaylor {
    /// A scorer with the gradient of each layer's weight.
    pub fn new(gradients: HashMap<LayerId, Array2<f32>>) -> Self {
        let shared =
            |(id, g): (LayerId, Array2<f32>)| (id, Arc::new(g.as_standard_layout().into_owned()));
        Self { gradients: gradients.into_iter().map(shared).collect() }
    }
}

impl WeightScorer for BlockTaylor {
    fn name(&self) -> &str {
        "block-taylor"
    }

    /// # Errors
    /// [`Error::NoStatistics`] for a layer without a gradient; [`Error::Shape`] for one of another
    /// shape.
    fn prepare(
        &self,
        target: &Target<'_>,
        weight: ArrayView2<'_, f32>,
        _stats: &LayerStats,
    ) -> Result<RowScorer> {
        let gradient = self.gradients.get(target.layer).ok_or_else(|| Error::NoStatistics {
            layer: target.layer.to_string(),
            method: self.name().to_string(),
            needed: "a gradient",
        })?;
        if gradient.dim() != weight.dim() {
            return Err(Error::Shape {
                what: format!("gradient of {}", target.layer.weight_name()),
                found: gradient.shape().to_vec(),
                expected: weight.shape().to_vec(),
            });
        }
        let gradient = Arc::clone(gradient);
        Ok(Box::new(move |row, weights, scores| {
            for ((s, w), g) in scores.iter_mut().zip(weights).zip(gradient.row(row)) {
                *s = (w * g).abs();
            }
        }))
    }
}
