use ndarray::ArrayViewMut2;
use prune_core::{
    Error, LayerStats, Needs, Pattern, Pruned, Pruner, Result, Scope, Target, check_target,
};

use super::{BlockRanking, BlockScore};

/// LPViT's pruner: removes the blocks of lowest Taylor score, the mean of `|w g|`, with `g` the
/// [gradient](LayerStats::gradient) of the network's output energy.
///
/// The order is that of [`BlockRanking`], whose curve tells how many blocks of a layer should go.
///
/// ```
/// use ndarray::array;
/// use prune_core::{LayerId, LayerStats, Pattern, Pruner, Scope, Seed, Target};
/// use prune_importance::BlockTaylor;
///
/// let layer = LayerId::new("fc");
/// let mut weight = array![[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]];
/// let gradient = array![[0.1, 0.1, 0.2, -0.2], [0.1, 0.1, 0.2, -0.2]];
/// let stats = LayerStats { gradient: Some(gradient), ..LayerStats::default() };
/// let target = Target {
///     layer: &layer,
///     pattern: Pattern::Block { rows: 2, cols: 2 },
///     scope: Scope::PerLayer,
///     remove: 4,
///     stream: Seed::new(0).stream("fc"),
/// };
/// BlockTaylor.prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight, array![[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockTaylor;

impl BlockTaylor {
    /// The name of the method.
    pub const NAME: &str = "lpvit";

    /// Rows and columns of a block of the pattern.
    fn block(pattern: Pattern, scope: Scope) -> Result<(usize, usize)> {
        match (pattern, scope) {
            (Pattern::Block { rows, cols }, Scope::PerLayer) => Ok((rows, cols)),
            _ => Err(Error::Unsupported {
                method: Self::NAME.to_string(),
                pattern,
                scope,
                reason: "it ranks the blocks of a layer; use a pattern such as `block 16x16` and \
                         scope `layer`"
                    .to_string(),
            }),
        }
    }
}

impl Pruner for BlockTaylor {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn needs(&self) -> Needs {
        Needs::Gradient
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        Self::block(pattern, scope).map(drop)
    }

    /// # Errors
    /// [`Error::Unsupported`] for a pattern without blocks; [`Error::NoStatistics`] without a
    /// gradient; [`Error::Shape`] for one of another shape; [`Error::NotFinite`];
    /// [`Error::PatternShape`] where the block does not divide the weight; [`Error::OutOfRange`] for
    /// a count that is not of whole blocks.
    fn prune(
        &self,
        weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Pruned> {
        let block = Self::block(target.pattern, target.scope)?;
        let (rows, cols) = weight.dim();
        check_target(Self::NAME, target, rows, cols)?;
        let gradient = stats.require_gradient(target.layer, Self::NAME)?.view();
        let by = BlockScore::Taylor;
        let ranking = BlockRanking::new(target.layer, weight.view(), gradient, block, by)?;
        let mask = ranking.mask(target.remove / (block.0 * block.1))?;
        mask.apply(weight)?;
        Ok(Pruned::new(mask))
    }
}
