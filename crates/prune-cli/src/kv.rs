use std::path::Path;
use std::time::Instant;

use prune_candle::{Decoder, KvKind, KvText, KvTuneOptions, LlamaModel, tune_kv};
use prune_checkpoint::ModelSource;
use prune_core::Seed;
use prune_quant::kv::{KvConfig, KvPair, KvScheme, KvSearch};
use serde_json::json;

use crate::args::{KvLayout, KvTuneArgs};
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
    let all = loaded.windows(&args.text, args.seqlen, Some(args.profile + args.windows))?;
    let (profiled, judging) = all.split_at(args.profile);
    let options = KvTuneOptions {
        scheme: match args.layout {
            KvLayout::Kivi => KvScheme::kivi(),
            KvLayout::PerToken => KvScheme::per_token(),
        },
        chunk: CHUNK,
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
    if args.json {
        let report = json!({"out": args.out, "report": report, "chosen": best,
            "seconds": start.elapsed().as_secs_f64()});
        say!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    say!(
        "{} groups of layers, {:.3e} configurations",
        tuning.space().groups().len(),
        tuning.space().size()
    );
    say!("{:>9} {:>9} {:>11}", "bits", "true bits", "perplexity");
    let line = |code: f64, stored: f64, perplexity: f64| {
        say!("{code:>9.3} {stored:>9.3} {perplexity:>11.4}");
    };
    line(32.0, 32.0, report.dense.perplexity);
    for trial in tuning.front() {
        line(trial.code_bits, trial.stored_bits, (-trial.accuracy).exp());
    }
    say!("wrote {}: {:.3} bits, {}", args.out.display(), best.code_bits, names(&config));
    say!("{:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// `prune eval --kv`.
pub(crate) fn evaluate(
    model: &str,
    text: &Path,
    length: usize,
    count: Option<usize>,
    config: &Path,
    as_json: bool,
) -> Result<(), Error> {
    let config = read(config)?;
    let start = Instant::now();
    let loaded = Loaded::new(model)?;
    let windows = loaded.windows(text, length, count)?;
    let prefix = windows.first().map_or(0, |w| w.len() * 3 / 4);
    let text = KvText::new(&loaded.decoder, &windows, prefix)?;
    let dense = text.evaluate(&KvKind::Dense, CHUNK)?;
    let bits = (config.mean_bits(), config.stored_bits(loaded.decoder.kv_shape().head_dim));
    let found = text.evaluate(&KvKind::Quantized(config), CHUNK)?;
    if as_json {
        let report = json!({"perplexity": found.perplexity, "tokens": found.tokens,
            "dense_perplexity": dense.perplexity, "bits": bits.0, "stored_bits": bits.1,
            "cache_bytes": found.cache_bytes, "dense_cache_bytes": dense.cache_bytes,
            "seconds": start.elapsed().as_secs_f64()});
        say!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    say!(
        "perplexity {:.4} over {} tokens; {:.4} through a cache of f32",
        found.perplexity,
        found.tokens,
        dense.perplexity
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

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, format!("{text}\n"))
        .map_err(|source| Error::Pipeline(prune_pipeline::Error::Io { path: path.into(), source }))
}
