use candle_core::Tensor;
use prune_core::{LayerId, TensorSource};

use crate::Result;
use crate::ops::round_inputs;
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
    /// See [`crate::LlamaModel::with_rounded_inputs`].
    input_block: Option<usize>,
}

impl Linear {
    pub(crate) fn load(weights: &dyn TensorSource, name: String, bias: bool) -> Result<Self> {
        let weight = load(weights, &format!("{name}.weight"))?;
        let bias = if bias { Some(load(weights, &format!("{name}.bias"))?) } else { None };
        Ok(Self { id: LayerId::new(name), weight, bias, input_block: None })
    }

    /// See [`crate::LlamaModel::with_rounded_inputs`].
    pub(crate) fn with_rounded_inputs(self, input_block: Option<usize>) -> Self {
        Self { input_block, ..self }
    }

    /// `x W^T + b` of `(tokens, in)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = round_inputs(x, self.input_block)?.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}
