use ndarray::ArrayViewMut2;
use prune_core::{
    Error, Fidelity, LayerStats, Mask, Needs, Pattern, PruneReport, Pruned, Pruner, Result, Scope,
    Target, check_target, round_to_pattern, selectable,
};

use super::splitting::{Splitting, splitting_bytes};
use crate::gram_layer::{GramLayer, check_damping, check_weight};
use crate::unit_layer::UnitLayer;

/// Prunes gradually while the weights that stay are fitted to the outputs, by the alternating
/// direction method of multipliers (Boža 2024, arXiv 2401.02938).
///
/// Input channels are scaled to norm 1, so that absolute values are Wanda's scores. Of 20
/// iterations the first 15 choose the mask anew, at the sparsity `s · (1 − (1 − t/15)³)`; each then
/// moves the weights towards the best fit and the pattern at once. ρ is 1, so one inverse serves
/// all of them: the cheapest strong method. O(n³) in f64 once, and O(m·n²) in f32 an iteration.
///
/// Every pattern and scope is gradual: rows, blocks and channels by their own counts; N:M protects
/// the n largest of each group and removes of the others, the smallest of the layer first.
///
/// [`Fidelity::Released`] uses the final sparsity from the first iteration on for an unstructured
/// mask by layer, as the released code does there.
///
/// ```
/// use ndarray::array;
/// use prune_core::{GramAccumulator, LayerId, LayerStats, Pattern, Pruner, Scope, Seed, Target};
/// use prune_unstructured::Admm;
///
/// let mut gram = GramAccumulator::new(2);
/// gram.update("x", array![[1.0, 1.0], [2.0, 2.0]].view())?;
/// let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
/// let mut weight = array![[1.0, 1.5]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let target = Target { layer: &layer, pattern, scope, remove: 1, stream: Seed::new(0).stream("fc") };
/// Admm::default().prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight[[0, 0]], 0.0);
/// assert!((weight[[0, 1]] - 2.45f32).abs() < 0.1);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Admm {
    damping: f64,
    iterations: u32,
    gradual: u32,
    fidelity: Fidelity,
}

impl Default for Admm {
    /// As the authors': damping 0.1, 20 iterations, 15 of which choose the mask.
    fn default() -> Self {
        Self { damping: 0.1, iterations: 20, gradual: 15, fidelity: Fidelity::Exact }
    }
}

/// Channels have norm 1 and weights are as large as the outputs that they make: one ρ fits all.
const RHO: f64 = 1.0;

impl Admm {
    /// What is added to the diagonal of the scaled Gram matrix, over its mean.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= damping <= 1`.
    pub fn with_damping(self, damping: f64) -> Result<Self> {
        Ok(Self { damping: check_damping("ADMM", damping)?, ..self })
    }

    /// Iterations, and how many of them choose the mask.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1 <= gradual <= iterations`.
    pub fn with_iterations(self, iterations: u32, gradual: u32) -> Result<Self> {
        if gradual == 0 || gradual > iterations {
            return Err(Error::OutOfRange {
                what: "gradual iterations of ADMM".to_string(),
                found: gradual.to_string(),
                expected: format!("1 to the number of iterations, {iterations}"),
            });
        }
        Ok(Self { iterations, gradual, ..self })
    }

    /// Gradual everywhere or as the released code.
    #[must_use]
    pub fn with_fidelity(self, fidelity: Fidelity) -> Self {
        Self { fidelity, ..self }
    }

    /// How many weights are gone after iteration `t`, from 0.
    fn schedule(&self, target: &Target<'_>, (rows, cols): (usize, usize), t: u32) -> Result<usize> {
        let left = 1.0 - f64::from(t + 1) / f64::from(self.gradual);
        let asked = (target.remove as f64 * (1.0 - left.powi(3)) + 1e-9) as usize;
        match (target.pattern, target.scope) {
            (Pattern::NM { .. }, _) => Ok(asked),
            // The same count from every row, as in the released code, until all is asked for.
            (Pattern::Unstructured, Scope::PerRow) if asked < target.remove => {
                Ok(asked / rows * rows)
            }
            (other, _) => round_to_pattern(target.layer.as_str(), other, rows, cols, asked),
        }
    }

    fn mask(&self, splitting: &Splitting, target: &Target<'_>, t: u32) -> Result<Mask> {
        let at_once = self.fidelity == Fidelity::Released
            && (target.pattern, target.scope) == (Pattern::Unstructured, Scope::PerLayer);
        let remove = match at_once {
            true => target.remove,
            false => self.schedule(target, splitting.dense().dim(), t)?,
        };
        match target.pattern {
            Pattern::NM { n, m } => splitting.project_groups(target, (n, m), remove),
            _ => splitting.project(&Target { remove, ..target.clone() }),
        }
    }
}

impl Pruner for Admm {
    fn name(&self) -> &str {
        "admm"
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        // The weights and the state, two masks.
        8 * rows * cols + rows * cols / 4 + splitting_bytes(rows, cols)
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        selectable(self.name(), pattern, scope)
    }

    fn prune(
        &self,
        mut weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Pruned> {
        let (rows, cols) = weight.dim();
        check_target(self.name(), target, rows, cols)?;
        if weight.is_empty() {
            return Ok(Pruned::new(Mask::all_kept(rows, cols)));
        }
        let layer = GramLayer::new(self.name(), target.layer, weight.view(), stats)?;
        let mut unit = UnitLayer::new(&layer, 0.0);
        let mean = unit.gram.diag().sum() / cols as f64;
        unit.gram.diag_mut().iter_mut().for_each(|d| *d += self.damping * mean);

        let mut dense = weight.as_standard_layout().into_owned();
        unit.grow(dense.view_mut());
        check_weight(target.layer, dense.view())?;
        let mut splitting = Splitting::new(dense);
        let inverted = splitting.set_rho(target.layer, &unit.gram, RHO)?;
        for t in 0..self.iterations {
            if t < self.gradual {
                let mask = self.mask(&splitting, target, t)?;
                splitting.set_mask(mask);
            }
            splitting.step(None);
        }
        let (mut sparse, mask) = splitting.into_sparse()?;
        unit.shrink(sparse.view_mut());
        check_weight(target.layer, sparse.view())?;
        weight.assign(&sparse);
        let report = PruneReport {
            damping: Some(self.damping + inverted.damping),
            damping_raised: inverted.raised,
            dead_columns: layer.dead,
            iterations: Some(self.iterations),
            ..PruneReport::default()
        };
        Ok(Pruned { mask, report })
    }
}
