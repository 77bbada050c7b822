use ndarray::{ArrayView2, ArrayViewMut2};

use crate::{
    Error, LayerStats, Needs, Pattern, Pruned, Pruner, Result, Scope, Target, WeightScorer,
    check_finite, select, selectable,
};

/// The pruner that removes the weights of lowest score and leaves the others as they are.
///
/// It takes every pattern and scope that [`selectable`] does.
///
/// ```
/// use ndarray::{ArrayView2, array};
/// use prune_core::{
///     LayerId, LayerStats, Pattern, Pruner, Result, RowScorer, Scope, ScorePruner, Seed, Target,
///     WeightScorer,
/// };
///
/// /// Weights near the end of a row are worth more.
/// struct Later;
///
/// impl WeightScorer for Later {
///     fn name(&self) -> &str {
///         "later"
///     }
///     fn prepare(&self, _: &Target<'_>, _: ArrayView2<'_, f32>, _: &LayerStats) -> Result<RowScorer> {
///         Ok(Box::new(|_row, weights, scores| {
///             for (i, (s, w)) in scores.iter_mut().zip(weights).enumerate() {
///                 *s = w.abs() * (i + 1) as f32;
///             }
///         }))
///     }
/// }
///
/// let mut weight = array![[4.0, -1.0, 2.0, 1.0], [1.0, 1.0, 1.0, -1.0]];
/// let layer = LayerId::new("up_proj");
/// let target = Target {
///     layer: &layer,
///     pattern: Pattern::NM { n: 2, m: 4 },
///     scope: Scope::PerRow,
///     remove: 4,
///     stream: Seed::new(0).stream("up_proj"),
/// };
/// let pruned = ScorePruner(Later).prune(weight.view_mut(), &LayerStats::default(), &target)?;
/// assert_eq!(weight, array![[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, -1.0]]);
/// pruned.mask.check(target.pattern)?;
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScorePruner<S>(
    /// What scores the weights.
    pub S,
);

impl<S: WeightScorer> Pruner for ScorePruner<S> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn default_scope(&self) -> Scope {
        self.0.default_scope()
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        selectable(self.name(), pattern, scope)
    }

    fn prune(
        &self,
        weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Pruned> {
        prune_by_score(&self.0, weight, stats, target)
    }
}

/// The mask left when the `target.remove` weights of lowest score are removed from `weight`
/// (`out_features x in_features`), which is done in place: they become `+0.0`, the others stay.
///
/// [`select`] says what competes with what, and the cost. The weight is read once (three or four
/// times for a whole layer) and then written once. One that is not in standard layout is copied
/// for reading.
///
/// # Errors
/// [`Error::NotFinite`] for a weight (naming its tensor) or a score that is NaN or infinite; what
/// [`select`] and [`WeightScorer::prepare`] give. On error the weight is left as it was.
pub fn prune_by_score(
    scorer: &dyn WeightScorer,
    weight: ArrayViewMut2<'_, f32>,
    stats: &LayerStats,
    target: &Target<'_>,
) -> Result<Pruned> {
    selectable(scorer.name(), target.pattern, target.scope)?;
    let mask = select_by_score(scorer, weight.view(), stats, target)?;
    mask.apply(weight)?;
    Ok(Pruned::new(mask))
}

fn select_by_score(
    scorer: &dyn WeightScorer,
    weight: ArrayView2<'_, f32>,
    stats: &LayerStats,
    target: &Target<'_>,
) -> Result<crate::Mask> {
    let (rows, cols) = weight.dim();
    let weight = weight.as_standard_layout();
    let Some(values) = weight.as_slice() else {
        return Err(Error::external(target.layer.as_str(), "the weight is not contiguous"));
    };
    let score = scorer.prepare(target, weight.view(), stats)?;
    select(target, (rows, cols), &|row, scores| {
        let weights = &values[row * cols..(row + 1) * cols];
        check_finite("", weights).map_err(|e| in_tensor(e, target, row * cols))?;
        score(row, weights, scores);
        Ok(())
    })
}

/// Names the tensor and counts the index from its start.
fn in_tensor(error: Error, target: &Target<'_>, offset: usize) -> Error {
    match error {
        Error::NotFinite { index, value, .. } => {
            Error::NotFinite { what: target.layer.weight_name(), index: offset + index, value }
        }
        other => other,
    }
}
