use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use ndarray::{Array2, ArrayView2};
use prune_core::{Block, BlockModel, Head, LayerId, LayerInfo, Observer, TensorSource};

use crate::linear::{Linear, Spec};
use crate::ops::{causal_softmax, swiglu};
use crate::rope::rotary_tables;
use crate::tensors::{Show, block_output, check, load, read_rows, to_array, to_tensor, with_view};
use crate::{Error, LlamaConfig, Result};

/// A Llama-family model as a [`BlockModel`]: one block's weights in memory at a time.
///
/// Built from `config.json` and a [`TensorSource`]; every tensor is looked up and its shape
/// checked before anything runs. Computation is in f32 on the CPU.
///
/// ```no_run
/// use prune_candle::LlamaModel;
/// use prune_checkpoint::Checkpoint;
/// use prune_core::BlockModel;
///
/// let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct".as_ref())?;
/// let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
/// let hidden = model.embed(&checkpoint, &[1, 2, 3])?;
/// let block = model.load_block(&checkpoint, 0)?;
/// let hidden = block.forward(hidden.view())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LlamaModel {
    config: LlamaConfig,
    layers: Vec<LayerInfo>,
    /// Rotary tables of the longest sequence so far; every block shares them.
    rotary: Mutex<Arc<Rotary>>,
}

