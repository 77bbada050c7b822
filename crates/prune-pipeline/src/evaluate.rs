use std::time::Instant;

use ndarray::{Array2, s};
use prune_core::{BlockModel, Head, ModelKind, NextToken, Objective, TensorSource};
use rayon::prelude::*;
use serde::Serialize;

use crate::calibrate::{TokenCalibration, forward};
use crate::hidden::HiddenStates;
use crate::{Calibration, Error, Result, TokenWindows};

/// A model with its weights.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    /// The model.
    pub model: &'a dyn BlockModel,
    /// Where its weights are.
    pub weights: &'a dyn TensorSource,
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// `exp` of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Predictions: every token of a window but the first.
    pub tokens: usize,
    /// Mean Kullback-Leibler divergence of this model's next-token distribution from the
    /// baseline's, in nats a token; absent without a baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// The baseline's perplexity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_perplexity: Option<f64>,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// Tokens whose logits are held together.
const CHUNK: usize = 128;

/// Perplexity over windows without overlap, every prediction weighing the same; with a baseline
/// also the divergence from it. Runs all windows a block at a time, so that one block's weights
/// are in memory.
///
/// # Errors
/// [`Error::Plan`] when the two vocabularies differ or a window has fewer than two tokens;
/// [`Error::Core`], with [`prune_core::Error::NoHead`] for an encoder.
pub fn evaluate(
    subject: Weighted<'_>,
    windows: &TokenWindows,
    baseline: Option<Weighted<'_>>,
) -> Result<Evaluation> {
    let start = Instant::now();
    if windows.length() < 2 {
        return Err(Error::plan("windows", "one token is too short; predictions need two"));
    }
    if let Some(base) = baseline
        && base.model.vocab_size() != subject.model.vocab_size()
    {
        let (a, b) = (subject.model.vocab_size(), base.model.vocab_size());
        return Err(Error::plan("baseline", format!("has {b} token ids; the model has {a}")));
    }
    let last = run(subject, windows)?;
    let base = baseline.map(|b| run(b, windows)).transpose()?;
    let all = sums(windows, last.parts(), base.as_ref().map(Last::parts))?;
    let tokens = windows.windows().len() * (windows.length() - 1);
    let seconds = start.elapsed().as_secs_f64();
    let mean = |sum: f64| sum / tokens as f64;
    Ok(Evaluation {
        perplexity: mean(all.loss).exp(),
        tokens,
        kl: base.is_some().then(|| mean(all.kl)),
        baseline_perplexity: base.is_some().then(|| mean(all.base_loss).exp()),
        seconds,
        tokens_per_second: tokens as f64 / seconds,
    })
}

/// The mean negative log-likelihood of a token on calibration windows, as an [`Objective`]: what
/// zeroth-order scores perturb.
///
/// ```no_run
/// # use prune_core::{Objective, TensorSource};
/// # use prune_pipeline::{Calibration, CalibrationLoss};
/// # fn f(calibration: &Calibration<'_>, weights: &dyn TensorSource) -> Result<(), Box<dyn std::error::Error>> {
/// let mut objective = CalibrationLoss::new(calibration, 8)?;
/// let loss = objective.loss(weights)?;
/// # Ok(())
/// # }
/// ```
pub struct CalibrationLoss<'a> {
    model: &'a dyn BlockModel,
    windows: TokenWindows,
    /// The first block that is run, and what enters it.
    entering: Option<(usize, HiddenStates)>,
    /// What turns hidden states into logits, once it stays as it is.
    head: Option<Box<dyn Head>>,
}

impl<'a> CalibrationLoss<'a> {
    /// The loss on the first `windows` windows, or on all when there are fewer.
    ///
    /// # Errors
    /// [`Error::Plan`] for windows of fewer than two tokens; [`Error::OtherData`] for images.
    pub fn new(calibration: &Calibration<'a>, windows: usize) -> Result<Self> {
        let mut batches = Self::batches(calibration, windows)?;
        Ok(batches.swap_remove(0))
    }

    /// The losses on consecutive batches of `windows` windows, in order; the last may be smaller.
    /// There is at least one.
    ///
    /// # Errors
    /// [`Error::Plan`] for windows of fewer than two tokens, or none; [`Error::OtherData`] for
    /// images.
    pub fn batches(calibration: &Calibration<'a>, windows: usize) -> Result<Vec<Self>> {
        let calibration = calibration.tokens("the calibration loss")?;
        let all = calibration.windows;
        if all.length() < 2 {
            return Err(Error::plan("windows", "one token is too short; predictions need two"));
        }
        if all.windows().is_empty() {
            return Err(Error::plan("windows", "there is none"));
        }
        let model = calibration.model;
        let one = |windows| Self { model, windows, entering: None, head: None };
        Ok(all.batches(windows).into_iter().map(one).collect())
    }

