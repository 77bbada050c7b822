use crate::Mask;

/// What a pruner did to one layer: the mask, and what must be known to judge it.
///
/// ```
/// use prune_core::{Mask, PruneReport, Pruned};
/// let plain = Pruned::new(Mask::all_kept(2, 2));
/// assert_eq!(plain.report, PruneReport::default());
/// ```
#[derive(Debug, Clone)]
pub struct Pruned {
    /// The weights that were kept.
    pub mask: Mask,
    /// What happened on the way.
    pub report: PruneReport,
}

impl Pruned {
    /// A mask with nothing to report.
    pub fn new(mask: Mask) -> Self {
        Self { mask, report: PruneReport::default() }
    }
}

/// What a pruner did besides choosing a mask, for the record of a run. Methods that only rank
/// weights leave it at its default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PruneReport {
    /// What was added to the diagonal of the layer's Gram matrix, over the mean of that diagonal;
    /// the value that worked. `None` for methods that do not damp.
    pub damping: Option<f64>,
    /// How many times the damping had to be raised above the one asked for.
    pub damping_raised: u32,
    /// Input channels that were 0 on every calibration token.
    pub dead_columns: usize,
    /// `tr(ΔW (XᵀX + λI) ΔWᵀ)`, λ being the damping: the squared change of the layer's outputs summed
    /// over the calibration tokens, as the method itself counts it. `None` where it does not.
    pub loss: Option<f64>,
    /// Iterations that an iterative method took.
    pub iterations: Option<u32>,
    /// Anything else that differs from what was asked for, a sentence each.
    pub notes: Vec<String>,
}
