//! The handwritten digits that ship with the project, and the training of a vision transformer on
//! them: shared by several examples.

use std::error::Error;
use std::fs;
use std::path::Path;

use prune_candle::Vit;
use prune_core::Seed;
use prune_train::vision::{Augment, Images};
use prune_train::{AdamW, AdamWOptions, Dataset, History, Masks, Schedule, TrainOptions, Trainer};

/// The result of everything here.
pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Images of the data set that may be trained on; the other 500 are judged on.
pub const TRAINED: usize = 1297;

/// Pixels and labels of `assets/digits`, a byte each.
///
/// # Errors
/// When a file cannot be read.
pub fn files() -> Result<(Vec<u8>, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/digits");
    Ok((fs::read(folder.join("pixels.u8"))?, fs::read(folder.join("labels.u8"))?))
}

/// The images to train on, which are moved by at most a pixel, and those to judge on.
///
/// # Errors
/// When a file cannot be read or has another length.
pub fn load() -> Result<(Images, Images)> {
    let (pixels, labels) = files()?;
    let (train, test) = Images::digits(&pixels, &labels)?.split(TRAINED);
    Ok((train.augmented(Augment::Crop(1)), test))
}

/// The same with pixels from -1 to 1, as `assets/tiny-vit` takes them.
///
/// # Errors
/// As [`load`].
pub fn load_for_vit() -> Result<(Images, Images)> {
    let (train, test) = load()?;
    Ok((train.normalised(&[0.5], &[0.5])?, test.normalised(&[0.5], &[0.5])?))
}

/// How a vision transformer is trained.
#[derive(Debug, Clone, Copy)]
pub struct Training {
    /// Passes over the images.
    pub epochs: usize,
    /// Peak learning rate; it warms up over the first twentieth and falls along a cosine.
    pub rate: f64,
    /// Of the order of the images and of how they are moved.
    pub seed: u64,
}

/// Trains in batches of 64 with AdamW, judging after every fifth epoch. A weight that `masks` remove
/// stays 0.
///
/// # Errors
/// What the trainer reports.
pub fn train(
    vit: &Vit,
    images: (&Images, &Images),
    training: Training,
    masks: Masks,
) -> Result<History> {
    let batch = 64;
    let epoch = images.0.len() / batch;
    let steps = training.epochs * epoch;
    let options = TrainOptions {
        steps,
        batch,
        schedule: Schedule::Cosine { warmup: steps / 20, least: 0.01 },
        seed: Seed::new(training.seed),
        evaluate_every: 5 * epoch,
        progress: prune_train::Progress::Bar,
        ..TrainOptions::default()
    };
    let adam = AdamWOptions { rate: training.rate, weight_decay: 0.05, ..AdamWOptions::default() };
    let mut trainer = Trainer::new(vit, AdamW::new(adam)?, options)?.with_masks(masks)?;
    Ok(trainer.run(images.0, Some(images.1))?.clone())
}
