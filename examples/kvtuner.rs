//! KVTuner, whole: which layers need how many bits in their KV cache?
//!
//! ```text
//! cargo run --release --example kvtuner [MODEL_DIR] [OUT_DIR] [EVALUATIONS] [PAIRS] [DIGITS]
//! ```
//!
//! Profiles the attention errors of every layer, prunes and groups the pairs of key and value bits,
//! searches the rest with text and a recall task as the judge, and compares what it found with
//! uniform caches on text and questions that the search never saw. Without arguments it runs on the
//! model in `assets/tiny-llama`; a checkpoint of a Llama-family model takes a few minutes more. Of
//! PAIRS names (24) in its prompt the model recalls words, or numbers of DIGITS digits.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use plotters::prelude::*;
use prune_candle::{
    Decoder, KvKind, KvText, LlamaModel, RecallAnswers, RecallBench, RecallOptions, RecallTask,
    Tokenizer,
};
use prune_checkpoint::Checkpoint;
use prune_core::Seed;
use prune_quant::kv::{
    Clustering, ErrorMeasure, ErrorProfiler, KvBits, KvConfig, KvErrors, KvPair, KvScheme,
    KvSearch, SearchSpace,
};

/// Windows of the error profile and their length.
const PROFILE: (usize, usize) = (6, 256);
/// One query in so many is profiled.
const STRIDE: usize = 4;
/// Tokens of a window of text that are its prompt, and those that are predicted through the cache.
const PROMPT: usize = 320;
const PREDICTED: usize = 64;
/// Windows that the search judges by, and windows of the final comparison.
const WINDOWS: (usize, usize) = (8, 24);
/// Tokens that see one another in full precision.
const CHUNK: usize = 32;
/// The search should stay at or below so many bits.
const MAX_BITS: f64 = 4.0;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let folder = args.next().map_or_else(|| assets.clone(), PathBuf::from);
    let out = args.next().map_or_else(|| PathBuf::from("out/kvtuner"), PathBuf::from);
    let evaluations = args.next().map(|n| n.parse()).transpose()?.unwrap_or(120);
    let pairs = args.next().map(|n| n.parse()).transpose()?.unwrap_or(24);
    let digits = args.next().map(|n| n.parse()).transpose()?;
    let answers = digits.map_or(RecallAnswers::Words, RecallAnswers::Digits);
    let task = RecallOptions { pairs, answers, ..RecallOptions::default() };
    fs::create_dir_all(&out)?;
    let start = Instant::now();
    let lap = |what: &str| println!("[{:>6.1} s] {what}", start.elapsed().as_secs_f64());

    let checkpoint = Checkpoint::open(&folder)?;
    let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
    let decoder = Decoder::load(&model, &checkpoint)?;
    let shape = decoder.kv_shape();
    let json = checkpoint.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let read = |name: &str, count: usize, length: usize| -> Result<Vec<Vec<u32>>, Box<dyn Error>> {
        let text = fs::read_to_string(assets.join("text").join(name))?;
        let tokens = tokenizer.encode(&text)?;
        // Spread over the text.
        let step = (tokens.len().saturating_sub(length)) / count;
        Ok((0..count).map(|i| tokens[i * step..i * step + length].to_vec()).collect())
    };
    lap(&format!("loaded {}: {} layers", folder.display(), shape.layers));

    // How much does attention suffer in each layer?
    let scheme = KvScheme::kivi();
    let profiler = ErrorProfiler::new(shape.layers, scheme)?.measure(ErrorMeasure::NormRatio);
    let windows = read("train.txt", PROFILE.0, PROFILE.1)?;
    let errors = model.kv_errors(&checkpoint, &windows, profiler, STRIDE)?;
    let space =
        SearchSpace::new(&errors, scheme, &Clustering::default())?.with_candidates(&KvPair::USUAL);
    print_profile(&errors, &space);
    lap("profiled");

    // The judges: one for the search, one for the end.
    let length = PROMPT + PREDICTED + 1;
    let windows = read("train.txt", WINDOWS.0, length)?;
    let judged = RecallOptions { prompts: 4, seed: Seed::new(1), ..task };
    let judged = Judge::new(&decoder, &tokenizer, &windows, &judged)?;
    let bench = judged.bench()?;
    lap("prompts of the search have run");
    let search = KvSearch {
        max_bits: Some(MAX_BITS),
        evaluations,
        seed: Seed::new(0),
        ..KvSearch::default()
    };
    let mut measured = 0;
    let tuning = search.run(&space, shape.head_dim, |config: &KvConfig| {
        let score = judged.score(&bench, config)?;
        measured += 1;
        if measured % 10 == 0 {
            lap(&format!("measured {measured} configurations"));
        }
        Ok::<f64, prune_candle::Error>(score.accuracy())
    })?;
    lap("searched");
    fs::write(out.join("tuning.json"), serde_json::to_string_pretty(&tuning)?)?;

    // Everything again on unseen text and questions, uniform caches beside it.
    let windows = read("heldout.txt", WINDOWS.1, length)?;
    let unseen = RecallOptions { prompts: 12, seed: Seed::new(2), ..task };
    let unseen = Judge::new(&decoder, &tokenizer, &windows, &unseen)?;
    let bench = unseen.bench()?;
    let mut points = Vec::new();
    println!(
        "\n{:<22} {:>9} {:>9} {:>10} {:>8} {:>8} {:>6} {:>8} {:>11}",
        "cache", "bits", "true bits", "perplexity", "KL", "recall %", "nats", "KL", "bytes/token"
    );
    let mut row = |name: &str, kind: Kind, config: &KvConfig| -> Result<(), Box<dyn Error>> {
        let score = unseen.score(&bench, config)?;
        let bits = (config.mean_bits(), config.stored_bits(shape.head_dim));
        println!(
            "{name:<22} {:>9.3} {:>9.3} {:>10.3} {:>8.4} {:>8.1} {:>6.3} {:>8.4} {:>11.0}",
            bits.0,
            bits.1,
            score.perplexity,
            score.divergence,
            100.0 * score.recall,
            score.answer_loss,
            score.answer_divergence,
            score.bytes_per_token
        );
        points.push(Point { name: name.to_string(), kind, bits: bits.1, score });
        Ok(())
    };
    let kivi = |pair: &str| -> Result<KvConfig, Box<dyn Error>> {
        Ok(KvConfig::uniform(shape.layers, pair.parse()?, scheme)?)
    };
    row("16 bits", Kind::Kivi, &kivi("KV16")?)?;
    for pair in ["KV8", "K8V4", "KV4", "K4V2", "KV2"] {
        row(&format!("KIVI {pair}"), Kind::Kivi, &kivi(pair)?)?;
    }
    for pair in ["KV8", "KV4"] {
        let config = KvConfig::uniform(shape.layers, pair.parse()?, KvScheme::per_token())?;
        row(&format!("per token {pair}"), Kind::PerToken, &config)?;
    }
    for trial in tuning.front().filter(|t| t.code_bits <= 6.0) {
        let name = format!("tuned {:.2}", trial.code_bits);
        row(&name, Kind::Tuned, &tuning.config(trial)?)?;
    }
    lap("compared");

    let best = tuning.best(MAX_BITS).ok_or("no configuration within the limit")?;
    let config = tuning.config(best)?;
    println!("\nbest of at most {MAX_BITS} bits: {}", names(config.layers()));
    fs::write(out.join("kv.json"), serde_json::to_string_pretty(&config)?)?;
    fs::write(out.join("kvtuner.yaml"), config.to_kvtuner_yaml())?;
    draw(&points, &out.join("front.svg"))?;
    println!("kv.json, kvtuner.yaml, tuning.json and front.svg are in {}", out.display());
    Ok(())
}

