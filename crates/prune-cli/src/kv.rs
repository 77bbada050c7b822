use std::path::Path;
use std::time::Instant;

use prune_candle::{
    Decoder, KvEvaluation, KvJudge, KvKind, KvText, KvTuneOptions, LlamaModel, tune_kv,
};
use prune_checkpoint::ModelSource;
use prune_core::Seed;
use prune_quant::kv::{KvConfig, KvPair, KvScheme, KvSearch};
use serde_json::json;

use crate::args::{EvalArgs, JudgeArg, KvLayout, KvTuneArgs};
use crate::error::Error;
use crate::model::{Wanted, open, windows};
use crate::output::say;
use crate::progress::Bar;

/// Tokens that see one another in full precision.
const CHUNK: usize = 32;

/// A model that can be run through a cache.
struct Loaded {
    checkpoint: Box<dyn ModelSource>,
    model: LlamaModel,
    decoder: Decoder,
}

impl Loaded {
    fn new(name: &str) -> Result<Self, Error> {
        let checkpoint = open(name)?;
        let model = LlamaModel::new(&checkpoint.config()?, &*checkpoint)?;
        let decoder = Decoder::load(&model, &*checkpoint)?;
        Ok(Self { checkpoint, model, decoder })
    }

    fn windows(
        &self,
        text: &Path,
        length: usize,
        count: Option<usize>,
    ) -> Result<Vec<Vec<u32>>, Error> {
        let wanted = Wanted::First(count);
        Ok(windows(text, &*self.checkpoint, &self.model, length, &wanted)?.windows().to_vec())
    }
}

