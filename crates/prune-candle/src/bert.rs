use candle_core::Tensor;
use ndarray::{Array2, ArrayView2};
use prune_core::{Block, BlockModel, Head, LayerId, LayerInfo, ModelKind, Observer, TensorSource};

use crate::linear::{Linear, Spec};
use crate::ops::{layer_norm, softmax};
use crate::tensors::{Show, block_output, check, load, read_rows, to_array, to_tensor, with_view};
use crate::{Activation, BertConfig, Error, Result};

/// A BERT-like encoder as a [`BlockModel`]: one block's weights in memory at a time.
///
/// Built from `config.json` and a [`TensorSource`]; every tensor is looked up and its shape checked
/// before anything runs. Computation is in f32 on the CPU. Every token sees every other one of its
/// sample, and samples are never padded. All tokens are of type 0, as in a text that stands alone.
/// There is no output matrix: [`BlockModel::load_head`] is an error.
///
/// ```no_run
/// use prune_candle::{BertModel, Tokenizer};
/// use prune_checkpoint::Checkpoint;
/// use prune_core::BlockModel;
///
/// let checkpoint = Checkpoint::open("all-MiniLM-L6-v2".as_ref())?;
/// let model = BertModel::new(&checkpoint.config()?, &checkpoint)?;
/// let json = checkpoint.tokenizer_json()?.ok_or("no tokenizer.json")?;
/// let tokens = Tokenizer::from_bytes(&json)?.encode_with_special("Once upon a time")?;
/// let hidden = model.embed(&checkpoint, &tokens)?;
/// let hidden = model.load_block(&checkpoint, 0)?.forward(hidden.view())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BertModel {
    config: BertConfig,
    layers: Vec<LayerInfo>,
    /// What stands before the names of all tensors: nothing, `bert.`, `roberta.`.
    prefix: String,
}

const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";
const EMBEDDING_NORM: &str = "embeddings.LayerNorm";
/// The norms of a block.
const NORMS: [&str; 2] = ["attention.output.LayerNorm", "output.LayerNorm"];

impl BertModel {
    /// The model that `config` describes, with its tensors in `weights`.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`], [`Error::Config`]; [`Error::Core`] naming the first tensor that
    /// is missing or whose shape is not the configuration's.
    pub fn new(config: &serde_json::Value, weights: &dyn TensorSource) -> Result<Self> {
        let config = BertConfig::from_json(config)?;
        // A bare encoder has no prefix, one that was saved with a head on it has.
        let prefix = ["bert.", "roberta."]
            .into_iter()
            .find(|prefix| weights.info(&format!("{prefix}{WORDS}")).is_ok())
            .unwrap_or_default()
            .to_string();
        let name = |name: &str| format!("{prefix}{name}");
        let width = config.hidden_size;
        for (table, rows) in [
            (WORDS, config.vocab_size),
            (POSITIONS, config.max_position_embeddings),
            (TYPES, config.type_vocab_size),
        ] {
            check(weights, &name(table), &[rows, width])?;
        }
        Norm::check(weights, &name(EMBEDDING_NORM), width)?;
        let mut layers = Vec::new();
        for index in 0..config.num_hidden_layers {
            let block = name(&format!("encoder.layer.{index}"));
            for spec in specs(&config) {
                let layer = format!("{block}.{}", spec.role);
                check(weights, &format!("{layer}.weight"), &[spec.rows, spec.cols])?;
                check(weights, &format!("{layer}.bias"), &[spec.rows])?;
                layers.push(LayerInfo::linear(layer, spec.rows, spec.cols));
            }
            for norm in NORMS {
                Norm::check(weights, &format!("{block}.{norm}"), width)?;
            }
        }
        Ok(Self { config, layers, prefix })
    }

    /// The configuration.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The sum of the three embeddings, normalised.
    fn embeddings(&self, weights: &dyn TensorSource, tokens: &[u32]) -> Result<Array2<f32>> {
        let (most, width) = (self.config.max_tokens(), self.config.hidden_size);
        if tokens.len() > most {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "the length of a sample".to_string(),
                found: format!("{} tokens", tokens.len()),
                expected: format!("at most {most}, the positions of the model"),
            }));
        }
        let rows =
            |table, what, rows: Vec<usize>| read_rows(weights, &self.name(table), what, rows);
        let ids = tokens.iter().map(|t| *t as usize).collect();
        let words = rows(WORDS, "token id", ids)?;
        let positions = rows(POSITIONS, "position", self.config.positions(tokens))?;
        let kind = rows(TYPES, "token type", vec![0])?;
        let sum = words.iter().zip(&positions).zip(kind.iter().cycle());
        // In the order of transformers: words and types first.
        let sum: Vec<f32> = sum.map(|((w, p), t)| (w + t) + p).collect();
        let sum = Array2::from_shape_vec((tokens.len(), width), sum)
            .map_err(|e| prune_core::Error::external("embeddings", e))?;
        if tokens.is_empty() {
            return Ok(sum);
        }
        let norm = Norm::load(weights, &self.name(EMBEDDING_NORM), self.config.layer_norm_eps)?;
        to_array(norm.forward(&to_tensor(sum.view())?)?)
    }
}

