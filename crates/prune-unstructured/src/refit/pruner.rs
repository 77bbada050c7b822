use ndarray::{ArrayView2, ArrayViewMut2};
use prune_core::{
    Error, LayerId, LayerStats, Mask, Needs, Pattern, PruneReport, Pruned, Pruner, Result, Scope,
    ScorePruner, Target,
};

use super::conjugate_gradient::conjugate_gradient;
use super::exact;
use crate::Wanda;
use crate::gram_layer::{GramLayer, check_damping, check_weight};
use crate::unit_layer::{UnitLayer, panel_bytes};

/// How [`Refit`] finds the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Solver {
    /// A Cholesky factor for each row, in f64: O(k³/3) a row that keeps k. To a few hundred inputs.
    Exact,
    /// At most `steps` steps of conjugate gradients from where the base pruner left the weights, in
    /// f32, all rows side by side, until each gradient is `tolerance` of what it was: O(n²) a row
    /// and step. Stops short of the minimum only along directions of small curvature, which change
    /// the outputs least.
    ConjugateGradient {
        /// At most this many.
        steps: u32,
        /// At least 0.
        tolerance: f64,
    },
}

/// The mask of any pruner with the weights that fit the dense outputs best on it: least squares on
/// the support.
///
/// ```text
/// min tr((W − W₀) (XᵀX + λI) (W − W₀)ᵀ)   where W is 0 outside the mask
/// ```
///
/// λ is a fraction of the mean diagonal. On correlated inputs a plain mask and this beat SparseGPT,
/// whose greedy updates only reach the columns that follow. Rows are independent.
///
/// ```
/// use ndarray::array;
/// use prune_core::{
///     ColumnStats, GramAccumulator, LayerId, LayerStats, Pattern, Pruner, Scope, Seed, Target,
/// };
/// use prune_unstructured::Refit;
///
/// let x = array![[1.0, 1.0], [2.0, 2.0]];
/// let (mut columns, mut gram) = (ColumnStats::new(2), GramAccumulator::new(2));
/// columns.update("x", x.view())?;
/// gram.update("x", x.view())?;
/// let stats = LayerStats { columns: Some(columns), gram: Some(gram), ..LayerStats::default() };
/// let mut weight = array![[1.0, 1.5]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerRow);
/// let target = Target { layer: &layer, pattern, scope, remove: 1, stream: Seed::new(0).stream("fc") };
/// Refit::default().with_damping(0.0)?.prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight, array![[0.0, 2.5]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub struct Refit {
    base: Box<dyn Pruner>,
    name: String,
    damping: f64,
    solver: Solver,
}

impl Default for Refit {
    /// Over [`Wanda`]; damping 0.01 and at most 32 steps of conjugate gradients to 10⁻⁴.
    fn default() -> Self {
        Self { name: "refit".to_string(), ..Self::over(Box::new(ScorePruner(Wanda))) }
    }
}

impl Refit {
    /// Over the mask of another pruner; otherwise as the default. Its name is `BASE+refit`.
    pub fn over(base: Box<dyn Pruner>) -> Self {
        let name = format!("{}+refit", base.name());
        let solver = Solver::ConjugateGradient { steps: 32, tolerance: 1e-4 };
        Self { base, name, damping: 0.01, solver }
    }

    /// λ over the mean of the diagonal of the Gram matrix.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= damping <= 1`.
    pub fn with_damping(self, damping: f64) -> Result<Self> {
        Ok(Self { damping: check_damping("refit", damping)?, ..self })
    }

    /// How the weights are found.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a tolerance that is negative or not finite.
    pub fn with_solver(self, solver: Solver) -> Result<Self> {
        if let Solver::ConjugateGradient { tolerance, .. } = solver
            && !(0.0..f64::INFINITY).contains(&tolerance)
        {
            return Err(Error::OutOfRange {
                what: "tolerance of refit".to_string(),
                found: tolerance.to_string(),
                expected: "a finite number of at least 0".to_string(),
            });
        }
        Ok(Self { solver, ..self })
    }

    /// Replaces `weight`, pruned by `mask`, by the best weights on that mask for the outputs of
    /// `dense`, both `out_features x in_features`. `weight` is where conjugate gradients start.
    ///
    /// # Errors
    /// [`Error::Shape`] when mask, weights or statistics do not fit; [`Error::NotFinite`];
    /// [`Error::NoStatistics`]; [`Error::Indefinite`]. On error the weight is left as it was.
    pub fn refit(
        &self,
        dense: ArrayView2<'_, f32>,
        mut weight: ArrayViewMut2<'_, f32>,
        mask: &Mask,
        stats: &LayerStats,
        layer: &LayerId,
    ) -> Result<PruneReport> {
        for (what, found) in [("weight", weight.dim()), ("mask", (mask.rows(), mask.cols()))] {
            if found != dense.dim() {
                return Err(Error::Shape {
                    what: format!("{layer} ({what})"),
                    found: vec![found.0, found.1],
                    expected: dense.shape().to_vec(),
                });
            }
        }
        if dense.is_empty() {
            return Ok(PruneReport::default());
        }
        check_weight(layer, weight.view())?;
        let found = GramLayer::new(&self.name, layer, dense, stats)?;
        let mut report = PruneReport {
            damping: Some(self.damping),
            dead_columns: found.dead,
            ..PruneReport::default()
        };
        let mut fitted;
        match self.solver {
            Solver::Exact => {
                fitted = dense.as_standard_layout().into_owned();
                let taken = exact::solve(&found, fitted.view_mut(), mask, self.damping)?;
                report.damping = Some(taken.damping);
                report.damping_raised = taken.raised;
            }
            Solver::ConjugateGradient { steps, tolerance } => {
                fitted = weight.as_standard_layout().into_owned();
                mask.apply(fitted.view_mut())?;
                let unit = UnitLayer::new(&found, self.damping);
                let mut goal = dense.as_standard_layout().into_owned();
                unit.grow(goal.view_mut());
                unit.grow(fitted.view_mut());
                let gram = unit.gram.mapv(|v| v as f32);
                let goal = goal.view();
                conjugate_gradient(goal, gram.view(), mask, fitted.view_mut(), steps, tolerance);
                unit.shrink(fitted.view_mut());
            }
        }
        check_weight(layer, fitted.view())?;
        weight.assign(&fitted);
        Ok(report)
    }
}

impl Pruner for Refit {
    fn name(&self) -> &str {
        &self.name
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn default_scope(&self) -> Scope {
        self.base.default_scope()
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        let (weights, pairs) = (rows * cols, cols * cols);
        let fit = match self.solver {
            // The result; on each thread the part of the matrix, its factor and their copies.
            Solver::Exact => 4 * weights + 28 * pairs * rayon::current_num_threads(),
            // The result and the goal, both scaled; the matrix in f64 and in f32.
            Solver::ConjugateGradient { .. } => {
                8 * weights + 12 * pairs + panel_bytes(rows, cols, 4)
            }
        };
        let base = self.base.workspace_bytes(rows, cols);
        4 * weights + weights / 8 + base.max(fit) + (16 << 20)
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        self.base.supports(pattern, scope)
    }

    fn prune(
        &self,
        mut weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Pruned> {
        let mut start = weight.as_standard_layout().into_owned();
        let base = self.base.prune(start.view_mut(), stats, target)?;
        let mut report =
            self.refit(weight.view(), start.view_mut(), &base.mask, stats, target.layer)?;
        weight.assign(&start);
        report.notes = base.report.notes;
        Ok(Pruned { mask: base.mask, report })
    }
}
