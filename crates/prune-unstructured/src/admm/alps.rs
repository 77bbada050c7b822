use ndarray::{Array2, ArrayViewMut2};
use prune_core::{
    Error, LayerStats, Mask, Needs, Pattern, PruneReport, Pruned, Pruner, Result, Scope, Target,
    check_target, selectable,
};

use super::splitting::{Inverted, Splitting, largest, splitting_bytes};
use crate::gram_layer::{GramLayer, check_damping, check_weight};
use crate::refit::conjugate_gradient;
use crate::unit_layer::UnitLayer;

/// Chooses mask and weights together by alternating directions whose penalty grows as the mask
/// settles, then fits the weights on it: ALPS (Meng et al., NeurIPS 2024, arXiv 2406.07831).
///
/// Input channels are scaled to norm 1. An iteration fits the weights with a pull of strength ρ to
/// the nearest weights that have the pattern. Every third looks at how much of the mask has changed
/// since: above 10 % of the weights that stay, ρ grows by 1.3, above 0.5 % by 1.2, above nothing by
/// 1.1. While it has never grown, a small change means that ρ was too large from the start: it
/// falls to a fifth, and the iteration starts over unless the mask stood still. When the mask
/// stands still, or changes less than 0.03 % after 30 iterations, 10 steps of conjugate gradients
/// finish.
///
/// The best masks of this crate, for the longest time: an inverse of O(n³) in f64 for each new ρ,
/// and O(m·n²) in f32 an iteration, of which there are 20 to 60. Where the released code takes one
/// eigendecomposition for all ρ, this takes a Cholesky factor for each, which has the same bits on
/// any number of threads. A dead input channel, 0 on every token, is as loud as the damping makes
/// it.
///
/// ```
/// use ndarray::array;
/// use prune_core::{GramAccumulator, LayerId, LayerStats, Pattern, Pruner, Scope, Seed, Target};
/// use prune_unstructured::Alps;
///
/// let mut gram = GramAccumulator::new(2);
/// gram.update("x", array![[1.0, 1.0], [2.0, 2.0]].view())?;
/// let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
/// let mut weight = array![[1.0, 1.5]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let target = Target { layer: &layer, pattern, scope, remove: 1, stream: Seed::new(0).stream("fc") };
/// Alps::default().prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight[[0, 0]], 0.0);
/// assert!((weight[[0, 1]] - 2.49f32).abs() < 0.01);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alps {
    damping: f64,
    rho: f64,
    iterations: u32,
    refit_steps: u32,
}

impl Default for Alps {
    /// As the released code: damping 0.01, ρ from 0.1, at most 300 iterations, 10 steps of
    /// conjugate gradients.
    fn default() -> Self {
        Self { damping: 0.01, rho: 0.1, iterations: 300, refit_steps: 10 }
    }
}

/// Iterations between two looks at the mask.
const LOOK_EVERY: u32 = 3;

/// Iterations after which a mask that hardly changes is taken.
const SETTLE_AFTER: u32 = 30;

const LARGEST_RHO: f64 = 1e6;

impl Alps {
    /// What is added to the diagonal of the Gram matrix, over its mean.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= damping <= 1`.
    pub fn with_damping(self, damping: f64) -> Result<Self> {
        Ok(Self { damping: check_damping("ALPS", damping)?, ..self })
    }

    /// The first ρ.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1e-6 <= rho <= 1e6`.
    pub fn with_rho(self, rho: f64) -> Result<Self> {
        if !(1e-6..=LARGEST_RHO).contains(&rho) {
            return Err(Error::OutOfRange {
                what: "rho of ALPS".to_string(),
                found: rho.to_string(),
                expected: "1e-6 to 1e6".to_string(),
            });
        }
        Ok(Self { rho, ..self })
    }

    /// At most this many iterations, at least 1, and the steps of conjugate gradients after them.
    #[must_use]
    pub fn with_iterations(self, iterations: u32, refit_steps: u32) -> Self {
        Self { iterations: iterations.max(1), refit_steps, ..self }
    }

