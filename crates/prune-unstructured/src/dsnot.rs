use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use prune_core::{
    Error, LayerStats, Mask, Needs, Pattern, Pruned, Pruner, Result, Scope, ScorePruner, Target,
};
use rayon::prelude::*;

use crate::Wanda;
use crate::channel_norms::channel_norms;
use crate::gram_layer::check_weight;

/// Whether a swap that turns the sign of a row's error ends the row; see [`Dsnot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SignCheck {
    /// It is not made, and the row is done: the paper.
    #[default]
    Stop,
    /// It is made: what the released script does by default, for patterns other than N:M.
    Ignore,
}

/// Improves the mask of any pruner by swapping weights within rows, without training: dynamic
/// sparse no training (DSnoT, Zhang et al., ICLR 2024).
///
/// What a row of the mask loses on the mean input is `ε = Σ_pruned W_ij · E[X_j]`. While `|ε|` is
/// above a threshold, the pruned weight that explains most of it, by `W_ij · E[X_j] / Var[X_j]`,
/// comes back, and of the kept weights whose removal moves ε back the one of lowest Wanda score
/// goes. In N:M patterns that weight is the lowest of the same group, whatever it does to ε. No
/// weight moves twice, and the values of weights do not change.
///
/// Rows keep the counts that the base pruner gave them. The weights that stay have the values of
/// the dense matrix, also where the base pruner would change them. O(n log n) a row.
///
/// The threshold is absolute: it applies to ε summed over the tokens of one calibration sequence,
/// for which the authors take 2048 tokens. So does this, whatever the length of the sequences that
/// were seen: see [`Dsnot::with_tokens`]. The variance is that of all tokens; the released code
/// averages the variances of the sequences.
///
/// ```
/// use ndarray::array;
/// use prune_core::{ColumnStats, LayerId, LayerStats, Pattern, Pruner, Scope, Seed, Target};
/// use prune_unstructured::{Dsnot, pruner};
///
/// let mut columns = ColumnStats::new(4);
/// columns.update("x", array![[1.0, 1.0, 2.0, 1.0], [1.0, 1.0, -1.0, 3.0]].view())?;
/// let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
/// let mut weight = array![[0.9, 1.0, -1.0, -2.0]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::Unstructured, Scope::PerRow);
/// let target = Target { layer: &layer, pattern, scope, remove: 2, stream: Seed::new(0).stream("fc") };
/// // Wanda would remove 0.9 and 1.0, which leaves the output 1.9 too low on average; with 1.0 for
/// // -1.0, whose input has mean 0.5, it is 0.4 too low.
/// let dsnot = Dsnot::default().with_threshold(1e-3)?;
/// dsnot.prune(weight.view_mut(), &stats, &target)?;
/// assert_eq!(weight, array![[0.0, 1.0, 0.0, -2.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub struct Dsnot {
    base: Box<dyn Pruner>,
    name: String,
    swaps: usize,
    threshold: f64,
    variance_power: f64,
    tokens: f64,
    sign_check: SignCheck,
}

impl Default for Dsnot {
    /// Over [`Wanda`]; at most 50 swaps a row, threshold 0.1 at 2048 tokens, variance to the power
    /// 1, [`SignCheck::Stop`].
    fn default() -> Self {
        let base = Box::new(ScorePruner(Wanda));
        Self { name: "dsnot".to_string(), ..Self::over(base) }
    }
}

impl Dsnot {
    /// Over the mask of another pruner; otherwise as the default. Its name is `BASE+dsnot`.
    pub fn over(base: Box<dyn Pruner>) -> Self {
        let name = format!("{}+dsnot", base.name());
        let sign_check = SignCheck::Stop;
        Self {
            base,
            name,
            swaps: 50,
            threshold: 0.1,
            variance_power: 1.0,
            tokens: 2048.0,
            sign_check,
        }
    }

    /// At most this many swaps a row.
    #[must_use]
    pub fn with_swaps(self, swaps: usize) -> Self {
        Self { swaps, ..self }
    }

    /// Rows whose error is at most this are done.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless finite and at least 0.
    pub fn with_threshold(self, threshold: f64) -> Result<Self> {
        non_negative("threshold of DSnoT", threshold)?;
        Ok(Self { threshold, ..self })
    }

