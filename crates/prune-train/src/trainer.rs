use std::path::Path;

use candle_core::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::history::Log;
use crate::values::with_values;
use crate::{
    Dataset, Error, Gradients, History, Hook, Keep, Masks, Model, Optimizer, Order, Progress,
    Record, Result, StepContext, Tally, TrainOptions, checkpoint, evaluate,
};

/// The training loop: batches in a seeded order, gradients, clipping, a step, masks; measurements,
/// checkpoints, a log.
///
/// The same seed gives the same bits, whether training is interrupted or not, and for any number of
/// threads as far as the model's own sums do (the networks of [`vision`](crate::vision) do; candle's
/// products do not promise it).
///
/// ```
/// use prune_core::Seed;
/// use prune_train::{Sgd, SgdOptions, TrainOptions, Trainer, evaluate, vision};
///
/// let (train, heldout) = vision::Images::digits(include_bytes!("../../../assets/digits/pixels.u8"),
///     include_bytes!("../../../assets/digits/labels.u8"))?.split(1297);
/// let model = vision::Network::mlp(&[1, 8, 8], &[32], 10)?.build(Seed::new(0))?;
/// let options = TrainOptions { steps: 60, batch: 64, ..TrainOptions::default() };
/// let mut trainer = Trainer::new(&model, Sgd::new(SgdOptions::default())?, options)?;
/// trainer.run(&train, Some(&heldout))?;
/// assert!(evaluate(&model, &heldout, 256)?.accuracy() > 0.8);
/// # Ok::<(), prune_train::Error>(())
/// ```
pub struct Trainer<'a, M: Model> {
    model: &'a M,
    optimizer: Box<dyn Optimizer + 'a>,
    options: TrainOptions,
    masks: Masks,
    hooks: Vec<Box<dyn Hook + 'a>>,
    state: State,
    best: Option<Vec<Tensor>>,
}

/// Where training is: what a checkpoint holds besides tensors. No times, so that the same training
/// writes the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    step: usize,
    run: Run,
    optimizer: String,
    best_loss: Option<f64>,
    without_better: usize,
    stopped: bool,
    history: History,
    hooks: Vec<(String, serde_json::Value)>,
}

/// What a resumed training has to have in common with the one that wrote the checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Run {
    seed: u64,
    batch: usize,
    accumulate: usize,
    keep: Keep,
    /// Weights under masks, and how many of them stay.
    masked: (usize, usize),
    /// Samples of the training data, once it is known.
    samples: Option<usize>,
}

impl Run {
    /// The first thing in which two trainings differ: what, here, there.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let parts = |run: &Self| {
            [
                ("seed", run.seed.to_string()),
                ("samples of a batch", run.batch.to_string()),
                ("batches of a step", run.accumulate.to_string()),
                ("rule for the parameters to keep", format!("{:?}", run.keep)),
                ("masked weights", format!("{} with {} kept", run.masked.0, run.masked.1)),
            ]
        };
        let mut pairs = parts(self).into_iter().zip(parts(other));
        let different = pairs.find(|(a, b)| a != b);
        different.map(|((what, found), (_, expected))| (what, found, expected))
    }
}

impl<'a, M: Model> Trainer<'a, M> {
    /// A trainer at step 0.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] naming the option.
    pub fn new(
        model: &'a M,
        optimizer: impl Optimizer + 'a,
        options: TrainOptions,
    ) -> Result<Self> {
        options.check()?;
        let optimizer = Box::new(optimizer);
        let run = Run {
            seed: options.seed.value(),
            batch: options.batch,
            accumulate: options.accumulate,
            keep: options.keep,
            ..Run::default()
        };
        let optimizer_name = optimizer.name().to_string();
        let state = State { run, optimizer: optimizer_name, ..State::default() };
        Ok(Self {
            model,
            optimizer,
            options,
            masks: Masks::default(),
            hooks: Vec::new(),
            state,
            best: None,
        })
    }

    /// Keeps masked weights at zero; applied to the weights at once.
    ///
    /// # Errors
    /// As [`Masks::apply`].
    pub fn with_masks(mut self, masks: Masks) -> Result<Self> {
        masks.apply(self.model.parameters())?;
        self.state.run.masked = (masks.weights(), masks.kept());
        self.masks = masks;
        Ok(self)
    }

    /// Adds something to do before every step.
    pub fn with_hook(mut self, hook: impl Hook + 'a) -> Self {
        self.hooks.push(Box::new(hook));
        self
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.state.step
    }

    /// The steps so far.
    pub fn history(&self) -> &History {
        &self.state.history
    }

    /// How many numbers the optimiser holds.
    pub fn optimizer_len(&self) -> usize {
        self.optimizer.state_len()
    }

