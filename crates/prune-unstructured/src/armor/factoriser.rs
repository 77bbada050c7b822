use ndarray::{Array2, ArrayView2};
use prune_core::{
    Error, Factor, FactorInfo, FactorKind, Factored, Factoriser, LayerStats, Needs, Pattern,
    PruneReport, Result, Scope, Target,
};

use super::layer::ROLES;
use super::solver::supports;
use super::{ArmorLayer, ArmorOptions, armor};

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
/// let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
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
/// let [start, end] = found.loss.unwrap_or_default();
/// assert!(end < start);
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
        supports(pattern, scope)?;
        match pattern {
            Pattern::NM { m, .. } => self.0.check(m),
            _ => Ok(()),
        }
    }

    fn factors(&self, rows: usize, cols: usize) -> Vec<FactorInfo> {
        let blocks = |size: usize, block: usize| {
            let block = block.min(size.max(1)).max(1);
            vec![size.div_ceil(block), block, block]
        };
        let [a, core, b] = ROLES;
        let info = |role, kind, shape| FactorInfo { role, kind, shape };
        vec![
            info(a, FactorKind::Dense, blocks(rows, self.0.block[0])),
            info(core, FactorKind::Sparse, vec![rows, cols]),
            info(b, FactorKind::Dense, blocks(cols, self.0.block[1])),
        ]
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        // The normalised weight, core, two moments and the best core so far, the mask beside the
        // core, then the packed core, the core with its zeros and the product on top of the first.
        let square = |size: usize, block: usize| size * block.min(size);
        let blocks = square(rows, self.0.block[0]) + square(cols, self.0.block[1]);
        36 * rows * cols + 64 * blocks + (8 << 20)
    }

    fn product(&self, factors: &[Factor], pattern: Pattern) -> Result<Array2<f32>> {
        let (Pattern::NM { n, m }, [a, core, b]) = (pattern, factors) else {
            return Err(Error::Shape {
                what: format!("armor factors of a core of pattern {pattern}"),
                found: vec![factors.len()],
                expected: vec![ROLES.len()],
            });
        };
        let factors = [a.clone(), core.clone(), b.clone()];
        Ok(ArmorLayer::from_factors(&factors, n, m)?.to_dense())
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
            loss: Some([found.losses[0], found.loss]),
            report: PruneReport {
                dead_columns: importance.iter().filter(|h| **h == 0.0).count(),
                iterations: u32::try_from(found.losses.len() - 1).ok(),
                ..PruneReport::default()
            },
        })
    }
}
