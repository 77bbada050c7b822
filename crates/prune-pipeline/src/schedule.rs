use std::collections::BTreeMap;

use prune_core::{LayerId, Needs, QuantScheme, TensorInfo, TensorSource, block_of};
use serde::Serialize;

use crate::calibrate::TokenCalibration;
use crate::gradients::ImageCalibration;
use crate::memory::Mebibytes;
use crate::method::Method;
use crate::plan::{Action, Plan, PlannedTensor};
use crate::plan_quantized::{KEEP, quantizer};
use crate::targets::Drift;
use crate::{Calibration, Error, MemoryBudget, Result, Targets};

/// Bytes of a tensor that are read, changed or written at a time.
pub(crate) const PIECE: usize = 4 << 20;

/// What the process itself takes: code, headers, tokenizer, token ids, buffers of the system.
pub(crate) const RESERVE: u64 = 96 << 20;

/// How a run keeps to its memory budget, and what it is estimated to take. Decided before anything
/// is read; nothing in it changes a byte of the output.
///
/// ```no_run
/// # use prune_checkpoint::Checkpoint;
/// # use prune_pipeline::{Plan, Schedule};
/// # fn f(source: &Checkpoint, plan: &Plan) -> prune_pipeline::Result<()> {
/// let schedule = Schedule::new(source, plan, None, "1GiB".parse()?)?;
/// println!("about {} bytes; {} would do", schedule.estimate, schedule.least);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Bytes that the run is estimated to take at its peak.
    pub estimate: u64,
    /// The smallest budget that would do.
    pub least: u64,
    /// The tensor or block that needs it.
    pub least_for: String,
    /// Calibration samples that run through a block side by side, or images through the network; 0
    /// for data-free work.
    pub samples: usize,
    /// Whether hidden states go to a temporary file.
    pub spills: bool,
    /// The most passes over the samples of one block, because its statistics do not all fit.
    pub passes: usize,
    /// Bytes that tensors which are worked on side by side may take together.
    pub(crate) tensors: u64,
    /// Bytes that statistics of one pass may take.
    pub(crate) statistics: u64,
}

/// Bytes that a planned tensor takes while it is worked on.
pub(crate) fn tensor_bytes(
    tensor: &PlannedTensor,
    info: &TensorInfo,
    targets: Targets,
) -> Result<u64> {
    let gram = tensor.action.needs()? == Needs::Gram;
    let work = match &tensor.action {
        Action::Copy => return Ok(2 * PIECE as u64),
        // Read, decoded, encoded, and decoded again for the error.
        Action::Encode { .. } => return Ok(4 * PIECE as u64),
        // A norm.
        Action::Fold { .. } => return Ok(2 * PIECE as u64),
        Action::Prune { .. } | Action::Factorise { .. } => {
            let (rows, cols) = info.matrix_shape()?;
            let work = Method::of(&tensor.action)?.map_or(0, |m| m.workspace_bytes(rows, cols));
            match targets {
                Targets::Dense if gram => work.max(Drift::workspace_bytes(rows, cols)),
                _ => work,
            }
        }
        Action::Quantize { method, scheme, .. } => {
            let (rows, cols) = info.matrix_shape()?;
            let scheme: QuantScheme = scheme.parse()?;
            let codes = rows * cols;
            let made = match method.as_str() {
                KEEP => 2 * codes,
                _ => quantizer(method)?.workspace_bytes(rows, cols),
            };
            // Packed, in words and in bytes; a mask of the zeros.
            made + 2 * scheme.nbytes(rows, cols) + codes / 8
        }
    };
    let (_, cols) = info.matrix_shape()?;
    let values = 4 * info.numel();
    // The reported error multiplies panels of the weight by the Gram matrix in f32.
    let error = if gram { 4 * cols * cols } else { 0 };
    Ok((values + work.max(error) + 4 * PIECE) as u64)
}

/// Models that are run side by side.
pub(crate) fn models(targets: Targets) -> u64 {
    match targets {
        Targets::Own => 1,
        Targets::Dense => 2,
    }
}