    /// Takes the embedding, the blocks before `block` and the output matrix as they are in `weights`,
    /// from now on: the first are run here and the last is read, and no more with each loss. Going on from one block to the next runs each
    /// block once; the hidden states stay in memory.
    ///
    /// # Errors
    /// [`Error::Plan`] for a block before the one that was reached; [`Error::Core`].
    pub fn start_at(&mut self, block: usize, weights: &dyn TensorSource) -> Result<()> {
        let (first, mut hidden) = match self.entering.take() {
            Some((first, hidden)) => (first, hidden),
            None => (0, embedded(self.model, &self.windows, weights)?),
        };
        if block < first {
            let reason = format!("block {block} was asked for after block {first}");
            return Err(Error::plan("calibration loss", reason));
        }
        run_blocks(self.model, weights, first..block, &mut hidden)?;
        if self.head.is_none() {
            self.head = Some(self.model.load_head(weights)?);
        }
        self.entering = Some((block, hidden));
        Ok(())
    }
}

impl Objective for CalibrationLoss<'_> {
    fn loss(&mut self, weights: &dyn TensorSource) -> prune_core::Result<f64> {
        let run = || {
            let (first, mut hidden) = match &self.entering {
                Some((first, hidden)) => (*first, hidden.copy()?),
                None => (0, embedded(self.model, &self.windows, weights)?),
            };
            run_blocks(self.model, weights, first..self.model.blocks(), &mut hidden)?;
            let own;
            let head = match &self.head {
                Some(head) => &**head,
                None => {
                    own = self.model.load_head(weights)?;
                    &*own
                }
            };
            let predictions = self.windows.windows().len() * (self.windows.length() - 1);
            let all = sums(&self.windows, (&hidden, head), None)?;
            Ok(all.loss / predictions as f64)
        };
        run().map_err(|e: Error| prune_core::Error::external("the calibration loss", e))
    }
}

/// The last hidden states of all windows, and what turns them into logits.
struct Last {
    hidden: HiddenStates,
    head: Box<dyn Head>,
}

impl Last {
    fn parts(&self) -> (&HiddenStates, &dyn Head) {
        (&self.hidden, &*self.head)
    }
}

fn run(subject: Weighted<'_>, windows: &TokenWindows) -> Result<Last> {
    let Weighted { model, weights } = subject;
    if model.kind() == ModelKind::Encoder {
        // Refuses, before all blocks are run rather than after.
        model.load_head(weights)?;
    }
    let mut hidden = embedded(model, windows, weights)?;
    run_blocks(model, weights, 0..model.blocks(), &mut hidden)?;
    Ok(Last { hidden, head: model.load_head(weights)? })
}

/// What enters block 0.
fn embedded(
    model: &dyn BlockModel,
    windows: &TokenWindows,
    weights: &dyn TensorSource,
) -> Result<HiddenStates> {
    TokenCalibration::new(model, windows).embed(weights, false)
}

fn run_blocks(
    model: &dyn BlockModel,
    weights: &dyn TensorSource,
    blocks: std::ops::Range<usize>,
    hidden: &mut HiddenStates,
) -> Result<()> {
    let at_once = rayon::current_num_threads();
    for index in blocks {
        forward(&*model.load_block(weights, index)?, hidden, at_once, &|| Ok(()))?;
    }
    Ok(())
}

#[derive(Default)]
struct Sums {
    loss: f64,
    kl: f64,
    base_loss: f64,
}

/// Over all windows, beside those of a baseline.
fn sums(
    windows: &TokenWindows,
    (hidden, head): (&HiddenStates, &dyn Head),
    base: Option<(&HiddenStates, &dyn Head)>,
) -> Result<Sums> {
    let parts: Vec<Sums> = windows
        .windows()
        .par_iter()
        .enumerate()
        .map(|(i, tokens)| {
            let base = match base {
                Some((hidden, head)) => Some((hidden.get(i)?, head)),
                None => None,
            };
            let base = base.as_ref().map(|(hidden, head)| (hidden, *head));
            window_sums(tokens, &hidden.get(i)?, head, base)
        })
        .collect::<Result<_>>()?;
    let mut all = Sums::default();
    for part in parts {
        all.loss += part.loss;
        all.kl += part.kl;
        all.base_loss += part.base_loss;
    }
    Ok(all)
}

fn window_sums(
    tokens: &[u32],
    hidden: &Array2<f32>,
    head: &dyn Head,
    base: Option<(&Array2<f32>, &dyn Head)>,
) -> Result<Sums> {
    let mut sums = Sums::default();
    let predictions = tokens.len() - 1;
    for first in (0..predictions).step_by(CHUNK) {
        let end = (first + CHUNK).min(predictions);
        let logits = head.logits(hidden.slice(s![first..end, ..]))?;
        let base_logits =
            base.map(|(h, head)| head.logits(h.slice(s![first..end, ..]))).transpose()?;
        for (i, row) in logits.outer_iter().enumerate() {
            let target = tokens[first + i + 1];
            let next = NextToken::new(row);
            sums.loss += next.loss(target);
            if let Some(base) = &base_logits {
                let base = NextToken::new(base.row(i));
                sums.base_loss += base.loss(target);
                sums.kl += next.divergence_from(&base);
            }
        }
    }
    Ok(sums)
}
