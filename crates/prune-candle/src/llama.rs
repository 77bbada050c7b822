mod attention;
mod block;

use std::sync::Arc;

use candle_core::Tensor;
use ndarray::Array2;
use prune_core::{Block, BlockModel, Head, LayerInfo, TensorSource};

use crate::linear::Spec;
use crate::rope::Rotary;
use crate::tensors::{check, load, read_rows};
use crate::{Error, LlamaConfig, Result};

use attention::TILE;
use block::Norm;
pub(crate) use block::{LlamaBlock, LlamaHead, Span};

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
    /// Every block shares it.
    rotary: Arc<Rotary>,
    input_block: Option<usize>,
}

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const LAST_NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

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
        let rotary = Arc::new(Rotary::new(&config)?);
        Ok(Self { config, layers, rotary, input_block: None })
    }

    /// The same model with the inputs of every linear layer, and of the output matrix, rounded to 8
    /// bits in blocks of `block` values before they are multiplied: what programs do that multiply
    /// integers. Codes are −127 to 127, a block's scale is its largest absolute value over 127 in
    /// f16; with blocks of 32 that is `Q8_0`, llama.cpp's form for inputs of its plain types. Costs a
    /// copy of each input.
    ///
    /// ```
    /// use prune_candle::LlamaModel;
    /// use prune_checkpoint::Checkpoint;
    /// use prune_core::BlockModel;
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-llama");
    /// let checkpoint = Checkpoint::open(path.as_ref())?;
    /// let exact = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
    /// let hidden = exact.embed(&checkpoint, &[1, 2, 3])?;
    /// let first = exact.load_block(&checkpoint, 0)?.forward(hidden.view())?;
    /// let rounded = exact.with_rounded_inputs(32)?;
    /// let second = rounded.load_block(&checkpoint, 0)?.forward(hidden.view())?;
    /// let squares = |x: ndarray::Array2<f32>| x.mapv(|x| x * x).sum();
    /// let error = squares(&second - &first) / squares(first);
    /// assert!(error > 0.0 && error < 1e-3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for a block of 0.
    pub fn with_rounded_inputs(self, block: usize) -> Result<Self> {
        match block {
            0 => Err(Error::Core(prune_core::Error::OutOfRange {
                what: "values of a block of inputs".into(),
                found: "0".into(),
                expected: "at least 1".into(),
            })),
            _ => Ok(Self { input_block: Some(block), ..self }),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The embedding as a matrix.
    pub(crate) fn load_embedding(&self, weights: &dyn TensorSource) -> Result<Tensor> {
        load(weights, EMBEDDING)
    }

    /// The last norm and the output matrix; where that is the embedding, the given one.
    pub(crate) fn head(
        &self,
        weights: &dyn TensorSource,
        embedding: Option<&Tensor>,
    ) -> Result<LlamaHead> {
        let norm = Norm::load(weights, LAST_NORM, self.config.rms_norm_eps)?;
        let weight = match (self.config.tie_word_embeddings, embedding) {
            (false, _) => load(weights, HEAD)?,
            (true, Some(embedding)) => embedding.clone(),
            (true, None) => load(weights, EMBEDDING)?,
        };
        Ok(LlamaHead { norm, weight, input_block: self.input_block })
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
        Ok(Box::new(self.head(weights, None)?))
    }
}