    /// Runs the alternating directions; returns the last fitted weights.
    fn alternate(
        &self,
        splitting: &mut Splitting,
        unit: &UnitLayer,
        target: &Target<'_>,
    ) -> Result<(Array2<f32>, Course)> {
        let first_mask = largest(splitting.dense().view(), target)?;
        let kept = first_mask.kept().max(1) as f64;
        splitting.restart(&first_mask)?;
        let mut course = Course { rho: self.rho, ..Course::default() };
        course.note(splitting.set_rho(target.layer, &unit.gram, course.rho)?);
        let mut weights = Array2::zeros(splitting.dense().dim());
        let mut seen = first_mask.clone();
        let mut has_grown = false;
        for iteration in 0..self.iterations {
            course.iterations = iteration + 1;
            splitting.step(Some(&mut weights));
            let mask = splitting.project(target)?;
            splitting.set_mask(mask);
            if !(iteration + 1).is_multiple_of(LOOK_EVERY) {
                continue;
            }
            let changed = splitting.mask().xor(&seen)?.kept() as f64;
            seen = splitting.mask().clone();
            let before = course.rho;
            match changed / kept {
                part if part > 0.1 => (course.rho, has_grown) = (before * 1.3, true),
                part if part > 0.005 => (course.rho, has_grown) = (before * 1.2, true),
                _ if changed > 0.0 && has_grown => course.rho = before * 1.1,
                _ if changed > 0.0 => {
                    course.rho = before / 5.0;
                    splitting.restart(&first_mask)?;
                }
                _ if has_grown => break,
                _ => course.rho = before / 5.0,
            }
            course.rho = course.rho.min(LARGEST_RHO);
            if iteration >= SETTLE_AFTER && changed / kept < 3e-4 {
                break;
            }
            course.note(splitting.set_rho(target.layer, &unit.gram, course.rho)?);
            splitting.scale_dual(before / course.rho);
        }
        Ok((weights, course))
    }
}

#[derive(Default)]
struct Course {
    iterations: u32,
    /// The last ρ.
    rho: f64,
    damping: f64,
    raised: u32,
}

impl Course {
    fn note(&mut self, inverted: Inverted) {
        self.damping = self.damping.max(inverted.damping);
        self.raised = self.raised.max(inverted.raised);
    }
}

impl Pruner for Alps {
    fn name(&self) -> &str {
        "alps"
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        // The weights, the state and the fitted weights, four masks; the last steps take no more.
        12 * rows * cols + rows * cols / 2 + splitting_bytes(rows, cols)
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
        let unit = UnitLayer::new(&layer, self.damping);
        let mut dense = weight.as_standard_layout().into_owned();
        unit.grow(dense.view_mut());
        check_weight(target.layer, dense.view())?;
        let mut splitting = Splitting::new(dense);
        let (mut sparse, course) = self.alternate(&mut splitting, &unit, target)?;
        let mask = largest(sparse.view(), target)?;
        mask.apply(sparse.view_mut())?;
        let gram = unit.gram.mapv(|v| v as f32);
        let dense = splitting.dense();
        conjugate_gradient(
            dense.view(),
            gram.view(),
            &mask,
            sparse.view_mut(),
            self.refit_steps,
            0.0,
        );
        unit.shrink(sparse.view_mut());
        check_weight(target.layer, sparse.view())?;
        weight.assign(&sparse);
        let report = PruneReport {
            damping: Some(self.damping + course.damping),
            damping_raised: course.raised,
            dead_columns: layer.dead,
            iterations: Some(course.iterations),
            ..PruneReport::default()
        };
        Ok(Pruned { mask, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Fixture, TWO_FOUR};
    use approx::assert_abs_diff_eq;
    use prune_core::{LayerId, Seed};

    #[test]
    fn the_last_rho_is_that_of_the_reference() {
        for (fixture, pattern, iterations, rho) in [
            (Fixture::small(), Pattern::Unstructured, 30, 1.060450),
            (Fixture::correlated(), TWO_FOUR, 21, 0.411278),
        ] {
            let (alps, layer, stats) = (Alps::default(), LayerId::new("layer"), fixture.stats());
            let mut weight = fixture.weight.mapv(|w| w as f32);
            let target = Target {
                layer: &layer,
                pattern,
                scope: Scope::PerLayer,
                remove: weight.len() / 2,
                stream: Seed::new(0).stream("layer"),
            };
            let found = GramLayer::new(alps.name(), &layer, weight.view(), &stats).unwrap();
            let unit = UnitLayer::new(&found, alps.damping);
            unit.grow(weight.view_mut());
            let (_, course) =
                alps.alternate(&mut Splitting::new(weight.clone()), &unit, &target).unwrap();
            assert_eq!(course.iterations, iterations);
            assert_abs_diff_eq!(course.rho, rho, epsilon = 6e-7);
        }
    }
}
