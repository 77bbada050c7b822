use ndarray::ArrayView2;
use prune_core::{Error, Result, check_finite};

use super::{StoredFloat, out_of_range};

/// The dimensions of a model's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Attention layers.
    pub layers: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Channels of a layer's keys: all heads side by side.
    pub fn width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes that keys and values of one token take in all layers at 16 bits.
    pub fn half_bytes(self) -> usize {
        2 * 2 * self.layers * self.width()
    }

    pub(crate) fn check(self) -> Result<Self> {
        for (what, n) in
            [("layers", self.layers), ("kv_heads", self.kv_heads), ("head_dim", self.head_dim)]
        {
            if n == 0 || n > 1 << 20 {
                return Err(out_of_range(format!("KV shape: {what}"), n, "between 1 and 2^20"));
            }
        }
        Ok(self)
    }

    pub(crate) fn check_layer(self, layer: usize) -> Result<()> {
        if layer < self.layers {
            return Ok(());
        }
        Err(out_of_range("KV cache layer", layer, format!("below {}", self.layers)))
    }
}

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Side::Key => "keys",
            Side::Value => "values",
        }
    }
}

/// Is shown consecutive tokens of a cache: the index of the first, and `(tokens, kv_heads ·
/// head_dim)` numbers.
pub type BlockReader<'a> = dyn FnMut(usize, ArrayView2<'_, f32>) -> Result<()> + 'a;

/// A place for the keys and values of a growing sequence.
///
/// Layers are filled independently of one another, each in the order of its tokens. Rows are all
/// heads of one token side by side.
pub trait KvStore: Send + Sync {
    /// The dimensions.
    fn shape(&self) -> KvShape;

    /// Tokens that a layer holds; 0 for a layer that does not exist.
    fn tokens(&self, layer: usize) -> usize;

    /// Adds tokens: keys and values of the same shape `(tokens, kv_heads · head_dim)`. On error
    /// nothing is added.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], [`Error::OutOfRange`], each naming layer and side.
    fn append(
        &mut self,
        layer: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<()>;

    /// Shows every token of one side of a layer, in order, a block at a time.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a layer that does not exist; what the reader gives.
    fn read(&self, layer: usize, side: Side, reader: &mut BlockReader<'_>) -> Result<()>;

    /// Bytes that are allocated, used or not.
    fn bytes(&self) -> usize;

    /// A copy, to continue one beginning in several ways.
    fn boxed_clone(&self) -> Box<dyn KvStore>;
}

/// Checks what [`KvStore::append`] is given.
pub(crate) fn check_append(
    shape: KvShape,
    layer: usize,
    sides: [(Side, ArrayView2<'_, f32>); 2],
    numbers: StoredFloat,
) -> Result<()> {
    shape.check_layer(layer)?;
    let tokens = sides[0].1.nrows();
    for (side, rows) in sides {
        let what = || format!("layer {layer}, {}", side.name());
        if rows.dim() != (tokens, shape.width()) {
            return Err(Error::Shape {
                what: what(),
                found: rows.shape().to_vec(),
                expected: vec![tokens, shape.width()],
            });
        }
        match rows.as_slice() {
            Some(values) => check_finite(&what(), values)?,
            None => check_finite(&what(), &rows.iter().copied().collect::<Vec<_>>())?,
        }
        let limit = numbers.limit();
        if let Some(x) = rows.iter().find(|x| x.abs() > limit) {
            let expected = match numbers {
                StoredFloat::F16 => "within ±65504; store f32 numbers instead (StoredFloat::F32)",
                StoredFloat::F32 => "within ±1e38",
            };
            return Err(out_of_range(what(), x, expected));
        }
    }
    Ok(())
}
