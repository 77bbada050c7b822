use ndarray::{Array2, ArrayView1, ArrayView2, Axis, concatenate, s};
use prune_core::NextToken;
use prune_quant::kv::{DenseKv, KvCache, KvConfig, KvStore};
use rayon::prelude::*;
use serde::Serialize;

use crate::generate::argmax;
use crate::{Decoder, Error, Feed, KvOrder, Result};

/// Which cache a measurement goes through.
#[derive(Debug, Clone, PartialEq)]
pub enum KvKind {
    /// f32, exact.
    Dense,
    /// Quantised.
    Quantized(KvConfig),
}

impl KvKind {
    /// A cache of this kind with the tokens of `dense`.
    ///
    /// # Errors
    /// [`Error::Core`] for a configuration that does not fit the model.
    pub fn filled(&self, dense: &DenseKv) -> Result<Box<dyn KvStore>> {
        Ok(match self {
            KvKind::Dense => Box::new(dense.clone()),
            KvKind::Quantized(config) => Box::new(KvCache::from_dense(dense, config)?),
        })
    }
}

/// How well a model predicts text through a cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct KvEvaluation {
    /// `exp` of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Fraction of tokens that were the likeliest.
    pub accuracy: f64,
    /// Mean Kullback-Leibler divergence of the next-token distribution from the one in full
    /// precision, in nats a token. Not below 0 but for rounding; tells caches apart on less text than
    /// perplexity, which rounding can lower by chance.
    pub divergence: f64,
    /// Predictions.
    pub tokens: usize,
    /// Bytes of all caches at the end, allocated.
    pub cache_bytes: usize,
}

/// Text whose beginning has been run once, in full precision, and whose rest can be predicted
/// through caches of many kinds.
///
/// Each window is a sequence of its own: its first `prefix` tokens are the prompt. A measurement
/// fills the cache with the prompt's keys and values and feeds the rest in chunks; every prediction
/// inside the rest counts. With a prefix of 0 the whole window goes through the cache.
///
/// The prompts' keys and values are kept in f32, `windows · prefix` times what a token takes, and
/// of the rest the last hidden states in full precision.
///
/// ```no_run
/// # use prune_candle::{Decoder, KvKind, KvText, LlamaModel};
/// # use prune_checkpoint::Checkpoint;
/// # use prune_quant::kv::{KvConfig, KvScheme};
/// # let checkpoint = Checkpoint::open("model".as_ref())?;
/// # let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
/// let decoder = Decoder::load(&model, &checkpoint)?;
/// # let windows: Vec<Vec<u32>> = vec![vec![1; 512]];
/// let text = KvText::new(&decoder, &windows, 384)?;
/// let layers = decoder.kv_shape().layers;
/// for pair in ["KV8", "KV4", "KV2"] {
///     let config = KvConfig::uniform(layers, pair.parse()?, KvScheme::kivi())?;
///     let result = text.evaluate(&KvKind::Quantized(config), 32)?;
///     println!("{pair}: perplexity {:.2}, divergence {:.4}", result.perplexity, result.divergence);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KvText<'a> {
    decoder: &'a Decoder,
    windows: Vec<Window>,
    order: KvOrder,
}

struct Window {
    /// The prompt's keys and values.
    prompt: DenseKv,
    rest: Vec<u32>,
    /// The last hidden states of the rest but its last token, in full precision.
    hidden: Array2<f32>,
}

/// Sequences that run together.
pub(crate) const BATCH: usize = 16;
/// Rows of logits that are held together.
const ROWS: usize = 128;

impl<'a> KvText<'a> {
    /// The windows, run once in full precision.
    ///
    /// # Errors
    /// [`Error::Core`] with `OutOfRange` for a window with fewer than two tokens after its prefix;
    /// those of [`Decoder::forward`].
    pub fn new(decoder: &'a Decoder, windows: &[Vec<u32>], prefix: usize) -> Result<Self> {
        let windows = windows.iter().map(|window| {
            if window.len() < prefix + 2 {
                return Err(Error::Core(prune_core::Error::OutOfRange {
                    what: "tokens of a window".into(),
                    found: window.len().to_string(),
                    expected: format!("two more than the prefix of {prefix}"),
                }));
            }
            let (prompt, rest) = window.split_at(prefix);
            let prompt = run_prompt(decoder, prompt)?;
            let mut cache = prompt.clone();
            let feed = Feed { tokens: &rest[..rest.len() - 1], cache: &mut cache };
            let hidden = decoder.forward(&mut [feed], KvOrder::default())?.swap_remove(0);
            Ok(Window { prompt, rest: rest.to_vec(), hidden })
        });
        Ok(Self { decoder, windows: windows.collect::<Result<_>>()?, order: KvOrder::default() })
    }

    /// The same with another order; see [`KvOrder`].
    pub fn order(self, order: KvOrder) -> Self {
        Self { order, ..self }
    }