fn specs(config: &BertConfig) -> [Spec; 6] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let spec = |role, rows, cols| Spec { role, rows, cols, bias: true };
    [
        spec("attention.self.query", hidden, hidden),
        spec("attention.self.key", hidden, hidden),
        spec("attention.self.value", hidden, hidden),
        spec("attention.output.dense", hidden, hidden),
        spec("intermediate.dense", inner, hidden),
        spec("output.dense", hidden, inner),
    ]
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    /// The names of scale and shift: `weight` and `bias`, or those that TensorFlow gave them.
    fn names(weights: &dyn TensorSource, name: &str) -> [String; 2] {
        let old = weights.info(&format!("{name}.gamma")).is_ok();
        let parts = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        parts.map(|part| format!("{name}.{part}"))
    }

    fn check(weights: &dyn TensorSource, name: &str, width: usize) -> Result<()> {
        Self::names(weights, name).iter().try_for_each(|name| check(weights, name, &[width]))
    }

    fn load(weights: &dyn TensorSource, name: &str, eps: f64) -> Result<Self> {
        let [weight, bias] = Self::names(weights, name);
        Ok(Self { weight: load(weights, &weight)?, bias: load(weights, &bias)?, eps: eps as f32 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}

/// One block of a [`BertModel`], with its weights.
struct BertBlock {
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
    heads: usize,
    activation: Activation,
    /// Names the block in errors.
    name: String,
}

/// Queries handled together: scores take `heads · TILE · tokens` floats.
const TILE: usize = 128;

impl BertBlock {
    fn load(model: &BertModel, weights: &dyn TensorSource, index: usize) -> Result<Self> {
        let config = &model.config;
        if index >= config.num_hidden_layers {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "block index".to_string(),
                found: index.to_string(),
                expected: format!("below {}", config.num_hidden_layers),
            }));
        }
        let name = model.name(&format!("encoder.layer.{index}"));
        let linear = |role: &str| Linear::load(weights, format!("{name}.{role}"), true);
        let norm =
            |role: &str| Norm::load(weights, &format!("{name}.{role}"), config.layer_norm_eps);
        Ok(Self {
            query: linear("attention.self.query")?,
            key: linear("attention.self.key")?,
            value: linear("attention.self.value")?,
            attended: linear("attention.output.dense")?,
            attention_norm: norm(NORMS[0])?,
            up: linear("intermediate.dense")?,
            down: linear("output.dense")?,
            output_norm: norm(NORMS[1])?,
            heads: config.num_attention_heads,
            activation: config.activation,
            name,
        })
    }

    /// The heads' outputs side by side, `(tokens, width)`: the input of `attention.output.dense`.
    fn mix(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let head_dim = width / self.heads;
        let heads = |x: Tensor| -> Result<Tensor> {
            Ok(x.reshape((tokens, self.heads, head_dim))?.transpose(0, 1)?.contiguous()?)
        };
        let q = heads(self.query.forward(x)?)?;
        let k = heads(self.key.forward(x)?)?.t()?;
        let v = heads(self.value.forward(x)?)?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut tiles = Vec::with_capacity(tokens.div_ceil(TILE));
        for first in (0..tokens).step_by(TILE) {
            let queries = TILE.min(tokens - first);
            let scores = q.narrow(1, first, queries)?.contiguous()?.matmul(&k)?;
            let mixed = softmax(&scores, scale)?.matmul(&v)?.transpose(0, 1)?;
            tiles.push(mixed.reshape((queries, width))?);
        }
        Ok(Tensor::cat(&tiles, 0)?)
    }

    /// Runs the block up to the input of `output.dense`, showing the input of every linear layer;
    /// returns that input and the residual stream that its output is added to.
    fn run(&self, hidden: ArrayView2<'_, f32>, show: &mut Show<'_>) -> Result<(Tensor, Tensor)> {
        let x = to_tensor(hidden)?;
        show(&[&self.query.id, &self.key.id, &self.value.id], &x)?;
        let mixed = self.mix(&x)?;
        show(&[&self.attended.id], &mixed)?;
        let x = self.attention_norm.forward(&(self.attended.forward(&mixed)? + x)?)?;
        show(&[&self.up.id], &x)?;
        let inner = self.up.forward(&x)?;
        let inner = match self.activation {
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluTanh => inner.gelu()?,
            Activation::Relu => inner.relu()?,
        };
        show(&[&self.down.id], &inner)?;
        Ok((inner, x))
    }

    fn output(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let (inner, residual) = self.run(hidden, &mut |_, _| Ok(()))?;
        let sum = (self.down.forward(&inner)? + residual)?;
        block_output(&self.name, self.output_norm.forward(&sum)?)
    }
}

impl Block for BertBlock {
    fn observe(
        &self,
        hidden: ArrayView2<'_, f32>,
        observer: &mut Observer<'_>,
    ) -> prune_core::Result<()> {
        if hidden.nrows() == 0 {
            return Ok(());
        }
        let mut show = |ids: &[&LayerId], input: &Tensor| {
            let ids: Vec<LayerId> = ids.iter().map(|id| (*id).clone()).collect();
            with_view(input, |view| Ok(observer(&ids, view)?))
        };
        self.run(hidden, &mut show)?;
        Ok(())
    }

    fn forward(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        if hidden.nrows() == 0 {
            return Ok(hidden.to_owned());
        }
        Ok(self.output(hidden)?)
    }
}

impl BlockModel for BertModel {
    fn kind(&self) -> ModelKind {
        ModelKind::Encoder
    }

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
        let activations = 8 * c.hidden_size + 2 * c.intermediate_size;
        let scores = 2 * c.num_attention_heads * TILE.min(tokens);
        4 * tokens * (activations + scores)
    }

    fn embed(&self, weights: &dyn TensorSource, tokens: &[u32]) -> prune_core::Result<Array2<f32>> {
        Ok(self.embeddings(weights, tokens)?)
    }

    fn load_block(
        &self,
        weights: &dyn TensorSource,
        index: usize,
    ) -> prune_core::Result<Box<dyn Block>> {
        Ok(Box::new(BertBlock::load(self, weights, index)?))
    }

    fn load_head(&self, _: &dyn TensorSource) -> prune_core::Result<Box<dyn Head>> {
        Err(prune_core::Error::NoHead { model: self.config.model_type.clone() })
    }
}