/// Bytes of the statistics of a layer.
pub(crate) fn statistics_bytes(needs: Needs, columns: usize, targets: Targets) -> u64 {
    let per_column = 64 * columns as u64;
    let drift = match targets {
        Targets::Own => 0,
        Targets::Dense => Drift::bytes(columns),
    };
    match needs {
        // Gradients are of the whole network, and counted with it.
        Needs::Nothing | Needs::Gradient => 0,
        Needs::Columns => per_column,
        Needs::Gram => per_column + 8 * (columns * columns) as u64 + drift,
    }
}

/// A layer that waits for calibration, with what it takes.
#[derive(Debug, Clone)]
struct Load {
    name: String,
    statistics: u64,
    tensor: u64,
    /// Bytes of its input of one sample, kept until its Gram matrix takes it.
    input: u64,
}

impl Schedule {
    /// The schedule of a plan under `budget`, on the threads of the current pool.
    ///
    /// # Errors
    /// [`Error::Memory`] when the budget is too small, with the least that would do and the tensor
    /// or block that needs it; [`Error::Core`] when the plan is of another checkpoint.
    pub fn new(
        source: &dyn TensorSource,
        plan: &Plan,
        calibration: Option<&Calibration<'_>>,
        budget: MemoryBudget,
    ) -> Result<Self> {
        let threads = rayon::current_num_threads();
        let targets = plan.recipe.targets;
        let mut blocks: BTreeMap<usize, Vec<Load>> = BTreeMap::new();
        let (mut free, mut gradients) = (Vec::new(), false);
        // Scales of layers that share an input, and of what makes it, need all statistics at once.
        let folds = plan.tensors.iter().any(|t| matches!(t.action, Action::Fold { .. }));
        for tensor in &plan.tensors {
            let info = source.info(&tensor.name)?;
            let bytes = tensor_bytes(tensor, info, targets)?;
            let needs = tensor.action.needs()?;
            match block_of(&tensor.name) {
                Some((_, _)) if matches!(tensor.action, Action::Fold { .. }) => {}
                Some((block, _)) if matches!(needs, Needs::Columns | Needs::Gram) => {
                    let (_, cols) = info.matrix_shape()?;
                    let tokens = calibration.map(|c| c.tokens("this plan")).transpose()?;
                    let tokens = tokens.map_or(0, |c| c.windows.length());
                    let gram = needs == Needs::Gram;
                    blocks.entry(block).or_default().push(Load {
                        name: tensor.name.clone(),
                        statistics: statistics_bytes(needs, cols, targets),
                        tensor: bytes,
                        input: if gram { models(targets) * 4 * (tokens * cols) as u64 } else { 0 },
                    });
                }
                _ => {
                    gradients |= needs == Needs::Gradient;
                    free.push((tensor.name.clone(), bytes));
                }
            }
        }
        let mut schedule = Self::data_free(&free, threads, budget);
        if let Some(calibration) = calibration.filter(|_| !blocks.is_empty()) {
            let tokens = calibration.tokens("this plan")?;
            schedule.add_calibrated(&blocks, tokens, models(targets), threads, budget, folds);
        }
        if let Some(calibration) = calibration.filter(|_| gradients) {
            schedule.add_gradients(calibration.images("this plan")?, &free, budget);
        }
        match budget.limit() {
            Some(limit) if schedule.least > limit => Err(Error::Memory {
                budget: limit,
                least: schedule.least,
                what: schedule.least_for,
            }),
            _ => Ok(schedule),
        }
    }

    fn data_free(free: &[(String, u64)], threads: usize, budget: MemoryBudget) -> Self {
        let none = (String::from("the process itself"), 0);
        let (name, largest) = free.iter().max_by_key(|(_, b)| *b).unwrap_or(&none);
        let least = RESERVE + largest;
        // Twice what the threads could hold at once keeps them busy to the end of a wave.
        let wish = 2 * threads as u64 * largest;
        let tensors = budget.limit().map_or(wish, |limit| wish.min(limit.saturating_sub(RESERVE)));
        Self {
            estimate: RESERVE + tensors.max(*largest),
            least,
            least_for: name.clone(),
            samples: 0,
            spills: false,
            passes: 0,
            tensors,
            statistics: 0,
        }
    }