/// Text and questions that a cache is judged by.
struct Judge<'a> {
    text: KvText<'a>,
    recall: RecallTask,
    decoder: &'a Decoder,
}

#[derive(Clone, Copy)]
struct Score {
    perplexity: f64,
    divergence: f64,
    recall: f64,
    answer_loss: f64,
    answer_divergence: f64,
    bytes_per_token: f64,
}

impl<'a> Judge<'a> {
    fn new(
        decoder: &'a Decoder,
        tokenizer: &Tokenizer,
        windows: &[Vec<u32>],
        task: &RecallOptions,
    ) -> prune_candle::Result<Self> {
        let recall = RecallTask::new(tokenizer, task)?;
        Ok(Self { text: KvText::new(decoder, windows, PROMPT)?, recall, decoder })
    }

    fn bench(&self) -> prune_candle::Result<RecallBench<'_>> {
        self.recall.prepare(self.decoder)
    }

    fn score(&self, bench: &RecallBench<'_>, config: &KvConfig) -> prune_candle::Result<Score> {
        let kind = KvKind::Quantized(config.clone());
        let text = self.text.evaluate(&kind, CHUNK)?;
        let recall = bench.evaluate(&kind)?;
        let windows = text.tokens / PREDICTED;
        Ok(Score {
            perplexity: text.perplexity,
            divergence: text.divergence,
            recall: recall.exact,
            answer_loss: recall.answer_loss,
            answer_divergence: recall.divergence,
            bytes_per_token: text.cache_bytes as f64 / (windows * (PROMPT + PREDICTED)) as f64,
        })
    }
}

