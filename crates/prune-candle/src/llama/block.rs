use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use ndarray::{Array2, Array3, ArrayView2};
use prune_core::{Block, Head, LayerId, Observer, TensorSource};
use prune_quant::kv::KvStore;
use rayon::prelude::*;

use super::LlamaModel;
use super::attention::Attention;
use crate::linear::Linear;
use crate::ops::{round_inputs, swiglu};
use crate::tensors::{Show, block_output, load, to_array, to_array3, to_tensor, with_view};
use crate::{Error, KvOrder, Result};

/// A root-mean-square norm.
pub(super) struct Norm {
    weight: Tensor,
    eps: f32,
}

impl Norm {
    pub(super) fn load(weights: &dyn TensorSource, name: &str, eps: f64) -> Result<Self> {
        Ok(Self { weight: load(weights, name)?, eps: eps as f32 })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm(x, &self.weight, self.eps)?)
    }
}

/// One block of a [`LlamaModel`], with its weights.
pub(crate) struct LlamaBlock {
    attention: Attention,
    input_norm: Norm,
    post_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Names the block in errors.
    name: String,
}

impl LlamaBlock {
    pub(crate) fn load(
        model: &LlamaModel,
        weights: &dyn TensorSource,
        index: usize,
    ) -> Result<Self> {
        let config = &model.config;
        if index >= config.num_hidden_layers {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "block index".to_string(),
                found: index.to_string(),
                expected: format!("below {}", config.num_hidden_layers),
            }));
        }
        let name = format!("model.layers.{index}");
        let linear = |role: &str, bias| {
            let linear = Linear::load(weights, format!("{name}.{role}"), bias)?;
            Ok::<_, Error>(linear.with_rounded_inputs(model.input_block))
        };
        let norm =
            |role: &str| Norm::load(weights, &format!("{name}.{role}.weight"), config.rms_norm_eps);
        let optional = |role: &str| config.qk_norm.then(|| norm(role)).transpose();
        let attention = Attention {
            q: linear("self_attn.q_proj", config.qkv_bias)?,
            k: linear("self_attn.k_proj", config.qkv_bias)?,
            v: linear("self_attn.v_proj", config.qkv_bias)?,
            o: linear("self_attn.o_proj", config.output_bias)?,
            q_norm: optional("self_attn.q_norm")?,
            k_norm: optional("self_attn.k_norm")?,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rotary: Arc::clone(&model.rotary),
            sliding_window: config.sliding_window,
        };
        Ok(Self {
            attention,
            input_norm: norm("input_layernorm")?,
            post_norm: norm("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj", config.mlp_bias)?,
            up: linear("mlp.up_proj", config.mlp_bias)?,
            down: linear("mlp.down_proj", config.mlp_bias)?,
            name,
        })
    }

    /// Runs the block up to the input of `down_proj`, showing the input of every linear layer;
    /// returns that input and the residual stream that its output is added to.
    fn run(&self, hidden: ArrayView2<'_, f32>, show: &mut Show<'_>) -> Result<(Tensor, Tensor)> {
        self.attention.check_length(hidden.nrows())?;
        let a = &self.attention;
        let x = to_tensor(hidden)?;
        let normed = self.input_norm.forward(&x)?;
        show(&[&a.q.id, &a.k.id, &a.v.id], &normed)?;
        let mixed = a.mix(&normed)?;
        show(&[&a.o.id], &mixed)?;
        self.feed_forward((x + a.o.forward(&mixed)?)?, show)
    }

    /// The second half of [`LlamaBlock::run`].
    fn feed_forward(&self, x: Tensor, show: &mut Show<'_>) -> Result<(Tensor, Tensor)> {
        let normed = self.post_norm.forward(&x)?;
        show(&[&self.gate.id, &self.up.id], &normed)?;
        let inner = swiglu(&self.gate.forward(&normed)?, &self.up.forward(&normed)?)?;
        show(&[&self.down.id], &inner)?;
        Ok((inner, x))
    }

    /// The block's output for the next tokens of several sequences, whose rows of `x` the spans
    /// name; layer `layer` of their caches takes keys and values up.
    pub(crate) fn step(
        &self,
        x: Tensor,
        spans: &mut [Span<'_>],
        layer: usize,
        order: KvOrder,
    ) -> Result<Tensor> {
        let a = &self.attention;
        let projected = a.project(&self.input_norm.forward(&x)?)?;
        let mixed: Vec<Tensor> = spans
            .par_iter_mut()
            .map(|span| {
                let rows = projected.rows(span.rows.start, span.rows.len())?;
                a.mix_cached(&rows, layer, span.cache, order)
            })
            .collect::<Result<_>>()?;
        let x = (x + a.o.forward(&Tensor::cat(&mixed, 0)?)?)?;
        let (inner, x) = self.feed_forward(x, &mut |_, _| Ok(()))?;
        Ok((x + self.down.forward(&inner)?)?)
    }

    /// Queries, keys and values of a whole sequence, `(heads, tokens, head_dim)`, as they are
    /// multiplied.
    pub(crate) fn attention_heads(&self, hidden: ArrayView2<'_, f32>) -> Result<[Array3<f32>; 3]> {
        let a = &self.attention;
        a.check_length(hidden.nrows())?;
        let normed = self.input_norm.forward(&to_tensor(hidden)?)?;
        let heads = a.heads(&a.project(&normed)?, 0)?;
        Ok([to_array3(&heads.q)?, to_array3(&heads.k)?, to_array3(&heads.v)?])
    }

    pub(crate) fn output(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let (inner, residual) = self.run(hidden, &mut |_, _| Ok(()))?;
        block_output(&self.name, (residual + self.down.forward(&inner)?)?)
    }
}

impl Block for LlamaBlock {
    fn observe(
        &self,
        hidden: ArrayView2<'_, f32>,
        observer: &mut Observer<'_>,
    ) -> prune_core::Result<()> {
        let mut show = |ids: &[&LayerId], input: &Tensor| {
            let ids: Vec<LayerId> = ids.iter().map(|id| (*id).clone()).collect();
            with_view(input, |view| Ok(observer(&ids, view)?))
        };
        self.run(hidden, &mut show)?;
        Ok(())
    }

    fn forward(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        Ok(self.output(hidden)?)
    }
}

/// One of the sequences that run together.
pub(crate) struct Span<'a> {
    /// Its rows among those of all.
    pub(crate) rows: Range<usize>,
    /// The cache with its earlier tokens.
    pub(crate) cache: &'a mut dyn KvStore,
}

/// The last norm and the output matrix.
pub(crate) struct LlamaHead {
    pub(super) norm: Norm,
    pub(super) weight: Tensor,
    pub(super) input_block: Option<usize>,
}

impl Head for LlamaHead {
    fn logits(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        let run = || -> Result<Array2<f32>> {
            let x = self.norm.forward(&to_tensor(hidden)?)?;
            let x = round_inputs(&x, self.input_block)?;
            to_array(x.matmul(&self.weight.t()?)?)
        };
        Ok(run()?)
    }
}
