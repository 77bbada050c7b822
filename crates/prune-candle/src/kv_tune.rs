use prune_core::TensorSource;
use prune_quant::kv::{
    Clustering, ErrorProfiler, KvConfig, KvErrors, KvScheme, KvSearch, KvTuning, SearchSpace,
};
use serde::Serialize;

use crate::{Decoder, KvEvaluation, KvKind, KvText, LlamaModel, Result};

/// How the bits of a KV cache are tuned.
#[derive(Debug, Clone, PartialEq)]
pub struct KvTuneOptions {
    /// How the caches quantise.
    pub scheme: KvScheme,
    /// How layers are grouped.
    pub clustering: Clustering,
    /// One query in so many is measured in the error profile.
    pub stride: usize,
    /// Tokens of a validation window that are its prompt, run in full precision and then cached;
    /// three quarters of the window when absent. The rest is predicted.
    pub prefix: Option<usize>,
    /// Tokens of the rest in one pass.
    pub chunk: usize,
    /// The search.
    pub search: KvSearch,
}

impl Default for KvTuneOptions {
    fn default() -> Self {
        Self {
            scheme: KvScheme::kivi(),
            clustering: Clustering::default(),
            stride: 4,
            prefix: None,
            chunk: 32,
            search: KvSearch::default(),
        }
    }
}

/// What a tuning run measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvTuneReport {
    /// The error profile, layer by layer.
    pub errors: Vec<KvErrors>,
    /// Prediction of the validation text through a cache in full precision.
    pub dense: KvEvaluation,
    /// The search. Accuracy is the mean log-likelihood of a token of the validation text.
    pub tuning: KvTuning,
}

/// The whole of KVTuner on text: error profile of `calibration`, pruning, grouping, and a search
/// whose accuracy is the mean log-likelihood of the tail of each `validation` window.
///
/// `progress` is told of every configuration: how many were measured, which one, its accuracy. The time is that of the search: for
/// each configuration a forward pass over the tails. For another notion of accuracy, such as a
/// [`RecallTask`](crate::RecallTask), call [`LlamaModel::kv_errors`], [`SearchSpace::new`] and
/// [`KvSearch::run`] one after the other.
///
/// ```no_run
/// use prune_candle::{Decoder, KvTuneOptions, LlamaModel, tune_kv};
/// use prune_checkpoint::Checkpoint;
/// # let (calibration, validation): (Vec<Vec<u32>>, Vec<Vec<u32>>) = Default::default();
/// let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct".as_ref())?;
/// let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
/// let decoder = Decoder::load(&model, &checkpoint)?;
/// let options = KvTuneOptions::default();
/// let report = tune_kv(
///     &model, &checkpoint, &decoder, &calibration, &validation, &options, &mut |_, _, _| (),
/// )?;
/// let best = report.tuning.best(4.0).ok_or("no configuration of at most 4 bits")?;
/// let json = serde_json::to_string_pretty(&report.tuning.config(best)?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of the steps.
pub fn tune_kv(
    model: &LlamaModel,
    weights: &dyn TensorSource,
    decoder: &Decoder,
    calibration: &[Vec<u32>],
    validation: &[Vec<u32>],
    options: &KvTuneOptions,
    progress: &mut dyn FnMut(usize, &KvConfig, f64),
) -> Result<KvTuneReport> {
    let shape = decoder.kv_shape();
    let profiler = ErrorProfiler::new(shape.layers, options.scheme)?;
    let errors = model.kv_errors(weights, calibration, profiler, options.stride)?;
    let space = SearchSpace::new(&errors, options.scheme, &options.clustering)?;
    let length = validation.iter().map(Vec::len).min().unwrap_or(0);
    let text = KvText::new(decoder, validation, options.prefix.unwrap_or(length * 3 / 4))?;
    let dense = text.evaluate(&KvKind::Dense, options.chunk)?;
    let mut measured = 0;
    let tuning = options.search.run(&space, shape.head_dim, |config: &KvConfig| {
        let kind = KvKind::Quantized(config.clone());
        let accuracy = -text.evaluate(&kind, options.chunk)?.perplexity.ln();
        measured += 1;
        progress(measured, config, accuracy);
        Ok::<f64, crate::Error>(accuracy)
    })?;
    Ok(KvTuneReport { errors, dense, tuning })
}
