use ndarray::{ArrayView2, ArrayViewMut2};
use prune_core::{
    Error, Fidelity, LayerId, LayerStats, Mask, Needs, Pattern, PruneReport, Pruned, Pruner,
    Result, Scope, Target, check_target, selectable,
};

use super::factor::Factor;
use super::order::ColumnOrder;
use super::removal::Removal;
use super::sweep::{Sweep, Swept};
use crate::gram_layer::{GramLayer, check_damping};
use crate::unit_layer::panel_bytes;

/// Removes weights column by column and lets the columns that follow make up for each: SparseGPT
/// (Frantar and Alistarh 2023, arXiv 2301.00774).
///
/// With `H = XᵀX + λI` and `H⁻¹ = Uᵀ U`, column j in its turn loses the weights of lowest `w² /
/// U_jj²`, and every row i of what follows moves by `−(w_ij / U_jj) · U_j`. The mask adapts: it is
/// chosen on weights that already make up for what went before, for N:M a group at a time, else a
/// block of columns at a time, each block giving up the same part.
///
/// - By layer (the default) all weights of a block of columns compete; by row, each row gives up
///   its part of every block. Blocks of weights and channels go by the sum of their scores.
/// - λ is 0.01 of the mean diagonal. Where the Gram matrix is so indefinite that this does not
///   help, it is raised tenfold as often as it takes, which [`PruneReport`] tells, or refused.
/// - Dead input channels, 0 on every token, go first and stay out of the mean; the weights of one
///   that are left stay as they are. The released code sets them to 0, also beyond the mask.
///
/// The result does not depend on the number of threads. With N:M or a given mask it does not depend
/// on the size of a block but for rounding. O(n³/3) in f64 for the factor and O(m·n²) in f32, where
/// the weight is `m x n`; 17 bytes a weight of a square layer at the peak, besides the weight and
/// the Gram matrix.
///
/// [`Fidelity::Released`] removes, of each block of an unstructured mask, everything up to the
/// score at index `⌊sparsity · weights⌋` inclusive: one weight more than asked for, and its equals.
///
/// ```
/// use ndarray::{Array2, array};
/// use prune_core::{GramAccumulator, LayerId, LayerStats, Pattern, Pruner, Scope, Seed, Target};
/// use prune_unstructured::SparseGpt;
///
/// // Two channels that always agree: one takes over from the other.
/// let mut gram = GramAccumulator::new(2);
/// gram.update("x", array![[1.0, 1.0], [2.0, 2.0]].view())?;
/// let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
/// let mut weight = array![[1.0, 1.5]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerLayer);
/// let target = Target { layer: &layer, pattern, scope, remove: 1, stream: Seed::new(0).stream("fc") };
/// let pruned = SparseGpt::default().prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight[[0, 0]], 0.0);
/// assert!((weight[[0, 1]] - 2.49f32).abs() < 0.01);
/// assert_eq!(pruned.report.damping, Some(0.01));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseGpt {
    block: usize,
    damping: f64,
    order: ColumnOrder,
    fidelity: Fidelity,
}

impl Default for SparseGpt {
    /// As the authors': blocks of 128 columns, damping 0.01, columns as they stand. Exact counts.
    fn default() -> Self {
        Self { block: 128, damping: 0.01, order: ColumnOrder::Stored, fidelity: Fidelity::Exact }
    }
}

impl SparseGpt {
    /// Columns of a block, within which an unstructured mask is chosen at once. For N:M and blocks
    /// of weights rounded down to whole groups, and at least one.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0.
    pub fn with_block_size(self, block: usize) -> Result<Self> {
        if block == 0 {
            return Err(Error::OutOfRange {
                what: "block size of SparseGPT".to_string(),
                found: "0".to_string(),
                expected: "at least 1 column".to_string(),
            });
        }
        Ok(Self { block, ..self })
    }

    /// What is added to the diagonal of the Gram matrix, over its mean.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 <= damping <= 1`.
    pub fn with_damping(self, damping: f64) -> Result<Self> {
        Ok(Self { damping: check_damping("SparseGPT", damping)?, ..self })
    }