    /// The gradients of the whole network come first, and are held while tensors are pruned.
    fn add_gradients(
        &mut self,
        images: &ImageCalibration<'_>,
        free: &[(String, u64)],
        budget: MemoryBudget,
    ) {
        let (held, pass) = (RESERVE + images.held_bytes(), RESERVE + images.pass_bytes());
        let largest = free.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        if pass.max(held + largest) > self.least {
            self.least = pass.max(held + largest);
            if pass >= held + largest {
                self.least_for = images.pass_name();
            }
        }
        let rest = budget.limit().map_or(u64::MAX, |limit| limit.saturating_sub(held));
        self.tensors = self.tensors.min(rest).max(largest);
        self.samples = self.samples.max(images.at_once());
        self.estimate = self.estimate.max(pass).max(held + self.tensors);
    }

    fn add_calibrated(
        &mut self,
        blocks: &BTreeMap<usize, Vec<Load>>,
        calibration: &TokenCalibration<'_>,
        models: u64,
        threads: usize,
        budget: MemoryBudget,
        folds: bool,
    ) {
        let model = calibration.model;
        let weights = models * model.block_bytes() as u64;
        let sum = |f: fn(&Load) -> u64| blocks.values().map(|b| b.iter().map(f).sum::<u64>()).max();
        let inputs = sum(|l| l.input).unwrap_or(0);
        let sample = model.sample_bytes(calibration.windows.length()) as u64
            + inputs
            + (2 + models) * calibration.state_bytes();
        let hidden = models * calibration.samples() as u64 * calibration.state_bytes();
        let all = sum(|l| l.statistics).unwrap_or(0);
        let every = || blocks.values().flatten();
        let one = if folds { all } else { every().map(|l| l.statistics).max().unwrap_or(0) };
        let heaviest = every().max_by_key(|l| l.statistics + l.tensor);
        let (name, heavy) =
            heaviest.map_or(("", 0), |l| (l.name.as_str(), l.statistics + l.tensor));
        let tensor = every().map(|l| l.tensor).max().unwrap_or(0);

        let observing = sample + one;
        let least = RESERVE + weights + observing.max(heavy);
        if least > self.least {
            self.least = least;
            self.least_for = if heavy > observing {
                name.to_string()
            } else {
                format!("one sample of {} tokens in a block", calibration.windows.length())
            };
        }
        // In order of preference: everything in memory on all threads, then fewer samples side by
        // side, then hidden states in a file; several passes over a block only when nothing else
        // helps.
        let candidates = [false, true]
            .into_iter()
            .flat_map(|spills| (1..=threads).rev().map(move |samples| (spills, samples)));
        let fixed = |spills: bool| RESERVE + weights + if spills { 0 } else { hidden };
        let peak = |spills: bool, samples: usize, statistics: u64| {
            let work = (samples as u64 * sample).max(tensor);
            fixed(spills) + statistics + work
        };
        let limit = budget.limit().unwrap_or(u64::MAX);
        let fits = |statistics: u64| {
            candidates
                .clone()
                .find(|(spills, samples)| peak(*spills, *samples, statistics) <= limit)
        };
        let (spills, samples, statistics) = match fits(all) {
            Some((spills, samples)) => (spills, samples, all),
            None => {
                let (spills, samples) = fits(one).unwrap_or((true, 1));
                let rest = limit.saturating_sub(peak(spills, samples, 0));
                (spills, samples, rest.max(one))
            }
        };
        self.samples = samples;
        self.spills = spills;
        self.statistics = statistics;
        self.passes = blocks
            .values()
            .map(|loads| {
                let loads = loads.iter().map(|l| l.statistics).collect::<Vec<_>>();
                waves(&loads, statistics, usize::MAX).len()
            })
            .max()
            .unwrap_or(1);
        let held = fixed(spills) + statistics;
        // Tensors of a block may share what samples took.
        let tensors = (limit.saturating_sub(held)).min(2 * threads as u64 * tensor).max(tensor);
        self.tensors = self.tensors.min(limit.saturating_sub(RESERVE)).max(tensors);
        let pruning = held + tensors;
        self.estimate =
            self.estimate.max(peak(spills, samples, statistics)).max(pruning.min(limit));
    }

