use candle_core::{Device, Tensor};
use prune_train::vision::ImageBatch;
use prune_train::{Gradients, Model, Parameters, Tally, cross_entropy};

use super::Vit;
use crate::Result;
use crate::error::as_training;

impl Vit {
    /// Logits `(images, classes)` of a batch.
    fn logits(&self, batch: &ImageBatch) -> Result<Tensor> {
        let config = self.config();
        let shape = (batch.labels.len(), config.channels, config.image_size, config.image_size);
        let size = config.channels * config.image_size * config.image_size;
        if batch.pixels.len() != batch.labels.len() * size {
            return Err(crate::Error::Core(prune_core::Error::Shape {
                what: "pixels of a batch".to_string(),
                found: vec![batch.pixels.len()],
                expected: vec![batch.labels.len(), size],
            }));
        }
        self.forward(&Tensor::from_slice(&batch.pixels, shape, &Device::Cpu)?)
    }

    /// The loss of the logits and its gradient by them.
    fn loss(&self, logits: &Tensor, labels: &[u32], smoothing: f64) -> Result<(Tally, Vec<f32>)> {
        let values = logits.detach().flatten_all()?.to_vec1::<f32>()?;
        Ok(cross_entropy(&values, self.config().classes, labels, smoothing)?)
    }

    fn differentiate(&self, batch: &ImageBatch) -> Result<(Tally, Gradients)> {
        let logits = self.logits(batch)?;
        let (tally, gradient) = self.loss(&logits, &batch.labels, self.label_smoothing)?;
        let gradient = Tensor::from_vec(gradient, logits.shape(), &Device::Cpu)?;
        // A sum whose gradient by the logits is that of the loss.
        let surrogate = (logits * gradient)?.sum_all()?;
        Ok((tally, Gradients::of(&surrogate, &self.parameters)?))
    }
}

/// Cross-entropy of images and their classes; accuracy counts the largest logit.
impl Model for Vit {
    type Batch = ImageBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn gradients(&self, batch: &ImageBatch) -> prune_train::Result<(Tally, Gradients)> {
        self.differentiate(batch).map_err(as_training)
    }

    fn evaluate(&self, batch: &ImageBatch) -> prune_train::Result<Tally> {
        let logits = self.logits(batch).map_err(as_training)?;
        Ok(self.loss(&logits, &batch.labels, 0.0).map_err(as_training)?.0)
    }
}
