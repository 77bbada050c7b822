use ndarray::ArrayView2;
use prune_core::{Error, Result};

use super::store::check_append;
use super::{BlockReader, KvShape, KvStore, Side, StoredFloat};

/// A cache that keeps every number as f32: exact, and the baseline.
///
/// ```
/// use ndarray::array;
/// use prune_quant::kv::{DenseKv, KvShape, KvStore, Side};
/// let mut cache = DenseKv::new(KvShape { layers: 1, kv_heads: 1, head_dim: 2 })?;
/// cache.append(0, array![[1.0, 2.0]].view(), array![[3.0, 4.0]].view())?;
/// assert_eq!(cache.tokens(0), 1);
/// assert_eq!(cache.view(0, Side::Value)?, array![[3.0, 4.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct DenseKv {
    shape: KvShape,
    /// Keys and values of each layer, row-major.
    layers: Vec<[Vec<f32>; 2]>,
}

impl DenseKv {
    /// An empty cache.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a dimension of 0.
    pub fn new(shape: KvShape) -> Result<Self> {
        let shape = shape.check()?;
        Ok(Self { shape, layers: vec![[Vec::new(), Vec::new()]; shape.layers] })
    }

    /// All tokens of one side of a layer, `(tokens, kv_heads · head_dim)`, without a copy.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a layer that does not exist.
    pub fn view(&self, layer: usize, side: Side) -> Result<ArrayView2<'_, f32>> {
        self.shape.check_layer(layer)?;
        let values = &self.layers[layer][side as usize];
        ArrayView2::from_shape((values.len() / self.shape.width(), self.shape.width()), values)
            .map_err(|e| Error::external(format!("layer {layer}, {}", side.name()), e))
    }
}

impl KvStore for DenseKv {
    fn shape(&self) -> KvShape {
        self.shape
    }

    fn tokens(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |[keys, _]| keys.len() / self.shape.width())
    }

    fn append(
        &mut self,
        layer: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<()> {
        let sides = [(Side::Key, keys), (Side::Value, values)];
        check_append(self.shape, layer, sides, StoredFloat::F32)?;
        for (side, rows) in sides {
            self.layers[layer][side as usize].extend(rows.iter());
        }
        Ok(())
    }

    fn read(&self, layer: usize, side: Side, reader: &mut BlockReader<'_>) -> Result<()> {
        let all = self.view(layer, side)?;
        if all.nrows() == 0 { Ok(()) } else { reader(0, all) }
    }

    fn boxed_clone(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> usize {
        let numbers: usize = self.layers.iter().flatten().map(Vec::capacity).sum();
        size_of::<Self>()
            + self.layers.capacity() * size_of::<[Vec<f32>; 2]>()
            + numbers * size_of::<f32>()
    }
}
