use candle_core::{Device, Tensor};
use ndarray::{Array2, ArrayView2};
use prune_core::{Head, TensorSource};
use prune_quant::kv::{KvShape, KvStore};

use crate::llama::{LlamaBlock, LlamaHead, Span};
use crate::tensors::to_array;
use crate::{Error, LlamaModel, Result};

/// What the tokens of one pass see of one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvOrder {
    /// They attend to one another in full precision and go into the cache afterwards, as KIVI
    /// does: a prompt in one pass is not affected by the cache.
    #[default]
    AttendFirst,
    /// They go into the cache first and see one another as it returns them: what KVTuner measures
    /// its configurations with.
    StoreFirst,
}

/// Tokens of one sequence, and the cache with those before them.
pub struct Feed<'a> {
    /// The next tokens, at least one.
    pub tokens: &'a [u32],
    /// Takes their keys and values up.
    pub cache: &'a mut dyn KvStore,
}

/// A Llama-family model with all its weights in memory, for running tokens through a KV cache.
///
/// Weights are f32 on the CPU. Any [`KvStore`] does as the cache: with
/// [`DenseKv`](prune_quant::kv::DenseKv) the result is that of the whole sequence up to the rounding
/// of sums. Several sequences, of different lengths, run in one pass.
///
/// ```no_run
/// use prune_candle::{Decoder, Feed, KvOrder, LlamaModel};
/// use prune_checkpoint::Checkpoint;
/// use prune_quant::kv::{KvCache, KvConfig, KvScheme};
///
/// let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct".as_ref())?;
/// let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
/// let decoder = Decoder::load(&model, &checkpoint)?;
/// let shape = decoder.kv_shape();
/// let config = KvConfig::uniform(shape.layers, "KV4".parse()?, KvScheme::kivi())?;
/// let mut cache = KvCache::new(shape, &config)?;
/// let mut feed = [Feed { tokens: &[1, 2, 3], cache: &mut cache }];
/// let hidden = decoder.forward(&mut feed, KvOrder::default())?;
/// let logits = decoder.logits(hidden[0].view())?;
/// assert_eq!(logits.nrows(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Decoder {
    shape: KvShape,
    sliding_window: Option<usize>,
    embedding: Tensor,
    blocks: Vec<LlamaBlock>,
    head: LlamaHead,
}

impl Decoder {
    /// The model with its weights read.
    ///
    /// # Errors
    /// [`Error::Core`] naming a tensor that cannot be read or is not finite.
    pub fn load(model: &LlamaModel, weights: &dyn TensorSource) -> Result<Self> {
        let config = model.config();
        let embedding = model.load_embedding(weights)?;
        let blocks = (0..config.num_hidden_layers)
            .map(|index| LlamaBlock::load(model, weights, index))
            .collect::<Result<_>>()?;
        let head = model.head(weights, Some(&embedding))?;
        let shape = KvShape {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        Ok(Self { shape, sliding_window: config.sliding_window, embedding, blocks, head })
    }

    /// The dimensions that a cache for this model has.
    pub fn kv_shape(&self) -> KvShape {
        self.shape
    }

    /// The number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.embedding.dims().first().copied().unwrap_or(0)
    }

    /// The last hidden states `(tokens, width)` of each sequence, in the order of `feeds`; the
    /// caches have taken the tokens up. All linear layers run over all sequences together,
    /// attention over each on its own.
    ///
    /// # Errors
    /// [`Error::Core`]: `OutOfRange` for a token id outside the vocabulary, a feed without tokens,
    /// or a cache whose layers differ in length (an earlier pass failed half-way); `Shape` for a
    /// cache of another shape; what the cache refuses. [`Error::Config`] for a sequence longer
    /// than the sliding window.
    pub fn forward(&self, feeds: &mut [Feed<'_>], order: KvOrder) -> Result<Vec<Array2<f32>>> {
        let mut ids = Vec::new();
        let mut spans = Vec::with_capacity(feeds.len());
        for feed in feeds.iter_mut() {
            self.check(feed)?;
            let rows = ids.len()..ids.len() + feed.tokens.len();
            ids.extend_from_slice(feed.tokens);
            spans.push(Span { rows, cache: &mut *feed.cache });
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let count = ids.len();
        let mut x = self.embedding.index_select(&Tensor::from_vec(ids, count, &Device::Cpu)?, 0)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.step(x, &mut spans, layer, order)?;
        }
        let rows = spans.iter().map(|s| to_array(x.narrow(0, s.rows.start, s.rows.len())?));
        rows.collect()
    }

    /// Logits `(tokens, vocab_size)` of hidden states from [`Decoder::forward`].
    ///
    /// # Errors
    /// What candle gives for hidden states of another width.
    pub fn logits(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        Ok(self.head.logits(hidden)?)
    }

    fn check(&self, feed: &Feed<'_>) -> Result<()> {
        let out_of_range = |what: &str, found: String, expected: String| {
            Err(Error::Core(prune_core::Error::OutOfRange { what: what.into(), found, expected }))
        };
        let shape = feed.cache.shape();
        if shape != self.shape {
            let dims = |s: KvShape| vec![s.layers, s.kv_heads, s.head_dim];
            return Err(Error::Core(prune_core::Error::Shape {
                what: "KV cache (layers, heads, head_dim)".to_string(),
                found: dims(shape),
                expected: dims(self.shape),
            }));
        }
        let past = feed.cache.tokens(0);
        for layer in 1..shape.layers {
            let tokens = feed.cache.tokens(layer);
            if tokens != past {
                let what = format!("tokens in layer {layer} of the KV cache");
                let expected = format!("{past}, as in layer 0: a pass failed half-way");
                return out_of_range(&what, tokens.to_string(), expected);
            }
        }
        if feed.tokens.is_empty() {
            return out_of_range("tokens of a sequence", "0".into(), "at least 1".into());
        }
        let vocab = self.vocab_size();
        if let Some(id) = feed.tokens.iter().find(|id| **id as usize >= vocab) {
            let expected = format!("below the vocabulary size {vocab}");
            return out_of_range("token id", id.to_string(), expected);
        }
        let total = past + feed.tokens.len();
        match self.sliding_window {
            Some(window) if total > window => Err(Error::Config {
                field: "sliding_window",
                found: window.to_string(),
                expected: format!("at least the {total} tokens of the sequence"),
            }),
            _ => Ok(()),
        }
    }
}