    /// One step with given batches, whose gradients are averaged by their numbers of predictions.
    ///
    /// # Errors
    /// [`Error::Diverged`] when loss or gradients are not finite; what model and hooks report.
    pub fn step(&mut self, batches: &[M::Batch], epoch_steps: usize) -> Result<Record> {
        let parameters = self.model.parameters();
        let step = self.state.step;
        let mut factors = vec![1.0; parameters.len()];
        for hook in &mut self.hooks {
            hook.before_step(&mut StepContext {
                step,
                epoch_steps,
                parameters,
                optimizer: &mut *self.optimizer,
                factors: &mut factors,
            })?;
        }
        let mut sum = Tally::default();
        let mut gradients = Gradients::new(parameters.len());
        for batch in batches {
            let (tally, mut own) = self.model.gradients(batch)?;
            if batches.len() > 1 {
                own.scale(tally.count as f64)?;
            }
            sum = sum + tally;
            match batches.len() {
                1 => gradients = own,
                _ => gradients.add_all(own)?,
            }
        }
        if batches.len() > 1 {
            gradients.scale(1.0 / sum.count.max(1) as f64)?;
        }
        let diverged = |what, value| Error::Diverged { step, what, value };
        if !sum.loss().is_finite() {
            return Err(diverged("loss", sum.loss()));
        }
        self.masks.apply_to(&gradients, parameters)?;
        let norm = match self.options.clip {
            Some(most) => gradients.clip(most)?,
            None => gradients.norm()?,
        };
        if !norm.is_finite() {
            return Err(diverged("norm of the gradients", norm));
        }
        let factor = self.options.schedule.factor(step, self.options.steps);
        factors.iter_mut().for_each(|f| *f *= factor);
        self.optimizer.step(parameters, gradients, &factors)?;
        self.masks.apply(parameters)?;
        self.state.step += 1;
        Ok(Record {
            step: self.state.step,
            epoch: step / epoch_steps.max(1),
            rate: self.optimizer.rate() * factor,
            loss: sum.loss(),
            accuracy: sum.accuracy(),
            gradient_norm: norm,
            heldout_loss: None,
            heldout_accuracy: None,
        })
    }

    /// Trains to the last step, or until held-out loss has not fallen for long enough.
    ///
    /// # Errors
    /// As [`Trainer::step`]; [`prune_core::Error::OutOfRange`] when the batch has more samples than
    /// the data, when there is no held-out data and the options ask for the best parameters or for
    /// patience, and when a resumed training gets data of another size; [`Error::File`] for
    /// checkpoints and the log.
    pub fn run<D, E>(&mut self, train: &D, heldout: Option<&E>) -> Result<&History>
    where
        D: Dataset<Batch = M::Batch>,
        E: Dataset<Batch = M::Batch>,
    {
        let judged = heldout.map_or(0, |data| data.len());
        let judge = self.options.keep == Keep::Best || self.options.patience.is_some();
        if judged == 0 && (judge || heldout.is_some()) {
            return Err(Error::out_of_range("samples of the held-out data", 0, "at least 1"));
        }
        if let Some(before) = self.state.run.samples.filter(|n| *n != train.len()) {
            let expected = format!("{before}, as before the training was interrupted");
            return Err(Error::out_of_range("samples to train on", train.len(), expected));
        }
        self.state.run.samples = Some(train.len());
        let ended = self.train(train, heldout);
        for hook in &mut self.hooks {
            hook.after_run(self.model.parameters());
        }
        ended?;
        Ok(&self.state.history)
    }

    fn train<D, E>(&mut self, train: &D, heldout: Option<&E>) -> Result<()>
    where
        D: Dataset<Batch = M::Batch>,
        E: Dataset<Batch = M::Batch>,
    {
        let options = self.options.clone();
        let mut order = Order::new(train.len(), options.batch, options.seed)?;
        let epoch_steps = (order.batches() / options.accumulate).max(1);
        let log = options.log.as_deref();
        let mut log = log.map(|path| Log::create(path, self.history())).transpose()?;
        let bar = bar(options.progress, options.steps, self.state.step);
        while self.state.step < options.steps && !self.state.stopped {
            let first = self.state.step * options.accumulate;
            let batches = (first..first + options.accumulate).map(|number| {
                let mut stream = options.seed.stream(&format!("batch {number}"));
                train.batch(order.batch(number), &mut stream)
            });
            let batches = batches.collect::<Result<Vec<_>>>()?;
            let mut record = self.step(&batches, epoch_steps)?;
            record.epoch = first / order.batches();
            drop(batches);
            let last = self.state.step == options.steps;
            if let Some(heldout) = heldout
                && (last || self.state.step.is_multiple_of(options.evaluate_every))
            {
                let tally = evaluate(self.model, heldout, options.evaluate_batch)?;
                record.heldout_loss = Some(tally.loss());
                record.heldout_accuracy = Some(tally.accuracy());
                self.note(tally.loss())?;
            }
            if let Some(log) = &mut log {
                log.write(&record)?;
            }
            self.state.history.records.push(record);
            bar.set_message(format!("loss {:.4}", record.loss));
            bar.inc(1);
            if let Some(path) = &options.checkpoint
                && (last
                    || self.state.stopped
                    || self.state.step.is_multiple_of(options.checkpoint_every))
            {
                self.save(path)?;
            }
        }
        bar.finish_and_clear();
        if let (Keep::Best, Some(best)) = (options.keep, &self.best) {
            self.model.parameters().restore(best)?;
        }
        Ok(())
    }