    /// The order in which columns are pruned.
    #[must_use]
    pub fn with_order(self, order: ColumnOrder) -> Self {
        Self { order, ..self }
    }

    /// Exact counts or the threshold of the released code.
    #[must_use]
    pub fn with_fidelity(self, fidelity: Fidelity) -> Self {
        Self { fidelity, ..self }
    }

    /// Removes what `mask` removes and lets the weights that it keeps make up for that, in one
    /// pass. [`Refit`](crate::Refit) finds the best such weights, at a higher price.
    ///
    /// # Errors
    /// [`Error::Shape`] when mask or statistics do not fit the weight; [`Error::NotFinite`];
    /// [`Error::NoStatistics`]; [`Error::Indefinite`]. On error the weight is left as it was.
    pub fn compensate(
        &self,
        weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        mask: &Mask,
        layer: &LayerId,
    ) -> Result<PruneReport> {
        if (mask.rows(), mask.cols()) != weight.dim() {
            return Err(Error::Shape {
                what: format!("{layer} (mask)"),
                found: vec![mask.rows(), mask.cols()],
                expected: weight.shape().to_vec(),
            });
        }
        if weight.is_empty() {
            return Ok(PruneReport::default());
        }
        let found = GramLayer::new(self.name(), layer, weight.view(), stats)?;
        Ok(self.sweep(weight, &found, 1, &Removal::Fixed(mask))?.report)
    }

    fn sweep(
        &self,
        mut weight: ArrayViewMut2<'_, f32>,
        layer: &GramLayer<'_>,
        group: usize,
        removal: &Removal<'_>,
    ) -> Result<Pruned> {
        let order = self.order.of(layer.gram.diag(), group);
        let factor = Factor::new(layer, &order, self.damping)?;
        let dead: Vec<bool> = (0..order.len()).map(|c| layer.is_dead(c)).collect();
        let sweep = Sweep {
            factor: &factor,
            order: &order,
            dead: &dead,
            removal,
            block: (self.block / group * group).max(group),
        };
        // A score that overflows is found in the middle of the sweep: it works on a copy.
        let mut pruned = weight.as_standard_layout().into_owned();
        let Swept { kept, loss } = sweep.run(pruned.view_mut())?;
        check_result(layer.id, pruned.view())?;
        weight.assign(&pruned);
        let report = PruneReport {
            damping: Some(factor.damping),
            damping_raised: factor.raised,
            dead_columns: layer.dead,
            loss: Some(loss * layer.scale),
            ..PruneReport::default()
        };
        Ok(Pruned { mask: kept, report })
    }
}

fn check_result(layer: &LayerId, weight: ArrayView2<'_, f32>) -> Result<()> {
    let values = weight.as_slice().unwrap_or_default();
    prune_core::check_finite(&format!("{layer} (weights after pruning)"), values)
}

impl Pruner for SparseGpt {
    fn name(&self) -> &str {
        "sparsegpt"
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        let (weights, pairs) = (rows * cols, cols * cols);
        // The damped matrix, its factor and the tiles in which it is made; then the factor, the
        // weights so far, what is carried to later columns, a flag for each weight, the mask.
        let sweep = 8 * pairs + 9 * weights + weights / 8;
        let block = 4 * self.block.min(cols) * (2 * rows + cols) + panel_bytes(rows, self.block, 1);
        (20 * pairs).max(sweep + block) + (6 << 20)
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
        let (rows, cols) = weight.dim();
        check_target(self.name(), target, rows, cols)?;
        if weight.is_empty() {
            return Ok(Pruned::new(Mask::all_kept(rows, cols)));
        }
        let layer = GramLayer::new(self.name(), target.layer, weight.view(), stats)?;
        let group = match target.pattern {
            Pattern::NM { m, .. } => m,
            Pattern::Block { cols, .. } => cols,
            _ => 1,
        };
        self.sweep(weight, &layer, group, &Removal::Adaptive { target, fidelity: self.fidelity })
    }
}
