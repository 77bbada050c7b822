use candle_core::Tensor;
use prune_core::{LayerId, TensorSource};

use crate::Result;
use crate::tensors::load;

/// A linear layer's place in a block, its shape and whether it has a bias.
pub(crate) struct Spec {
    pub(crate) role: &'static str,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bias: bool,
}

/// A linear layer with its weights.
pub(crate) struct Linear {
    pub(crate) id: LayerId,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(weights: &dyn TensorSource, name: String, bias: bool) -> Result<Self> {
        let weight = load(weights, &format!("{name}.weight"))?;
        let bias = if bias { Some(load(weights, &format!("{name}.bias"))?) } else { None };
        Ok(Self { id: LayerId::new(name), weight, bias })
    }

    /// `x W^T + b` of `(tokens, in)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}
