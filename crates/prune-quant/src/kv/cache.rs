use ndarray::ArrayView2;
use prune_core::{Error, Result};

use super::side_cache::SideCache;
use super::store::check_append;
use super::{BlockReader, DenseKv, KvConfig, KvShape, KvStore, Side};

/// A quantised cache: appended to a few tokens at a time, read a block at a time.
///
/// What comes back does not depend on the sizes in which tokens were appended: the state machine is
/// KIVI's, a token at a time. By channel, the residual window fills up and is quantised whole; by
/// token, the oldest token of the window is quantised when the next arrives. Nothing is ever
/// quantised twice.
///
/// Memory grows with the tokens in blocks that are allocated whole; [`KvStore::bytes`] counts them
/// as they are, unused places, scales, offsets and the window included.
///
/// Source: KIVI (Liu et al., ICML 2024); mixed widths by layer: KVTuner (ICML 2025).
///
/// ```
/// use ndarray::Array2;
/// use prune_quant::kv::{KvCache, KvConfig, KvScheme, KvShape, KvStore, Side};
///
/// let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 64 };
/// let config = KvConfig::uniform(1, "K8V4".parse()?, KvScheme::kivi())?;
/// let mut cache = KvCache::new(shape, &config)?;
/// let keys = Array2::from_shape_fn((70, 128), |(t, c)| (0.1 * t as f32 + c as f32).sin());
/// cache.append(0, keys.view(), keys.view())?;
/// assert_eq!((cache.quantized(0, Side::Key)?, cache.quantized(0, Side::Value)?), (64, 38));
///
/// let bound = cache.error_bound(0, Side::Key)?;
/// cache.read(0, Side::Key, &mut |first, block| {
///     for (row, kept) in block.outer_iter().enumerate() {
///         let wanted = keys.row(first + row);
///         assert!(kept.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= bound));
///     }
///     Ok(())
/// })?;
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct KvCache {
    shape: KvShape,
    config: KvConfig,
    layers: Vec<[SideCache; 2]>,
}

impl KvCache {
    /// An empty cache. The residual windows are allocated at once.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a dimension of 0 or a group that does not fit the head;
    /// [`Error::Shape`] when the configuration is for another number of layers.
    pub fn new(shape: KvShape, config: &KvConfig) -> Result<Self> {
        let shape = shape.check()?;
        let scheme = config.scheme();
        scheme.check(shape.head_dim)?;
        if config.layers().len() != shape.layers {
            return Err(Error::Shape {
                what: "layers of the KV configuration".to_string(),
                found: vec![config.layers().len()],
                expected: vec![shape.layers],
            });
        }
        let layers = config
            .layers()
            .iter()
            .map(|pair| {
                let side = |bits, grouping| {
                    SideCache::new(shape, bits, grouping, scheme.residual, scheme.numbers)
                };
                [side(pair.key, scheme.key), side(pair.value, scheme.value)]
            })
            .collect();
        Ok(Self { shape, config: config.clone(), layers })
    }

    /// A cache with the tokens of `dense`, as after a prompt that was run in full precision.
    ///
    /// # Errors
    /// As [`KvCache::new`] and [`KvStore::append`].
    pub fn from_dense(dense: &DenseKv, config: &KvConfig) -> Result<Self> {
        let mut cache = Self::new(dense.shape(), config)?;
        for layer in 0..cache.shape.layers {
            let (keys, values) = (dense.view(layer, Side::Key)?, dense.view(layer, Side::Value)?);
            cache.append(layer, keys, values)?;
        }
        Ok(cache)
    }

    /// Widths and scheme.
    pub fn config(&self) -> &KvConfig {
        &self.config
    }

    /// Tokens of one side of a layer that are quantised; the rest are in the residual window.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a layer that does not exist.
    pub fn quantized(&self, layer: usize, side: Side) -> Result<usize> {
        Ok(self.side(layer, side)?.sealed())
    }

    /// No number of this side of the layer differs by more from what was appended: half the largest
    /// scale, and the rounding of the stored format.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a layer that does not exist.
    pub fn error_bound(&self, layer: usize, side: Side) -> Result<f32> {
        Ok(self.side(layer, side)?.error_bound())
    }

    fn side(&self, layer: usize, side: Side) -> Result<&SideCache> {
        self.shape.check_layer(layer)?;
        Ok(&self.layers[layer][side as usize])
    }
}

impl KvStore for KvCache {
    fn shape(&self) -> KvShape {
        self.shape
    }

    fn tokens(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |[keys, _]| keys.tokens())
    }

    fn append(
        &mut self,
        layer: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<()> {
        let sides = [(Side::Key, keys), (Side::Value, values)];
        check_append(self.shape, layer, sides, self.config.scheme().numbers)?;
        for (side, rows) in sides {
            let cache = &mut self.layers[layer][side as usize];
            for row in rows.outer_iter() {
                match row.as_slice() {
                    Some(row) => cache.push(row),
                    None => cache.push(&row.to_vec()),
                }
            }
        }
        Ok(())
    }

    fn read(&self, layer: usize, side: Side, reader: &mut BlockReader<'_>) -> Result<()> {
        self.side(layer, side)?.read(reader)
    }

    fn boxed_clone(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> usize {
        let heap: usize = self.layers.iter().flatten().map(SideCache::heap_bytes).sum();
        size_of::<Self>()
            + self.layers.capacity() * size_of::<[SideCache; 2]>()
            + self.config.heap_bytes()
            + heap
    }
}
