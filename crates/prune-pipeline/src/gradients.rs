use std::collections::BTreeMap;
use std::sync::OnceLock;

use ndarray::Array2;
use prune_core::{ImageModel, LayerId, LayerInfo, LayerStats};

use crate::schedule::RESERVE;
use crate::{Error, Images, MemoryBudget, Result};

/// Images that go through the network together: fixed, because sums depend on it.
const BATCH: usize = 8;

/// A network on images, the images, and the gradients once they are computed.
#[derive(Clone)]
pub(crate) struct ImageCalibration<'a> {
    pub(crate) model: &'a dyn ImageModel,
    pub(crate) images: &'a Images,
    pub(crate) memory: MemoryBudget,
    stats: OnceLock<BTreeMap<LayerId, LayerStats>>,
}

impl<'a> ImageCalibration<'a> {
    pub(crate) fn new(model: &'a dyn ImageModel, images: &'a Images) -> Self {
        Self { model, images, memory: MemoryBudget::default(), stats: OnceLock::new() }
    }

    /// Images of a batch.
    pub(crate) fn at_once(&self) -> usize {
        BATCH.min(self.images.len())
    }

    /// Bytes of the weights, the gradients and the images, which are held to the end.
    pub(crate) fn held_bytes(&self) -> u64 {
        (self.model.weight_bytes() as u64)
            .saturating_add(self.gradient_bytes())
            .saturating_add(self.images.nbytes())
    }

    /// Bytes that are held while the gradients are computed.
    pub(crate) fn pass_bytes(&self) -> u64 {
        let batch = self.model.batch_bytes(self.at_once()) as u64;
        self.held_bytes().saturating_add(self.gradient_bytes()).saturating_add(batch)
    }

    fn gradient_bytes(&self) -> u64 {
        self.model.layers().iter().map(|l| 4 * l.numel() as u64).sum()
    }

    /// What the pass is called where memory does not suffice for it.
    pub(crate) fn pass_name(&self) -> String {
        format!("the gradient of the network on {} images", self.at_once())
    }

    /// Checks that the model takes the images and has the layers, as they are in the checkpoint.
    pub(crate) fn check(&self, layers: &[LayerInfo], method: &str) -> Result<()> {
        let (found, expected) = (self.images.shape(), self.model.image_shape());
        if found != expected {
            return Err(Error::Core(prune_core::Error::Shape {
                what: "calibration images (channels, height, width)".into(),
                found: found.to_vec(),
                expected: expected.to_vec(),
            }));
        }
        let known = |layer: &LayerInfo| {
            self.model.layers().iter().any(|l| l.id == layer.id && l.shape == layer.shape)
        };
        match layers.iter().find(|layer| !known(layer)) {
            Some(layer) => {
                Err(Error::NotObserved { layer: layer.id.to_string(), method: method.into() })
            }
            None => Ok(()),
        }
    }

    /// The mean over all images of the gradient in every layer's weight; computed by the first
    /// call. Batches follow each other and are summed in order, so that nothing but the images
    /// changes a bit.
    pub(crate) fn stats(
        &self,
        pause: &dyn Fn() -> Result<()>,
    ) -> Result<&BTreeMap<LayerId, LayerStats>> {
        if let Some(stats) = self.stats.get() {
            return Ok(stats);
        }
        let least = RESERVE + self.pass_bytes();
        if let Some(budget) = self.memory.limit().filter(|limit| *limit < least) {
            return Err(Error::Memory { budget, least, what: self.pass_name() });
        }
        let mut sums: Vec<Array2<f32>> = Vec::new();
        for batch in self.images.batches(BATCH) {
            pause()?;
            let share = batch.dim().0 as f32 / self.images.len() as f32;
            for (i, gradient) in self.model.gradients(batch)?.into_iter().enumerate() {
                let part = gradient * share;
                match sums.get_mut(i) {
                    Some(sum) => *sum += &part,
                    None => sums.push(part),
                }
            }
        }
        let stats = self.model.layers().iter().zip(sums).map(|(layer, sum)| {
            (layer.id.clone(), LayerStats { gradient: Some(sum), ..LayerStats::default() })
        });
        Ok(self.stats.get_or_init(|| stats.collect()))
    }
}