    /// Perplexity through caches of this kind, `chunk` tokens in a pass. The tokens of one pass see
    /// one another as [`KvOrder`] says, those before through the cache: the smaller the chunk, the
    /// more the cache matters, and the longer it takes.
    ///
    /// # Errors
    /// [`Error::Core`] with `OutOfRange` for a chunk of 0 or no windows; those of
    /// [`Decoder::forward`].
    pub fn evaluate(&self, kind: &KvKind, chunk: usize) -> Result<KvEvaluation> {
        if chunk == 0 || self.windows.is_empty() {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "chunk of tokens, and windows to predict".into(),
                found: format!("{chunk} and {}", self.windows.len()),
                expected: "at least 1".into(),
            }));
        }
        let mut sums = Sums::default();
        for windows in self.windows.chunks(BATCH) {
            self.batch(windows, kind, chunk, &mut sums)?;
        }
        Ok(KvEvaluation {
            perplexity: (sums.loss / sums.tokens as f64).exp(),
            accuracy: sums.correct as f64 / sums.tokens as f64,
            divergence: sums.divergence / sums.tokens as f64,
            tokens: sums.tokens,
            cache_bytes: sums.bytes,
        })
    }

    fn batch(
        &self,
        windows: &[Window],
        kind: &KvKind,
        chunk: usize,
        sums: &mut Sums,
    ) -> Result<()> {
        let mut caches: Vec<Box<dyn KvStore>> =
            windows.par_iter().map(|w| kind.filled(&w.prompt)).collect::<Result<_>>()?;
        let longest = windows.iter().map(|w| w.rest.len() - 1).max().unwrap_or(0);
        for first in (0..longest).step_by(chunk) {
            let mut feeds = Vec::new();
            let mut references = Vec::new();
            let mut targets = Vec::new();
            for (window, cache) in windows.iter().zip(&mut caches) {
                let end = (first + chunk).min(window.rest.len() - 1);
                if first < end {
                    feeds.push(Feed { tokens: &window.rest[first..end], cache: &mut **cache });
                    references.push(window.hidden.slice(s![first..end, ..]));
                    targets.extend_from_slice(&window.rest[first + 1..=end]);
                }
            }
            let hidden = self.decoder.forward(&mut feeds, self.order)?;
            let predicted = predictions(self.decoder, &views(&hidden), &references, &targets)?;
            for prediction in predicted {
                sums.loss += prediction.loss;
                sums.divergence += prediction.divergence;
                sums.correct += usize::from(prediction.correct);
                sums.tokens += 1;
            }
        }
        sums.bytes += caches.iter().map(|c| c.bytes()).sum::<usize>();
        Ok(())
    }
}

#[derive(Default)]
struct Sums {
    loss: f64,
    divergence: f64,
    correct: usize,
    tokens: usize,
    bytes: usize,
}

/// The keys and values of a prompt, in full precision.
pub(crate) fn run_prompt(decoder: &Decoder, tokens: &[u32]) -> Result<DenseKv> {
    let mut cache = DenseKv::new(decoder.kv_shape())?;
    if !tokens.is_empty() {
        decoder.forward(&mut [Feed { tokens, cache: &mut cache }], KvOrder::default())?;
    }
    Ok(cache)
}

/// How well one token was predicted.
pub(crate) struct Prediction {
    /// Negative log-likelihood in nats.
    pub(crate) loss: f64,
    /// Divergence from the prediction in full precision.
    pub(crate) divergence: f64,
    /// Whether the token was the likeliest.
    pub(crate) correct: bool,
}

/// Predictions of `targets` by the rows of `hidden`, one after the other, beside `reference`, of
/// the same shapes.
pub(crate) fn predictions(
    decoder: &Decoder,
    hidden: &[ArrayView2<'_, f32>],
    reference: &[ArrayView2<'_, f32>],
    targets: &[u32],
) -> Result<Vec<Prediction>> {
    let join = |parts: &[ArrayView2<'_, f32>]| {
        concatenate(Axis(0), parts).map_err(|e| prune_core::Error::external("hidden states", e))
    };
    let (hidden, reference) = (join(hidden)?, join(reference)?);
    let mut all = Vec::with_capacity(targets.len());
    // The output matrix is read once for many rows.
    for (first, targets) in (0..).step_by(ROWS).zip(targets.chunks(ROWS)) {
        let rows = s![first..first + targets.len(), ..];
        let logits = decoder.logits(hidden.slice(rows))?;
        let reference = decoder.logits(reference.slice(rows))?;
        let predict = |row: usize| {
            let next = NextToken::new(logits.row(row));
            Prediction {
                loss: next.loss(targets[row]),
                divergence: next.divergence_from(&NextToken::new(reference.row(row))),
                correct: likeliest(logits.row(row)) == targets[row],
            }
        };
        all.par_extend((0..targets.len()).into_par_iter().map(predict));
    }
    Ok(all)
}

pub(crate) fn views(all: &[Array2<f32>]) -> Vec<ArrayView2<'_, f32>> {
    all.iter().map(|rows| rows.view()).collect()
}

fn likeliest(logits: ArrayView1<'_, f32>) -> u32 {
    match logits.as_slice() {
        Some(row) => argmax(row),
        None => argmax(&logits.to_vec()),
    }
}
