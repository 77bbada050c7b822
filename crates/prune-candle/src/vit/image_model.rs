use candle_core::{Device, Tensor};
use ndarray::{Array2, ArrayView4};
use prune_core::{Error, ImageModel, LayerInfo};

use super::{Vit, VitConfig};

impl ImageModel for Vit {
    fn layers(&self) -> &[LayerInfo] {
        self.layers()
    }

    fn positions(&self, layer: &LayerInfo) -> usize {
        self.positions(layer)
    }

    fn image_shape(&self) -> [usize; 3] {
        let VitConfig { channels, image_size, .. } = *self.config();
        [channels, image_size, image_size]
    }

    fn weight_bytes(&self) -> usize {
        4 * self.parameters.count()
    }

    fn batch_bytes(&self, images: usize) -> usize {
        let config = self.config();
        let tokens = config.tokens();
        // What a block keeps of a token for the way back, in numbers: two norms of six steps, q, k,
        // v, the mixed heads and both sums; five steps of the softmax; the inner layer and its GELU.
        // Half as much again for the gradients in flight.
        let kept =
            24 * config.hidden_size + 6 * config.heads * tokens + 6 * config.intermediate_size;
        6 * kept.saturating_mul(images * tokens * config.layers)
    }

    fn gradients(&self, images: ArrayView4<'_, f32>) -> prune_core::Result<Vec<Array2<f32>>> {
        let values: Vec<f32> = images.iter().copied().collect();
        let images = Tensor::from_vec(values, images.dim(), &Device::Cpu)
            .map_err(|e| Error::external("images", e))?;
        let mut found = self.energy_gradients(&images)?;
        let one = |layer: &LayerInfo| {
            let missing = || Error::UnknownTensor(format!("gradient of {}", layer.id));
            found.remove(&layer.id).ok_or_else(missing)
        };
        self.layers().iter().map(one).collect()
    }
}
