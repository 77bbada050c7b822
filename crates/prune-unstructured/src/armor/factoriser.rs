use ndarray::ArrayView2;
use prune_core::{
    Factored, Factoriser, LayerStats, Needs, Pattern, PruneReport, Result, Scope, Target,
};

use super::solver::supports;
use super::{ArmorOptions, armor};

/// ARMOR as a [`Factoriser`]: an N:M core between two block-diagonal matrices. See [`armor`].
///
/// ```
/// use ndarray::Array2;
/// use prune_core::{
///     ColumnStats, Factoriser, LayerId, LayerStats, Pattern, Scope, Seed, Target,
/// };
/// use prune_unstructured::{Armor, ArmorOptions};
///
/// let weight = Array2::from_shape_fn((16, 16), |(i, j)| ((7 * i + 3 * j * j) as f32).sin());
/// let mut columns = ColumnStats::new(16);
/// columns.update("x", weight.view())?;
/// let stats = LayerStats { columns: Some(columns), gram: None };
/// let layer = LayerId::new("mlp.up_proj");
/// let target = Target {
///     layer: &layer,
///     pattern: Pattern::NM { n: 2, m: 4 },
///     scope: Scope::PerRow,
///     remove: 128,
///     stream: Seed::new(0).stream(layer.as_str()),
/// };
/// let found = Armor(ArmorOptions::fast().block(4)).factorise(weight.view(), &stats, &target)?;
/// assert_eq!(found.mask.removed(), 128);
/// assert_eq!(found.parameters, 128 + 2 * 16 * 4);
/// assert!(found.loss[1] < found.loss[0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Armor(
    /// The options.
    pub ArmorOptions,
);

impl Factoriser for Armor {
    fn name(&self) -> &str {
        "armor"
    }

    fn needs(&self) -> Needs {
        Needs::Columns
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        supports(pattern, scope)
    }

    fn factorise(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Factored> {
        let columns = stats.require_columns(target.layer, self.name())?;
        let scale = 2.0 / columns.count() as f64;
        let importance: Vec<f64> = columns.squared_norm().iter().map(|s| s * scale).collect();
        let found = armor(weight, &importance, &self.0, target)?;
        Ok(Factored {
            weight: found.layer.to_dense(),
            parameters: found.layer.parameters(),
            factors: found.layer.factors().to_vec(),
            mask: found.mask,
            loss: [found.losses[0], found.loss],
            report: PruneReport {
                dead_columns: importance.iter().filter(|h| **h == 0.0).count(),
                iterations: u32::try_from(found.losses.len() - 1).ok(),
                ..PruneReport::default()
            },
        })
    }
}