struct Rotary {
    tokens: usize,
    cos: Tensor,
    sin: Tensor,
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const LAST_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

impl LlamaModel {
    /// The model that `config` describes, with its tensors in `weights`.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`], [`Error::Config`]; [`Error::Core`] naming the first tensor that
    /// is missing or whose shape is not the configuration's.
    pub fn new(config: &serde_json::Value, weights: &dyn TensorSource) -> Result<Self> {
        let config = LlamaConfig::from_json(config)?;
        let mut layers = Vec::new();
        for index in 0..config.num_hidden_layers {
            for spec in specs(&config) {
                let name = format!("model.layers.{index}.{}", spec.role);
                check(weights, &format!("{name}.weight"), &[spec.rows, spec.cols])?;
                if spec.bias {
                    check(weights, &format!("{name}.bias"), &[spec.rows])?;
                }
                layers.push(LayerInfo::linear(name, spec.rows, spec.cols));
            }
            for (norm, size) in norms(&config) {
                check(weights, &format!("model.layers.{index}.{norm}.weight"), &[size])?;
            }
        }
        let table = [config.vocab_size, config.hidden_size];
        check(weights, EMBEDDING, &table)?;
        check(weights, LAST_NORM, &[config.hidden_size])?;
        if !config.tie_word_embeddings {
            check(weights, HEAD, &table)?;
        }
        let (cos, sin) = rotary_tables(&config, 1)?;
        let rotary = Mutex::new(Arc::new(Rotary { tokens: 1, cos, sin }));
        Ok(Self { config, layers, rotary })
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn rotary(&self, tokens: usize) -> Result<Arc<Rotary>> {
        // A poisoned lock only means that another thread failed while it held a whole table.
        let mut shared = self.rotary.lock().unwrap_or_else(|e| e.into_inner());
        if shared.tokens < tokens {
            let (cos, sin) = rotary_tables(&self.config, tokens)?;
            *shared = Arc::new(Rotary { tokens, cos, sin });
        }
        Ok(Arc::clone(&shared))
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        match self.config.sliding_window {
            Some(window) if tokens > window => Err(Error::Config {
                field: "sliding_window",
                found: window.to_string(),
                expected: format!(
                    "at least the {tokens} tokens of a sample; shorten the samples (--seqlen)"
                ),
            }),
            _ => Ok(()),
        }
    }
}

fn specs(config: &LlamaConfig) -> [Spec; 7] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let spec = |role, rows, cols, bias| Spec { role, rows, cols, bias };
    [
        spec("self_attn.q_proj", q, hidden, config.qkv_bias),
        spec("self_attn.k_proj", kv, hidden, config.qkv_bias),
        spec("self_attn.v_proj", kv, hidden, config.qkv_bias),
        spec("self_attn.o_proj", hidden, q, config.output_bias),
        spec("mlp.gate_proj", inner, hidden, config.mlp_bias),
        spec("mlp.up_proj", inner, hidden, config.mlp_bias),
        spec("mlp.down_proj", hidden, inner, config.mlp_bias),
    ]
}

fn norms(config: &LlamaConfig) -> Vec<(&'static str, usize)> {
    let mut norms = vec![
        ("input_layernorm", config.hidden_size),
        ("post_attention_layernorm", config.hidden_size),
    ];
    if config.qk_norm {
        norms.push(("self_attn.q_norm", config.head_dim));
        norms.push(("self_attn.k_norm", config.head_dim));
    }
    norms
}

struct Norm {
    weight: Tensor,
    eps: f32,
}

impl Norm {
    fn load(weights: &dyn TensorSource, name: &str, eps: f64) -> Result<Self> {
        Ok(Self { weight: load(weights, name)?, eps: eps as f32 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm(x, &self.weight, self.eps)?)
    }
}

/// One block of a [`LlamaModel`], with its weights.
struct LlamaBlock {
    attention: Attention,
    input_norm: Norm,
    post_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Names the block in errors.
    name: String,
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary: RotarySource,
    sliding_window: Option<usize>,
}

/// The rotary tables that were there when the block was loaded, and how to make longer ones.
struct RotarySource {
    shared: Arc<Rotary>,
    config: LlamaConfig,
}

impl RotarySource {
    fn tables(&self, tokens: usize) -> Result<(Tensor, Tensor)> {
        if tokens <= self.shared.tokens {
            let cos = self.shared.cos.narrow(0, 0, tokens)?;
            return Ok((cos, self.shared.sin.narrow(0, 0, tokens)?));
        }
        rotary_tables(&self.config, tokens)
    }
}

/// Queries handled together: scores take `heads · TILE · tokens` floats, and keys that no query of
/// a tile can see are never multiplied.
const TILE: usize = 128;

impl Attention {
    /// The heads' outputs side by side, `(tokens, heads · head_dim)`: the input of `o_proj`.
    fn mix(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let (cos, sin) = self.rotary.tables(tokens)?;
        let heads = |x: Tensor, n: usize| -> Result<Tensor> {
            Ok(x.reshape((tokens, n, self.head_dim))?.transpose(0, 1)?.contiguous()?)
        };
        let q = heads(self.q.forward(x)?, self.heads)?;
        let k = heads(self.k.forward(x)?, self.kv_heads)?;
        let v = heads(self.v.forward(x)?, self.kv_heads)?;
        let rotate = |x: Tensor, norm: &Option<Norm>| -> Result<Tensor> {
            let x = match norm {
                Some(norm) => norm.forward(&x)?,
                None => x,
            };
            Ok(candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)?)
        };
        let (q, k) = (rotate(q, &self.q_norm)?, rotate(k, &self.k_norm)?);
        // The query heads of one key/value head are stacked as rows of one product.
        let group = self.heads / self.kv_heads;
        let q = q.reshape((self.kv_heads, group, tokens, self.head_dim))?;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let mut tiles = Vec::with_capacity(tokens.div_ceil(TILE));
        for first in (0..tokens).step_by(TILE) {
            let queries = TILE.min(tokens - first);
            let seen = first + queries;
            let tile = q.narrow(2, first, queries)?.contiguous()?;
            let tile = tile.reshape((self.kv_heads, group * queries, self.head_dim))?;
            let scores = tile.matmul(&k.narrow(1, 0, seen)?.t()?)?;
            let weights = causal_softmax(&scores, queries, first, scale)?;
            let mixed = weights.matmul(&v.narrow(1, 0, seen)?)?;
            let mixed = mixed.reshape((self.heads, queries, self.head_dim))?.transpose(0, 1)?;
            tiles.push(mixed.reshape((queries, self.heads * self.head_dim))?);
        }
        Ok(Tensor::cat(&tiles, 0)?)
    }
}

impl LlamaBlock {
    fn load(model: &LlamaModel, weights: &dyn TensorSource, index: usize) -> Result<Self> {
        let config = &model.config;
        if index >= config.num_hidden_layers {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "block index".to_string(),
                found: index.to_string(),
                expected: format!("below {}", config.num_hidden_layers),
            }));
        }
        let name = format!("model.layers.{index}");
        let linear = |role: &str, bias| Linear::load(weights, format!("{name}.{role}"), bias);
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
            rotary: RotarySource { shared: model.rotary(1)?, config: config.clone() },
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
        if let Some(window) = self.attention.sliding_window
            && hidden.nrows() > window
        {
            return Err(Error::Config {
                field: "sliding_window",
                found: window.to_string(),
                expected: format!("at least the {} tokens of a sample", hidden.nrows()),
            });
        }
        let a = &self.attention;
        let x = to_tensor(hidden)?;
        let normed = self.input_norm.forward(&x)?;
        show(&[&a.q.id, &a.k.id, &a.v.id], &normed)?;
        let mixed = a.mix(&normed)?;
        show(&[&a.o.id], &mixed)?;
        let x = (x + a.o.forward(&mixed)?)?;
        let normed = self.post_norm.forward(&x)?;
        show(&[&self.gate.id, &self.up.id], &normed)?;
        let inner = swiglu(&self.gate.forward(&normed)?, &self.up.forward(&normed)?)?;
        show(&[&self.down.id], &inner)?;
        Ok((inner, x))
    }

    fn output(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
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

struct LlamaHead {
    norm: Norm,
    weight: Tensor,
}

impl Head for LlamaHead {
    fn logits(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        let run = || -> Result<Array2<f32>> {
            let x = self.norm.forward(&to_tensor(hidden)?)?;
            to_array(x.matmul(&self.weight.t()?)?)
        };
        Ok(run()?)
    }
}

impl BlockModel for LlamaModel {
    fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    fn blocks(&self) -> usize {
        self.config.num_hidden_layers
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn width(&self) -> usize {
        self.config.hidden_size
    }

    fn block_bytes(&self) -> usize {
        let sizes = specs(&self.config).map(|s| s.rows * s.cols);
        // While the largest is loaded, its stored bytes stand beside its values.
        4 * (sizes.iter().sum::<usize>() + sizes.into_iter().max().unwrap_or(0))
    }

    fn sample_bytes(&self, tokens: usize) -> usize {
        let c = &self.config;
        let activations = 4 * c.hidden_size + 3 * c.intermediate_size;
        let scores = 2 * c.num_attention_heads * TILE.min(tokens);
        let attention = 6 * c.num_attention_heads * c.head_dim;
        4 * tokens * (activations + scores + attention)
    }

    fn embed(&self, weights: &dyn TensorSource, tokens: &[u32]) -> prune_core::Result<Array2<f32>> {
        self.check_length(tokens.len())?;
        self.rotary(tokens.len())?;
        let ids = tokens.iter().map(|t| *t as usize);
        let out = read_rows(weights, EMBEDDING, "token id", ids)?;
        let width = self.config.hidden_size;
        Array2::from_shape_vec((tokens.len(), width), out)
            .map_err(|e| prune_core::Error::external(EMBEDDING, e))
    }

    fn load_block(
        &self,
        weights: &dyn TensorSource,
        index: usize,
    ) -> prune_core::Result<Box<dyn Block>> {
        Ok(Box::new(LlamaBlock::load(self, weights, index)?))
    }

    fn load_head(&self, weights: &dyn TensorSource) -> prune_core::Result<Box<dyn Head>> {
        let table = if self.config.tie_word_embeddings { EMBEDDING } else { HEAD };
        let norm = Norm::load(weights, LAST_NORM, self.config.rms_norm_eps)?;
        Ok(Box::new(LlamaHead { norm, weight: load(weights, table)? }))
    }
}