    /// Bytes that tensors of a block may take together while its statistics are held.
    pub(crate) fn tensors_beside(&self, held: u64, budget: MemoryBudget) -> u64 {
        budget.limit().map_or(self.tensors, |limit| limit.saturating_sub(held)).min(self.tensors)
    }
}

/// Cuts a list into runs whose sizes sum to at most `bytes` and that have at most `count` members;
/// a larger one stands alone.
pub(crate) fn waves(sizes: &[u64], bytes: u64, count: usize) -> Vec<std::ops::Range<usize>> {
    let mut waves = Vec::new();
    let (mut first, mut sum) = (0, 0u64);
    for (i, size) in sizes.iter().enumerate() {
        if i > first && (sum.saturating_add(*size) > bytes || i - first >= count) {
            waves.push(first..i);
            (first, sum) = (i, 0);
        }
        sum += size;
    }
    if first < sizes.len() {
        waves.push(first..sizes.len());
    }
    waves
}

/// The layers of a block that are observed together, in order.
pub(crate) fn passes(
    wanted: &[(LayerId, Needs, usize)],
    statistics: u64,
    targets: Targets,
) -> Vec<BTreeMap<LayerId, Needs>> {
    let size =
        |(_, needs, columns): &(LayerId, Needs, usize)| statistics_bytes(*needs, *columns, targets);
    let sizes: Vec<u64> = wanted.iter().map(size).collect();
    waves(&sizes, statistics, usize::MAX)
        .into_iter()
        .map(|range| wanted[range].iter().map(|(id, needs, _)| (id.clone(), *needs)).collect())
        .collect()
}

/// Whether the samples run in memory or through a file, and how many side by side, for passes that
/// only measure: `(spills, samples)`.
pub(crate) fn measuring(calibration: &TokenCalibration<'_>, extra: u64) -> Result<(bool, usize)> {
    let threads = rayon::current_num_threads();
    let Some(limit) = calibration.memory.limit() else { return Ok((false, threads)) };
    let model = calibration.model;
    let sample =
        model.sample_bytes(calibration.windows.length()) as u64 + 3 * calibration.state_bytes();
    let fixed = RESERVE + model.block_bytes() as u64 + extra;
    let hidden = calibration.samples() as u64 * calibration.state_bytes();
    [false, true]
        .into_iter()
        .flat_map(|spills| (1..=threads).rev().map(move |samples| (spills, samples)))
        .find(|(spills, samples)| {
            let hidden = if *spills { 0 } else { hidden };
            fixed + hidden + *samples as u64 * sample <= limit
        })
        .ok_or(Error::Memory {
            budget: limit,
            least: fixed + sample,
            what: format!("one sample of {} tokens in a block", calibration.windows.length()),
        })
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "about {} of memory", Mebibytes(self.estimate))?;
        if self.samples > 0 {
            write!(f, ", {} samples at once", self.samples)?;
        }
        if self.spills {
            f.write_str(", hidden states in a temporary file")?;
        }
        if self.passes > 1 {
            write!(f, ", up to {} passes over a block", self.passes)?;
        }
        write!(f, "; the least that would do: {}, for {}", Mebibytes(self.least), self.least_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_keep_to_their_limits_and_lose_nothing() {
        assert_eq!(waves(&[3, 3, 3, 9, 1], 6, 10), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(waves(&[1; 5], 100, 2), [0..2, 2..4, 4..5]);
        assert_eq!(waves(&[7, 7], 1, 1), [0..1, 1..2]);
        assert!(waves(&[], 1, 1).is_empty());
    }
}
