use std::fmt;
use std::sync::Arc;

/// The name of a layer: the checkpoint's own tensor name without `.weight`.
///
/// ```
/// use prune_core::LayerId;
/// let id = LayerId::from_tensor("model.layers.0.self_attn.q_proj.weight");
/// assert_eq!(id.as_str(), "model.layers.0.self_attn.q_proj");
/// assert_eq!(id.weight_name(), "model.layers.0.self_attn.q_proj.weight");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(Arc<str>);

impl LayerId {
    /// A layer by its own name, without `.weight`.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The layer to which a weight tensor belongs.
    pub fn from_tensor(tensor: &str) -> Self {
        Self::new(tensor.strip_suffix(".weight").unwrap_or(tensor))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the layer's weight tensor.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.0)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for LayerId {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// What a layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerKind {
    /// `y = W x`, weight `(out_features, in_features)`.
    Linear,
    /// Convolution, weight `(out_channels, in_channels, kernel_h, kernel_w)`.
    Conv2d,
    /// A table of vectors, weight `(vocabulary, width)`.
    Embedding,
}

/// What is known of one weight-bearing layer without reading its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its name.
    pub id: LayerId,
    /// What it computes.
    pub kind: LayerKind,
    /// The shape of its weight, PyTorch order.
    pub shape: Vec<usize>,
    /// The transformer block it stands in, counted from 0; `None` outside the blocks.
    pub block: Option<usize>,
    /// Its place within the block: `self_attn.q_proj`, `mlp.down_proj`.
    pub role: String,
    /// The layer whose weight this one shares.
    pub tie: Option<LayerId>,
}

impl LayerInfo {
    /// A linear layer with weight `(out_features, in_features)`; block index and role are read
    /// from the name (`model.layers.3.mlp.up_proj` is role `mlp.up_proj` of block 3).
    ///
    /// ```
    /// use prune_core::LayerInfo;
    /// let l = LayerInfo::linear("model.layers.3.mlp.up_proj", 8, 4);
    /// assert_eq!((l.block, l.role.as_str(), l.numel()), (Some(3), "mlp.up_proj", 32));
    /// ```
    pub fn linear(name: impl AsRef<str>, out_features: usize, in_features: usize) -> Self {
        Self::from_name(name.as_ref(), LayerKind::Linear, vec![out_features, in_features])
    }

    /// A layer of any kind; block index and role are read from the name.
    pub fn from_name(name: &str, kind: LayerKind, shape: Vec<usize>) -> Self {
        let (block, role) = match block_of(name) {
            Some((block, role)) => (Some(block), role.to_string()),
            None => (None, name.to_string()),
        };
        Self { id: LayerId::new(name), kind, shape, block, role, tie: None }
    }

    /// The number of weights.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Splits a dotted name at its block index: `model.layers.3.mlp.up_proj` gives
/// `(3, "mlp.up_proj")`. The index is the first component that is a number.
pub fn block_of(name: &str) -> Option<(usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if let Ok(block) = part.parse::<usize>()
            && end + 1 < name.len()
            && start > 0
        {
            return Some((block, &name[end + 1..]));
        }
        start = end + 1;
    }
    None
}