impl Score {
    /// What the search maximises: nearness of predictions to those in full precision, of text and
    /// of the answers.
    fn accuracy(&self) -> f64 {
        -self.divergence - self.answer_divergence
    }
}

fn print_profile(errors: &[KvErrors], space: &SearchSpace) {
    println!("\nmean errors over the layers (relative; of attention absolute)");
    let mean =
        |f: &dyn Fn(&KvErrors) -> f64| errors.iter().map(f).sum::<f64>() / errors.len() as f64;
    for bits in [KvBits::Eight, KvBits::Four, KvBits::Two] {
        println!(
            "{bits} bits: keys {:.5}  values {:.5}  attention {:.6}",
            mean(&|e| e.key[&bits]),
            mean(&|e| e.value[&bits]),
            mean(&|e| e.score[&bits])
        );
    }
    for pair in KvPair::NINE {
        let output = mean(&|e| e.output_of(pair).unwrap_or(f64::NAN));
        print!("{pair} {output:.4}  ");
    }
    println!("\n\n{} groups, {:.3e} configurations", space.groups().len(), space.size());
    for group in space.groups() {
        println!("  layers {:?}: {}", group.layers, names(&group.candidates));
    }
    println!();
}

fn names(pairs: &[KvPair]) -> String {
    pairs.iter().map(KvPair::to_string).collect::<Vec<_>>().join(" ")
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Kivi,
    PerToken,
    Tuned,
}

struct Point {
    name: String,
    kind: Kind,
    bits: f64,
    score: Score,
}

/// True bits against perplexity and recall.
fn draw(points: &[Point], path: &Path) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (1000, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let halves = root.split_evenly((1, 2));
    type Figure<'a> = (&'a str, &'a dyn Fn(&Score) -> f64);
    let panels: [Figure<'_>; 2] = [
        ("perplexity (lower is better)", &|s: &Score| s.perplexity),
        ("recall, % (higher is better)", &|s: &Score| 100.0 * s.recall),
    ];
    // Sixteen bits are a line, not a point.
    let shown: Vec<&Point> = points.iter().filter(|p| p.bits < 10.0).collect();
    for (area, (title, of)) in halves.iter().zip(panels) {
        let values = || points.iter().map(|p| of(&p.score));
        let low = values().fold(f64::INFINITY, f64::min);
        // What collapsed would flatten the rest.
        let high = values().fold(f64::NEG_INFINITY, f64::max).min(3.0 * low.max(1.0)).max(low);
        let margin = 0.05 * (high - low).max(1e-3);
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(2.0..9.5, low - margin..high + margin)?;
        chart.configure_mesh().x_desc("bits a number, scales counted").draw()?;
        if let Some(full) = points.first() {
            let y = of(&full.score);
            chart
                .draw_series(LineSeries::new([(2.0, y), (9.5, y)], BLACK.mix(0.4)))?
                .label("16 bits")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 14, y)], BLACK.mix(0.4)));
        }
        for (kind, label, color) in [
            (Kind::Kivi, "KIVI, uniform", BLUE),
            (Kind::PerToken, "per token, uniform", GREEN),
            (Kind::Tuned, "tuned", RED),
        ] {
            let mut line: Vec<(f64, f64)> = shown
                .iter()
                .filter(|p| p.kind == kind)
                .map(|p| (p.bits, of(&p.score).min(high)))
                .collect();
            line.sort_by(|a, b| a.0.total_cmp(&b.0));
            chart.draw_series(LineSeries::new(line.clone(), color.mix(0.4)))?;
            chart
                .draw_series(line.iter().map(|p| Circle::new(*p, 4, color.filled())))?
                .label(label)
                .legend(move |(x, y)| Circle::new((x + 7, y), 4, color.filled()));
        }
        for p in shown.iter().filter(|p| p.kind != Kind::Tuned) {
            let at = (p.bits + 0.08, of(&p.score).min(high));
            let name = p.name.rsplit(' ').next().unwrap_or_default().to_string();
            chart.draw_series([Text::new(name, at, ("sans-serif", 12))])?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
    }
    root.present()?;
    Ok(())
}
