//! What a classifier is worth beside its accuracy: whether its confidence can be believed, whether
//! it knows what it does not know, what noise does to it.
//!
//! Source: Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022, section 5, after
//! Guo et al. 2017 (calibration), Hendrycks and Gimpel 2017 (unknown images), Goodfellow et al.
//! 2015 (FGSM).

use prune_core::Seed;

use super::{ImageBatch, Images, Size, VisionModel};
use crate::{Dataset, Error, Result, Tally, cross_entropy};

/// A prediction: the probability of the most probable class, and whether it is right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// The probability.
    pub confidence: f64,
    /// Whether the class is that of the label.
    pub correct: bool,
}

/// The predictions of a model for all images of a set.
///
/// # Errors
/// [`prune_core::Error::Shape`] for images of another size than the model's;
/// [`prune_core::Error::NotFinite`] for a logit; what the data report.
pub fn predictions(model: &VisionModel, images: &Images, batch: usize) -> Result<Vec<Prediction>> {
    check_size(model, images)?;
    let mut all = Vec::with_capacity(images.len());
    let samples: Vec<usize> = (0..images.len()).collect();
    for samples in samples.chunks(batch.max(1)) {
        let batch = images.plain(samples)?;
        let logits = model.logits(&batch.pixels)?;
        prune_core::check_finite("logits", &logits)?;
        for (row, label) in logits.chunks(model.classes()).zip(&batch.labels) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|l| f64::from(l - max).exp()).sum();
            let best = row.iter().position(|l| *l == max);
            all.push(Prediction { confidence: 1.0 / sum, correct: best == Some(*label as usize) });
        }
    }
    Ok(all)
}

/// The expected calibration error over `bins` equal ranges of confidence: the mean distance between
/// confidence and accuracy, weighted by the predictions in a range. 0 without predictions.
///
/// ```
/// use prune_train::vision::reliability::{Prediction, calibration_error};
/// let sure = |correct| Prediction { confidence: 0.95, correct };
/// let error = calibration_error(&[sure(true), sure(false)], 15);
/// assert!((error - 0.45).abs() < 1e-12);
/// ```
pub fn calibration_error(predictions: &[Prediction], bins: usize) -> f64 {
    let bins = bins.max(1);
    let mut sums = vec![(0.0, 0.0); bins];
    for p in predictions {
        // A bin is open below and closed above.
        let bin = ((p.confidence * bins as f64).ceil() as usize).clamp(1, bins) - 1;
        sums[bin].0 += p.confidence;
        sums[bin].1 += f64::from(u8::from(p.correct));
    }
    let distance: f64 = sums.iter().map(|(confidence, right)| (confidence - right).abs()).sum();
    distance / predictions.len().max(1) as f64
}

/// The area under the curve of true over false alarms when confidence tells known from unknown
/// images: the chance that a known image has the higher one, ties half. ½ is chance.
///
/// ```
/// use prune_train::vision::reliability::{Prediction, detection};
/// let at = |confidence| Prediction { confidence, correct: true };
/// assert_eq!(detection(&[at(0.9), at(0.5)], &[at(0.5), at(0.3)]), 0.875);
/// ```
pub fn detection(known: &[Prediction], unknown: &[Prediction]) -> f64 {
    if known.is_empty() || unknown.is_empty() {
        return 0.5;
    }
    let mut all: Vec<(f64, bool)> = known.iter().map(|p| (p.confidence, true)).collect();
    all.extend(unknown.iter().map(|p| (p.confidence, false)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Mann and Whitney, with the mean rank for ties.
    let (mut ranks, mut at) = (0.0, 0);
    while at < all.len() {
        let end = at + all[at..].iter().take_while(|p| p.0.total_cmp(&all[at].0).is_eq()).count();
        let rank = (at + end + 1) as f64 / 2.0;
        ranks += rank * all[at..end].iter().filter(|p| p.1).count() as f64;
        at = end;
    }
    let (n, m) = (known.len() as f64, unknown.len() as f64);
    (ranks - n * (n + 1.0) / 2.0) / (n * m)
}

/// What happens to images before they are classified.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Disturbance {
    /// Normal noise of this deviation, as a share of full brightness.
    Noise {
        /// The deviation, 0 to 1.
        deviation: f64,
        /// Where it comes from.
        seed: Seed,
    },
    /// A step of this size, as a share of full brightness, up the gradient of the loss by its sign
    /// (the fast gradient sign method).
    Fgsm {
        /// The size, 0 to 1: 8/255 is usual.
        size: f64,
    },
}

/// The loss and accuracy of a model on disturbed images, which stay within full brightness.
///
/// # Errors
/// [`prune_core::Error::Shape`] for images of another size than the model's; what the model and the
/// data report.
pub fn disturbed(
    model: &VisionModel,
    images: &Images,
    disturbance: Disturbance,
    batch: usize,
) -> Result<Tally> {
    check_size(model, images)?;
    let samples: Vec<usize> = (0..images.len()).collect();
    let mut sum = Tally::default();
    for (number, samples) in samples.chunks(batch.max(1)).enumerate() {
        let mut batch = images.plain(samples)?;
        match disturbance {
            Disturbance::Noise { deviation, seed } => {
                let mut stream = seed.stream(&format!("noise of batch {number}"));
                each(&mut batch, images, |_, channel| {
                    let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
                    let angle = std::f64::consts::TAU * stream.uniform();
                    let unit = deviation / f64::from(images.deviation(channel));
                    (radius * angle.cos() * unit) as f32
                });
            }
            Disturbance::Fgsm { size } => {
                let gradient = model.input_gradient(&batch)?;
                each(&mut batch, images, |i, channel| {
                    let step = size as f32 / images.deviation(channel);
                    match gradient[i] {
                        g if g > 0.0 => step,
                        g if g < 0.0 => -step,
                        _ => 0.0,
                    }
                });
            }
        }
        let logits = model.logits(&batch.pixels)?;
        sum = sum + cross_entropy(&logits, model.classes(), &batch.labels, 0.0)?.0;
    }
    Ok(sum)
}

fn check_size(model: &VisionModel, images: &Images) -> Result<()> {
    let network = model.network();
    match network.size(network.input()) {
        Some(size) if size != images.size() => {
            let dims = |s: Size| [s.channels, s.height, s.width];
            Err(Error::shape("images", &dims(images.size()), &dims(size)))
        }
        _ => Ok(()),
    }
}

/// Moves every pixel by `change(index, channel)` within the range of its channel.
fn each(batch: &mut ImageBatch, images: &Images, mut change: impl FnMut(usize, usize) -> f32) {
    let size = images.size();
    for (i, pixel) in batch.pixels.iter_mut().enumerate() {
        let channel = i / size.places() % size.channels;
        let (low, high) = images.range(channel);
        *pixel = (*pixel + change(i, channel)).clamp(low, high);
    }
}
