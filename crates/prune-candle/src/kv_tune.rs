use prune_core::TensorSource;
use prune_quant::kv::{
    Clustering, ErrorMeasure, ErrorProfiler, KvConfig, KvErrors, KvPair, KvScheme, KvSearch,
    KvTuning, SearchSpace,
};
use serde::Serialize;

use crate::{Decoder, KvEvaluation, KvKind, KvText, LlamaModel, Result};

/// How the bits of a KV cache are tuned.
#[derive(Debug, Clone, PartialEq)]
pub struct KvTuneOptions {
    /// How the caches quantise.
    pub scheme: KvScheme,
    /// The error by which a layer's pairs are pruned and layers are grouped.
    pub measure: ErrorMeasure,
    /// How layers are grouped.
    pub clustering: Clustering,
    /// One query in so many is measured in the error profile.
    pub stride: usize,
    /// Tokens of a validation window that are its prompt, run in full precision and then cached;
    /// three quarters of the window when absent. The rest is predicted.
    pub prefix: Option<usize>,
    /// Tokens of the rest in one pass.
    pub chunk: usize,
    /// What the search maximises.
    pub judge: KvJudge,
    /// The search.
    pub search: KvSearch,
}

/// What a KV search calls accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvJudge {
    /// Minus the [divergence](KvEvaluation::divergence) from the model in full precision, which no
    /// configuration can lower by chance.
    #[default]
    Divergence,
    /// The mean log-likelihood of a token of the text: the task itself, as in the paper. Rounding
    /// can raise it by chance, so that it takes much more text.
    Likelihood,
}

impl KvJudge {
    /// The accuracy of what was measured; higher is better.
    pub fn accuracy(self, found: &KvEvaluation) -> f64 {
        match self {
            Self::Divergence => -found.divergence,
            Self::Likelihood => -found.perplexity.ln(),
        }
    }
}

impl Default for KvTuneOptions {
    /// As the paper, but for two things that decide on few tokens: errors are ratios of norms, and
    /// the judge is the divergence from full precision.
    fn default() -> Self {
        Self {
            scheme: KvScheme::kivi(),
            measure: ErrorMeasure::NormRatio,
            clustering: Clustering::default(),
            stride: 4,
            prefix: None,
            chunk: 32,
            judge: KvJudge::default(),
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
    /// The search. Accuracy is what [`KvTuneOptions::judge`] says.
    pub tuning: KvTuning,
}

/// The whole of KVTuner on text: error profile of `calibration`, pruning, grouping, and a search
/// whose accuracy is how the tail of each `validation` window is predicted: see [`KvJudge`]. Caches
/// of [one of five pairs](KvPair::USUAL) in every layer are always measured first, so that on the
/// validation text the result is never worse than one of them within the limit.
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
    let profiler = ErrorProfiler::new(shape.layers, options.scheme)?.measure(options.measure);
    let errors = model.kv_errors(weights, calibration, profiler, options.stride)?;
    let space = SearchSpace::new(&errors, options.scheme, &options.clustering)?
        .with_candidates(&KvPair::USUAL);
    let length = validation.iter().map(Vec::len).min().unwrap_or(0);
    let text = KvText::new(decoder, validation, options.prefix.unwrap_or(length * 3 / 4))?;
    let dense = text.evaluate(&KvKind::Dense, options.chunk)?;
    let mut measured = 0;
    let tuning = options.search.run(&space, shape.head_dim, |config: &KvConfig| {
        let kind = KvKind::Quantized(config.clone());
        let accuracy = options.judge.accuracy(&text.evaluate(&kind, options.chunk)?);
        measured += 1;
        progress(measured, config, accuracy);
        Ok::<f64, crate::Error>(accuracy)
    })?;
    Ok(KvTuneReport { errors, dense, tuning })
}
