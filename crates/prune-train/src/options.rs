use std::path::PathBuf;

use prune_core::Seed;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Schedule};

/// Which parameters training ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Keep {
    /// Those of the last step.
    #[default]
    Last,
    /// Those of the lowest held-out loss; costs a copy of the parameters.
    Best,
}

/// Whether a bar shows how far training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Progress {
    /// No.
    #[default]
    Hidden,
    /// On standard error, with loss and the time that is left.
    Bar,
}

/// Options of [`Trainer`](crate::Trainer).
///
/// ```
/// use prune_train::{Schedule, TrainOptions};
/// let options = TrainOptions {
///     steps: 200,
///     batch: 32,
///     schedule: Schedule::Cosine { warmup: 20, least: 0.0 },
///     clip: Some(1.0),
///     ..TrainOptions::default()
/// };
/// assert!(options.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// Steps of the optimiser.
    pub steps: usize,
    /// Samples of a batch.
    pub batch: usize,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: usize,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Gradients longer than this are scaled down to it.
    pub clip: Option<f64>,
    /// Seed of the order of samples and of what is random about them.
    pub seed: Seed,
    /// Steps between two measurements on held-out data; the last step is always measured.
    pub evaluate_every: usize,
    /// Samples of a batch of held-out data.
    pub evaluate_batch: usize,
    /// Ends training after so many measurements without a lower held-out loss.
    pub patience: Option<usize>,
    /// Which parameters training ends with.
    pub keep: Keep,
    /// File that gets the state of training.
    pub checkpoint: Option<PathBuf>,
    /// Steps between two checkpoints; the last step always writes one.
    pub checkpoint_every: usize,
    /// File that gets a JSON line a step.
    pub log: Option<PathBuf>,
    /// Whether a bar shows how far training is.
    pub progress: Progress,
}

impl Default for TrainOptions {
    /// 1000 steps of 128 samples at a constant rate; no clipping, checkpoints or log.
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 128,
            accumulate: 1,
            schedule: Schedule::Constant,
            clip: None,
            seed: Seed::new(0),
            evaluate_every: usize::MAX,
            evaluate_batch: 256,
            patience: None,
            keep: Keep::Last,
            checkpoint: None,
            checkpoint_every: usize::MAX,
            log: None,
            progress: Progress::Hidden,
        }
    }
}

impl TrainOptions {
    /// An error for numbers that make no sense.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`].
    pub fn check(&self) -> Result<()> {
        for (what, value) in [
            ("batches of a step", self.accumulate),
            ("steps between measurements", self.evaluate_every),
            ("steps between checkpoints", self.checkpoint_every),
            ("samples of a held-out batch", self.evaluate_batch),
            ("patience", self.patience.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::out_of_range(what, 0, "at least 1"));
            }
        }
        if let Some(clip) = self.clip
            && !(clip > 0.0 && clip.is_finite())
        {
            return Err(Error::out_of_range("norm to clip to", clip, "finite and above 0"));
        }
        self.schedule.check()
    }
}