    /// The power of the variance by which weights that may come back are divided.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless finite and at least 0.
    pub fn with_variance_power(self, variance_power: f64) -> Result<Self> {
        non_negative("variance power of DSnoT", variance_power)?;
        Ok(Self { variance_power, ..self })
    }

    /// The number of tokens over which the mean error of a row is summed before it is compared
    /// with the threshold.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0.
    pub fn with_tokens(self, tokens: u32) -> Result<Self> {
        if tokens == 0 {
            return Err(Error::OutOfRange {
                what: "tokens of DSnoT".to_string(),
                found: "0".to_string(),
                expected: "at least 1".to_string(),
            });
        }
        Ok(Self { tokens: f64::from(tokens), ..self })
    }

    /// What a change of sign does.
    #[must_use]
    pub fn with_sign_check(self, sign_check: SignCheck) -> Self {
        Self { sign_check, ..self }
    }

    /// `mask` of `weight` (`out_features x in_features`, dense) after the swaps. Of `target` the
    /// layer and the pattern are read.
    ///
    /// # Errors
    /// [`Error::Shape`] when mask or statistics do not fit the weight; [`Error::NoStatistics`];
    /// [`Error::NotFinite`] for a weight; [`Error::Unsupported`] for blocks and channels.
    pub fn refine(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        mask: &Mask,
        target: &Target<'_>,
    ) -> Result<Mask> {
        self.supports(target.pattern, target.scope)?;
        check_weight(target.layer, weight)?;
        if (mask.rows(), mask.cols()) != weight.dim() {
            return Err(Error::Shape {
                what: format!("{} (mask)", target.layer),
                found: vec![mask.rows(), mask.cols()],
                expected: weight.shape().to_vec(),
            });
        }
        let channels = self.channels(weight.ncols(), stats, target)?;
        let group = match target.pattern {
            Pattern::NM { m, .. } => Some(m),
            _ => None,
        };
        let swaps: Vec<Vec<Swap>> = weight
            .axis_iter(Axis(0))
            .into_par_iter()
            .enumerate()
            .map(|(row, weights)| {
                let kept: Vec<bool> = (0..mask.cols()).map(|c| mask.is_kept(row, c)).collect();
                self.swap_row(weights, &kept, &channels, group)
            })
            .collect();
        let mut refined = mask.clone();
        for (row, swaps) in swaps.into_iter().enumerate() {
            for swap in swaps {
                refined.keep(row, swap.back);
                refined.remove(row, swap.gone);
            }
        }
        Ok(refined)
    }

    fn channels(&self, cols: usize, stats: &LayerStats, target: &Target<'_>) -> Result<Channels> {
        let norms = channel_norms(&self.name, target, cols, stats)?;
        let columns = stats.require_columns(target.layer, &self.name)?;
        let variance = columns.variance();
        let mean_variance = variance.iter().sum::<f64>() / cols.max(1) as f64;
        // A channel that never varies explains a constant error best; the floor keeps its rank
        // finite.
        let floor = (1e-12 * mean_variance).max(f64::MIN_POSITIVE);
        let spreads = variance.iter().map(|v| v.max(floor).powf(self.variance_power)).collect();
        let sums = columns.mean().iter().map(|m| m * self.tokens).collect();
        Ok(Channels { norms, sums, spreads })
    }

