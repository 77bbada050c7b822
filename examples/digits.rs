//! The handwritten digits of `assets/digits`, and the training of a vision transformer on them:
//! shared by `train_tiny_vit` and `lpvit`.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use prune_candle::Vit;
use prune_core::{LayerId, Mask, Seed, SeedStream};

/// The result of everything here.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Height and width of an image.
pub const SIDE: usize = 8;
/// Images of the data set that are trained on; the rest are judged on.
const TRAINED: usize = 1297;
/// Images that go through the model at once when it is judged.
const JUDGED_AT_ONCE: usize = 250;

/// Images and their labels.
pub struct Digits {
    /// A number in −1..=1 a pixel.
    pixels: Vec<f32>,
    labels: Vec<u32>,
}

impl Digits {
    /// The images to train on and those to judge on.
    ///
    /// # Errors
    /// When the files are missing or of unequal numbers of images.
    pub fn load(folder: &Path) -> Result<(Self, Self)> {
        let pixels = fs::read(folder.join("pixels.u8"))?;
        let labels = fs::read(folder.join("labels.u8"))?;
        if pixels.len() != labels.len() * SIDE * SIDE || labels.len() <= TRAINED {
            return Err("pixels.u8 and labels.u8 do not fit each other".into());
        }
        let digits = |pixels: &[u8], labels: &[u8]| Self {
            pixels: pixels.iter().map(|p| f32::from(*p) / 8.0 - 1.0).collect(),
            labels: labels.iter().map(|l| u32::from(*l)).collect(),
        };
        let (first, second) = pixels.split_at(TRAINED * SIDE * SIDE);
        Ok((digits(first, &labels[..TRAINED]), digits(second, &labels[TRAINED..])))
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images by their indices, `(images, 1, 8, 8)`.
    ///
    /// # Errors
    /// What candle gives.
    pub fn images(&self, indices: &[usize]) -> Result<Tensor> {
        let size = SIDE * SIDE;
        let pixels = indices.iter().flat_map(|i| &self.pixels[i * size..(i + 1) * size]);
        self.tensor(pixels.copied().collect(), indices.len())
    }

    /// The same, each image moved by at most a pixel in each direction.
    fn moved(&self, indices: &[usize], stream: &mut SeedStream) -> Result<Tensor> {
        let mut pixels = Vec::with_capacity(indices.len() * SIDE * SIDE);
        for i in indices {
            let image = &self.pixels[i * SIDE * SIDE..(i + 1) * SIDE * SIDE];
            let (down, right) = (stream.below(3) as usize, stream.below(3) as usize);
            for y in down..down + SIDE {
                for x in right..right + SIDE {
                    // Shifted by one, so that the border is what lies outside.
                    let inside = (1..=SIDE).contains(&y) && (1..=SIDE).contains(&x);
                    pixels.push(if inside { image[(y - 1) * SIDE + x - 1] } else { -1.0 });
                }
            }
        }
        self.tensor(pixels, indices.len())
    }

    fn tensor(&self, pixels: Vec<f32>, count: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(pixels, (count, 1, SIDE, SIDE), &Device::Cpu)?)
    }
}

/// The part of the images that the model gets right.
///
/// # Errors
/// What candle gives.
pub fn accuracy(vit: &Vit, digits: &Digits) -> Result<f64> {
    let all: Vec<usize> = (0..digits.len()).collect();
    let mut right = 0;
    for part in all.chunks(JUDGED_AT_ONCE) {
        let guesses = vit.forward(&digits.images(part)?)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        right += guesses.iter().zip(part).filter(|(g, i)| **g == digits.labels[**i]).count();
    }
    Ok(right as f64 / digits.len().max(1) as f64)
}

/// How a model is trained.
#[derive(Debug, Clone, Copy)]
pub struct Training {
    /// Passes over the images.
    pub epochs: usize,
    /// Images of a step.
    pub batch: usize,
    /// Peak learning rate; it warms up over the first twentieth and falls along a cosine.
    pub rate: f64,
    /// Weight decay of everything but vectors.
    pub weight_decay: f64,
    /// The part of the label that is spread over all classes.
    pub smoothing: f64,
    /// Of the order of the images and of how they are moved.
    pub seed: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self { epochs: 60, batch: 64, rate: 2e-3, weight_decay: 0.05, smoothing: 0.1, seed: 0 }
    }
}

/// Trains a model on randomly moved images. A weight that `masks` removes is put back to 0 after
/// every step. `observe` is told the epoch and its mean loss.
///
/// # Errors
/// What candle gives.
pub fn train(
    vit: &Vit,
    digits: &Digits,
    training: &Training,
    masks: &HashMap<LayerId, Mask>,
    observe: &mut dyn FnMut(usize, f64) -> Result<()>,
) -> Result<()> {
    let mut stream = Seed::new(training.seed).stream("training");
    let optimizer = |matrices: bool| {
        let vars = vit.vars().filter(|(_, var)| (var.rank() > 1) == matrices);
        let weight_decay = if matrices { training.weight_decay } else { 0.0 };
        let params = ParamsAdamW { lr: training.rate, weight_decay, ..ParamsAdamW::default() };
        AdamW::new(vars.map(|(_, var)| var.clone()).collect(), params)
    };
    let mut optimizers = [optimizer(true)?, optimizer(false)?];
    let steps = (training.epochs * digits.len().div_ceil(training.batch)) as f64;
    let (warm_up, mut step) = ((steps / 20.0).max(1.0), 0.0);
    let mut order: Vec<usize> = (0..digits.len()).collect();
    for epoch in 1..=training.epochs {
        for i in (1..order.len()).rev() {
            order.swap(i, stream.below(i as u64 + 1) as usize);
        }
        let mut sum = 0.0;
        for part in order.chunks(training.batch) {
            step += 1.0;
            let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step / steps).cos());
            let rate = training.rate * (step / warm_up).min(1.0) * cosine.max(0.01);
            let loss = loss(vit, digits, part, training.smoothing, &mut stream)?;
            let gradients = loss.backward()?;
            for optimizer in &mut optimizers {
                optimizer.set_learning_rate(rate);
                optimizer.step(&gradients)?;
            }
            for (layer, mask) in masks {
                let mut weight = vit.weight(layer)?;
                mask.apply(weight.view_mut())?;
                vit.set_weight(layer, weight.view())?;
            }
            sum += f64::from(loss.to_scalar::<f32>()?) * part.len() as f64;
        }
        observe(epoch, sum / digits.len() as f64)?;
    }
    Ok(())
}

/// Cross-entropy with smoothed labels.
fn loss(
    vit: &Vit,
    digits: &Digits,
    part: &[usize],
    smoothing: f64,
    stream: &mut SeedStream,
) -> Result<Tensor> {
    let labels: Vec<u32> = part.iter().map(|i| digits.labels[*i]).collect();
    let labels = Tensor::from_vec(labels, (part.len(), 1), &Device::Cpu)?;
    let logits = vit.forward(&digits.moved(part, stream)?)?;
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_norm = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_likelihood = shifted.broadcast_sub(&log_norm)?;
    let right = log_likelihood.gather(&labels, 1)?.mean_all()?;
    let all = log_likelihood.mean_all()?;
    Ok(((right * (smoothing - 1.0))? - (all * smoothing)?)?)
}