/// `prune kv-tune`.
pub(crate) fn tune(args: &KvTuneArgs) -> Result<(), Error> {
    let start = Instant::now();
    let loaded = Loaded::new(&args.model)?;
    let count = args.profile + args.windows + args.check;
    let all = loaded.windows(&args.text, args.seqlen, Some(count))?;
    let (profiled, rest) = all.split_at(args.profile);
    let (judging, unseen) = rest.split_at(args.windows);
    let scheme = match args.layout {
        KvLayout::Kivi => KvScheme::kivi(),
        KvLayout::PerToken => KvScheme::per_token(),
    };
    let options = KvTuneOptions {
        scheme,
        chunk: CHUNK,
        judge: match args.judge {
            JudgeArg::Divergence => KvJudge::Divergence,
            JudgeArg::Likelihood => KvJudge::Likelihood,
        },
        search: KvSearch {
            max_bits: Some(args.max_bits),
            evaluations: args.evaluations,
            seed: Seed::new(args.seed),
            ..KvSearch::default()
        },
        ..KvTuneOptions::default()
    };
    let bar = Bar::new(args.evaluations);
    let Loaded { checkpoint, model, decoder } = &loaded;
    let mut progress = |done: usize, config: &KvConfig, _: f64| bar.show(done, &names(config));
    let report =
        tune_kv(model, &**checkpoint, decoder, profiled, judging, &options, &mut progress)?;
    bar.finish();
    let tuning = &report.tuning;
    let best = tuning.best(args.max_bits).ok_or_else(|| Error::Input {
        path: args.out.clone(),
        reason: format!("no configuration of at most {} bits was measured", args.max_bits),
    })?;
    let config = tuning.config(best)?;
    write(&args.out, &serde_json::to_string_pretty(&config)?)?;
    let checked = check(decoder, unseen, &config)?;
    if args.json {
        let checked: Vec<_> = checked.iter().map(|c| json!({"cache": c.0, "found": c.1})).collect();
        let report = json!({"out": args.out, "report": report, "chosen": best,
            "checked": checked, "seconds": start.elapsed().as_secs_f64()});
        say!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    say!(
        "{} groups of layers, {:.3e} configurations",
        tuning.space().groups().len(),
        tuning.space().size()
    );
    let judge = match args.judge {
        JudgeArg::Divergence => "divergence",
        JudgeArg::Likelihood => "nats",
    };
    say!("{:>9} {:>9} {judge:>11}", "bits", "true bits");
    for trial in tuning.front() {
        let (code, stored) = (trial.code_bits, trial.stored_bits);
        say!("{code:>9.3} {stored:>9.3} {:>11.5}", -trial.accuracy);
    }
    say!("wrote {}: {:.3} bits, {}", args.out.display(), best.code_bits, names(&config));
    if !checked.is_empty() {
        say!("on {} windows that the search did not see:", unseen.len());
        say!("{:>9} {:>11} {:>11} {:>13}", "cache", "perplexity", "divergence", "bytes");
        for (name, found) in checked {
            let KvEvaluation { perplexity, divergence, cache_bytes, .. } = found;
            say!("{name:>9} {perplexity:>11.4} {divergence:>11.5} {cache_bytes:>13}");
        }
    }
    say!("{:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A configuration on text that its search did not see, beside f32 and uniform caches.
fn check(
    decoder: &Decoder,
    windows: &[Vec<u32>],
    config: &KvConfig,
) -> Result<Vec<(String, KvEvaluation)>, Error> {
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let text = KvText::new(decoder, windows, prompt(windows))?;
    let layers = config.layers().len();
    let mut kinds = vec![("f32".to_string(), KvKind::Dense)];
    for pair in KvPair::USUAL {
        let uniform = KvConfig::uniform(layers, pair, *config.scheme())?;
        kinds.push((pair.to_string(), KvKind::Quantized(uniform)));
    }
    kinds.push(("tuned".to_string(), KvKind::Quantized(config.clone())));
    kinds.into_iter().map(|(name, kind)| Ok((name, text.evaluate(&kind, CHUNK)?))).collect()
}

/// Tokens of a window that are its prompt.
fn prompt(windows: &[Vec<u32>]) -> usize {
    windows.iter().map(Vec::len).min().unwrap_or(0) * 3 / 4
}

/// `prune eval --kv`.
pub(crate) fn evaluate(args: &EvalArgs, config: &Path) -> Result<(), Error> {
    let config = read(config)?;
    let start = Instant::now();
    let loaded = Loaded::new(&args.model)?;
    let windows = loaded.windows(&args.text, args.seqlen, args.windows)?;
    let text = KvText::new(&loaded.decoder, &windows, prompt(&windows))?;
    let dense = text.evaluate(&KvKind::Dense, CHUNK)?;
    let bits = (config.mean_bits(), config.stored_bits(loaded.decoder.kv_shape().head_dim));
    let found = text.evaluate(&KvKind::Quantized(config), CHUNK)?;
    if args.json {
        let report = json!({"perplexity": found.perplexity, "tokens": found.tokens,
            "dense_perplexity": dense.perplexity, "divergence": found.divergence,
            "bits": bits.0, "stored_bits": bits.1,
            "cache_bytes": found.cache_bytes, "dense_cache_bytes": dense.cache_bytes,
            "seconds": start.elapsed().as_secs_f64()});
        say!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    say!(
        "perplexity {:.4} over {} tokens; {:.4} through a cache of f32, {:.5} nats a token from it",
        found.perplexity,
        found.tokens,
        dense.perplexity,
        found.divergence
    );
    say!(
        "{:.3} bits a number, {:.3} with scales and offsets; caches of {} bytes, {} in f32",
        bits.0,
        bits.1,
        found.cache_bytes,
        dense.cache_bytes
    );
    Ok(())
}

fn names(config: &KvConfig) -> String {
    config.layers().iter().map(KvPair::to_string).collect::<Vec<_>>().join(" ")
}

fn read(path: &Path) -> Result<KvConfig, Error> {
    let invalid = |reason: String| Error::Input { path: path.into(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
    let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    if yaml {
        return Ok(KvConfig::from_kvtuner_yaml(&text, KvScheme::kivi())?);
    }
    serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))
}

/// All of the file or none of it.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    std::fs::write(&partial, format!("{text}\n"))
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|source| Error::Pipeline(prune_pipeline::Error::Io { path: path.into(), source }))
}