    fn swap_row(
        &self,
        weights: ArrayView1<'_, f32>,
        kept: &[bool],
        channels: &Channels,
        group: Option<usize>,
    ) -> Vec<Swap> {
        let share: Vec<f64> =
            weights.iter().zip(&channels.sums).map(|(w, s)| f64::from(*w) * s).collect();
        let score = |c: usize| f64::from(weights[c].abs()) * channels.norms[c];
        let (kept_columns, pruned): (Vec<usize>, Vec<usize>) =
            (0..kept.len()).partition(|&c| kept[c]);
        let mut error: f64 = pruned.iter().map(|&c| share[c]).sum();
        let first_sign = sign(error);

        // Each side's queue ends at its most urgent entry. Ties: the later column from the
        // positive end, the earlier from the negative end, as in one ascending stable sort.
        let urgency = |c: usize| share[c] / channels.spreads[c];
        let mut positive: Vec<usize> = pruned.iter().copied().filter(|&c| share[c] > 0.0).collect();
        let mut negative: Vec<usize> = pruned.iter().copied().filter(|&c| share[c] < 0.0).collect();
        positive.sort_by(|&a, &b| urgency(a).total_cmp(&urgency(b)));
        negative.sort_by(|&a, &b| urgency(b).total_cmp(&urgency(a)).then(b.cmp(&a)));
        let mut candidates = match group {
            None => Candidates::row(kept_columns, &score, &share),
            Some(size) => Candidates::Groups { free: kept.to_vec(), size },
        };

        let mut swaps = Vec::new();
        while swaps.len() < self.swaps && error.abs() > self.threshold {
            let side = if error > 0.0 { &mut positive } else { &mut negative };
            let Some(back) = side.pop() else { break };
            let Some(gone) = candidates.take(error, back, &score) else { break };
            let after = error + share[gone] - share[back];
            if self.sign_check == SignCheck::Stop && sign(after) != first_sign {
                break;
            }
            error = after;
            swaps.push(Swap { back, gone });
        }
        swaps
    }
}

impl Pruner for Dsnot {
    fn name(&self) -> &str {
        &self.name
    }

    fn needs(&self) -> Needs {
        self.base.needs().max(Needs::Columns)
    }

    fn default_scope(&self) -> Scope {
        self.base.default_scope()
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        // A copy for the base, and on each thread the queues of a row.
        let queues = 64 * cols * rayon::current_num_threads() + 16 * self.swaps.min(cols) * rows;
        4 * rows * cols + self.base.workspace_bytes(rows, cols).max(queues)
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        if matches!(pattern, Pattern::Block { .. } | Pattern::Channels) {
            return Err(Error::Unsupported {
                method: self.name.clone(),
                pattern,
                scope,
                reason: "single weights are swapped; refit the mask instead (`BASE+refit`)".into(),
            });
        }
        self.base.supports(pattern, scope)
    }

    fn prune(
        &self,
        weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Pruned> {
        self.supports(target.pattern, target.scope)?;
        let mut pruned = self.base.prune(weight.to_owned().view_mut(), stats, target)?;
        pruned.mask = self.refine(weight.view(), stats, &pruned.mask, target)?;
        // What the base says of its own weights is not true of these.
        pruned.report.loss = None;
        pruned.mask.apply(weight)?;
        Ok(pruned)
    }
}

/// What is read of the input channels.
struct Channels {
    norms: Vec<f64>,
    /// Mean times the number of tokens.
    sums: Vec<f64>,
    /// Variance to its power, above 0.
    spreads: Vec<f64>,
}

struct Swap {
    back: usize,
    gone: usize,
}

/// The kept weights of a row that may go.
enum Candidates {
    /// By the sign of their share in the output, each queue ending at the lowest score.
    Row { positive: Vec<usize>, negative: Vec<usize> },
    /// Those of each group that were kept from the start and are still there.
    Groups { free: Vec<bool>, size: usize },
}

impl Candidates {
    fn row(mut kept: Vec<usize>, score: &dyn Fn(usize) -> f64, share: &[f64]) -> Self {
        kept.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(b.cmp(&a)));
        let positive = kept.iter().copied().filter(|&c| share[c] > 0.0).collect();
        let negative = kept.iter().copied().filter(|&c| share[c] < 0.0).collect();
        Candidates::Row { positive, negative }
    }

    /// The next to go when `back` comes back at this error.
    fn take(&mut self, error: f64, back: usize, score: &dyn Fn(usize) -> f64) -> Option<usize> {
        match self {
            Candidates::Row { positive, negative } => {
                if error < 0.0 {
                    positive.pop()
                } else {
                    negative.pop()
                }
            }
            Candidates::Groups { free, size } => {
                let first = back - back % *size;
                let lowest = (first..first + *size)
                    .filter(|&c| free[c])
                    .min_by(|&a, &b| score(a).total_cmp(&score(b)))?;
                free[lowest] = false;
                Some(lowest)
            }
        }
    }
}

/// −1, 0 or 1.
fn sign(x: f64) -> i8 {
    i8::from(x > 0.0) - i8::from(x < 0.0)
}

fn non_negative(what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::OutOfRange {
        what: what.to_string(),
        found: value.to_string(),
        expected: "a finite number of at least 0".to_string(),
    })
}
