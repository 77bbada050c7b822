use ndarray::ArrayViewMut2;
use prune_core::{LayerStats, Needs, Pattern, Pruned, Pruner, Result, Scope, Target};

use crate::SparseGpt;

/// The mask of one pruner with the weights of [`SparseGpt`]: what stays makes up for what goes.
///
/// ```
/// use prune_core::{Pruner, ScorePruner};
/// use prune_unstructured::{Compensated, SparseGpt, Wanda};
/// let pruner = Compensated::new(Box::new(ScorePruner(Wanda)), SparseGpt::default());
/// assert_eq!(pruner.name(), "wanda+obs");
/// ```
pub struct Compensated {
    base: Box<dyn Pruner>,
    name: String,
    update: SparseGpt,
}

impl Compensated {
    /// The mask of `base`, the weights of `update`. Its name is `BASE+obs`.
    pub fn new(base: Box<dyn Pruner>, update: SparseGpt) -> Self {
        let name = format!("{}+obs", base.name());
        Self { base, name, update }
    }
}

impl Pruner for Compensated {
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
        let update = self.update.workspace_bytes(rows, cols);
        4 * rows * cols + self.base.workspace_bytes(rows, cols).max(update)
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        self.base.supports(pattern, scope)
    }

    fn prune(
        &self,
        weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Pruned> {
        let base = self.base.prune(weight.to_owned().view_mut(), stats, target)?;
        let mut report = self.update.compensate(weight, stats, &base.mask, target.layer)?;
        report.notes.splice(..0, base.report.notes);
        Ok(Pruned { mask: base.mask, report })
    }
}