    /// Takes a held-out loss up: the best parameters, patience.
    fn note(&mut self, loss: f64) -> Result<()> {
        if !loss.is_finite() {
            let step = self.state.step - 1;
            return Err(Error::Diverged { step, what: "loss on held-out data", value: loss });
        }
        if self.state.best_loss.is_none_or(|best| loss < best) {
            self.state.best_loss = Some(loss);
            self.state.without_better = 0;
            if self.options.keep == Keep::Best {
                self.best = Some(self.model.parameters().snapshot()?);
            }
        } else {
            self.state.without_better += 1;
        }
        self.state.stopped =
            self.options.patience.is_some_and(|most| self.state.without_better >= most);
        Ok(())
    }

    /// Writes parameters, optimiser state, best parameters and the position in the data into one
    /// safetensors file; the file is replaced when the new one is whole.
    ///
    /// # Errors
    /// [`Error::File`]; [`prune_core::Error::NotFinite`] naming a parameter: the file before stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let parameters = self.model.parameters();
        for parameter in parameters.iter() {
            with_values(parameter.var(), |values| {
                Ok(prune_core::check_finite(parameter.name(), values)?)
            })?;
        }
        let mut tensors = checkpoint::named("model.", parameters);
        tensors.extend(self.optimizer.save(parameters)?);
        if let Some(best) = &self.best {
            let named = parameters.iter().zip(best);
            tensors.extend(named.map(|(p, t)| (format!("best.{}", p.name()), t.clone())));
        }
        let hooks = self.hooks.iter().filter_map(|h| h.state());
        let hooks = hooks.map(|(name, state)| (name.to_string(), state)).collect();
        let state = serde_json::to_value(State { hooks, ..self.state.clone() })
            .map_err(|e| Error::format(path, "state", e, "finite numbers"))?;
        checkpoint::write(path, tensors, &state)
    }

    /// Goes on from a checkpoint of the same model, optimiser, seed, batches, masks and hooks. The
    /// number of steps, the schedule and the patience may be others. After an error the model is as
    /// it was.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Format`] for a file that is no checkpoint, for one of another
    /// optimiser, seed, batch, or of other masks, and for the state of a hook that there is not;
    /// [`prune_core::Error::UnknownTensor`] and [`prune_core::Error::Shape`] for one of another
    /// model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let (tensors, state) = checkpoint::read(path)?;
        let state: State = serde_json::from_value(state)
            .map_err(|e| Error::format(path, "state", e, "that of a trainer"))?;
        if state.optimizer != self.state.optimizer {
            let expected = self.state.optimizer.clone();
            return Err(Error::format(path, "optimiser", &state.optimizer, expected));
        }
        if let Some((what, found, expected)) = state.run.difference(&self.state.run) {
            return Err(Error::format(path, what, found, expected));
        }
        let parameters = self.model.parameters();
        let values = checkpoint::of_parameters("model.", parameters, &tensors)?;
        for (layer, mask) in self.masks.iter() {
            let name = layer.weight_name();
            let Some(number) = parameters.number(&name) else { continue };
            let removed = mask.complement();
            let left = with_values(&values[number], |values| {
                Ok(removed
                    .kept_indices()
                    .find_map(|i| values.get(i).filter(|v| **v != 0.0).copied()))
            })?;
            if let Some(value) = left {
                let what = format!("weight of `{name}` that the masks remove");
                return Err(Error::format(path, what, value, "0: are these the same masks?"));
            }
        }
        for (name, state) in &state.hooks {
            let mut taken = false;
            for hook in &mut self.hooks {
                taken |= hook.restore(name, state)?;
            }
            if !taken {
                return Err(Error::format(path, "hook", name, "those of this trainer"));
            }
        }
        self.optimizer.load(parameters, &tensors)?;
        parameters.restore(&values)?;
        let best = |p: &crate::Parameter| tensors.get(&format!("best.{}", p.name())).cloned();
        self.best = parameters.iter().map(best).collect();
        self.state = state;
        // Another patience may go on where the one before had enough.
        let most = self.options.patience;
        self.state.stopped = most.is_some_and(|most| self.state.without_better >= most);
        Ok(())
    }
}

fn bar(progress: Progress, steps: usize, done: usize) -> ProgressBar {
    if progress == Progress::Hidden {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64).with_position(done as u64);
    // The template is fixed; should a later version refuse it, the plain bar does.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta} left") {
        bar.set_style(style);
    }
    bar
}
