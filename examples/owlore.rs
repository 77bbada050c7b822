//! OwLore: fine-tuning of a Llama a few blocks at a time, drawn by their outliers, with low-rank
//! gradients; beside LISA, GaLore, LoRA and full fine-tuning, with the peak memory of each.
//!
//! By default the model that ships with the project goes on with its own training text; with
//! `--model` and `--text` it is any Llama-family checkpoint and any text.
//!
//! ```text
//! cargo run --release --example owlore
//! cargo run --release --example owlore -- --model SmolLM2-135M-Instruct \
//!     --text train.txt --heldout test.txt --methods owlore --steps 50
//! ```
//!
//! Every method has a process to itself, whose peak memory is read from Linux.

use std::cell::Cell;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use prune_allocate::{SamplingMode, SamplingWeights};
use prune_candle::{
    Activations, LlamaModel, LoraOptions, TokenWindows, Tokenizer, TrainableLlama, outlier_scores,
};
use prune_checkpoint::Checkpoint;
use prune_core::{BlockModel, Seed};
use prune_examples as _;
use prune_train::{
    AdamW, AdamWOptions, BlockSampler, GaLore, GaLoreOptions, Optimizer, Progress, Schedule,
    StepContext, TrainOptions, Trainer, evaluate,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Fine-tune a Llama.
#[derive(Parser, Debug)]
struct Args {
    /// The checkpoint.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny-llama"))]
    model: PathBuf,
    /// The text to learn.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny-llama/text/train.txt"))]
    text: PathBuf,
    /// The text to be judged on.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny-llama/text/heldout.txt"))]
    heldout: PathBuf,
    /// Which methods: owlore, lisa, galore, lora, full, full-keep (all activations kept).
    #[arg(long, value_delimiter = ',', default_values_t = ["owlore", "lisa", "galore", "lora", "full", "full-keep"].map(String::from))]
    methods: Vec<String>,
    /// Steps.
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Windows of a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Predictions of a window.
    #[arg(long, default_value_t = 128)]
    window: usize,
    /// Windows to be judged on.
    #[arg(long, default_value_t = 32)]
    heldout_windows: usize,
    /// Peak learning rate; LoRA takes ten times as much.
    #[arg(long, default_value_t = 3e-4)]
    rate: f64,
    /// Blocks in training at a time (OwLore, LISA).
    #[arg(long, default_value_t = 2)]
    active: usize,
    /// Steps between two draws.
    #[arg(long, default_value_t = 10)]
    period: usize,
    /// Rank of GaLore's projection.
    #[arg(long, default_value_t = 64)]
    rank: usize,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Windows on which the outliers are counted.
    #[arg(long, default_value_t = 8)]
    calibration: usize,
    /// The one method that this process runs.
    #[arg(long, hide = true)]
    only: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.only {
        Some(method) => println!("{}", row(&args, method)?),
        None => each_alone(&args)?,
    }
    Ok(())
}

/// Runs this program again for every method, so that none has the memory of another.
fn each_alone(args: &Args) -> Result<()> {
    println!(
        "{:<10} {:>10} {:>12} {:>8} {:>9} {:>9} {:>8} {:>8}",
        "method", "trained", "state", "loss", "held-out", "ppl", "s/step", "MiB"
    );
    let mut peaks: Vec<(&str, f64)> = Vec::new();
    for method in &args.methods {
        let own = std::env::args_os().skip(1);
        let mut program = Command::new(std::env::current_exe()?);
        let child = program.args(own).args(["--only", method]).stderr(Stdio::inherit()).output()?;
        if !child.status.success() {
            return Err(format!("{method}: {}", child.status).into());
        }
        let row = String::from_utf8(child.stdout)?;
        print!("{row}");
        let peak = row.split_whitespace().last().and_then(|mib| mib.parse().ok());
        peaks.extend(peak.map(|peak| (method.as_str(), peak)));
    }
    if let Some((_, full)) = peaks.iter().find(|(method, _)| *method == "full") {
        let shares = peaks.iter().map(|(method, peak)| format!("{method} {:.2}", peak / full));
        println!("peak memory over that of full: {}", shares.collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// Trains by one method.
fn row(args: &Args, method: &str) -> Result<String> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let config = checkpoint.config()?;
    let tokenizer = Tokenizer::from_bytes(&fs::read(args.model.join("tokenizer.json"))?)?;
    let read = |path: &Path, windows: usize| -> Result<TokenWindows> {
        // Eight bytes a token are enough; more text is not tokenised.
        let text = fs::read_to_string(path)?;
        let bytes = (windows * args.window * 8).min(text.len());
        let end = (bytes..text.len()).find(|at| text.is_char_boundary(*at));
        let ids = tokenizer.encode(&text[..end.unwrap_or(text.len())])?;
        Ok(TokenWindows::new(ids, args.window)?.first(windows))
    };
    let train = read(&args.text, args.steps * args.batch)?;
    let heldout = read(&args.heldout, args.heldout_windows)?;
    let scores = {
        let model = LlamaModel::new(&config, &checkpoint)?;
        match method {
            "owlore" => {
                let text: String = fs::read_to_string(&args.text)?.chars().take(60_000).collect();
                let ids = tokenizer.encode(&text)?;
                let samples = ids.chunks_exact(args.window).take(args.calibration);
                let samples: Vec<&[u32]> = samples.collect();
                outlier_scores(&model, &checkpoint, &samples, 13.0)?
            }
            _ => vec![1.0; model.blocks()],
        }
    };
    if method == "owlore" {
        let shown: Vec<String> = scores.iter().map(|s| format!("{s:.3}")).collect();
        eprintln!("outliers of {} blocks, in %: {}", scores.len(), shown.join(" "));
    }
    let keep = method == "full-keep";
    let activations = if keep { Activations::Keep } else { Activations::Recompute };
    let mut model = TrainableLlama::load(&config, &checkpoint, activations)?;
    if method == "lora" {
        model = model.with_lora(LoraOptions::default(), Seed::new(args.seed))?;
    }
    let run = run(args, &model, method, &scores, &train, &heldout)?;
    Ok(format!(
        "{method:<10} {:>10} {:>12} {:>8.4} {:>9.4} {:>9.3} {:>8.2} {:>8}",
        run.trained,
        run.state,
        run.loss,
        run.heldout,
        run.heldout.exp(),
        run.seconds / args.steps.max(1) as f64,
        run.peak.map_or("?".to_string(), |p| p.to_string()),
    ))
}

struct Run {
    trained: usize,
    state: usize,
    loss: f64,
    heldout: f64,
    peak: Option<usize>,
    seconds: f64,
}

fn run(
    args: &Args,
    model: &TrainableLlama,
    method: &str,
    scores: &[f64],
    train: &TokenWindows,
    heldout: &TokenWindows,
) -> Result<Run> {
    let seed = Seed::new(args.seed);
    let rate = if method == "lora" { 10.0 * args.rate } else { args.rate };
    let adam = AdamWOptions { rate, weight_decay: 0.0, ..AdamWOptions::default() };
    let galore = GaLoreOptions {
        adam: AdamWOptions { eps: 1e-6, ..adam },
        rank: args.rank,
        ..GaLoreOptions::owlore()
    };
    let optimizer: Box<dyn Optimizer> = match method {
        "owlore" | "galore" => Box::new(GaLore::new(galore)?),
        "lisa" | "lora" | "full" | "full-keep" => Box::new(AdamW::new(adam)?),
        other => return Err(format!("`{other}` is no method of this example").into()),
    };
    let options = TrainOptions {
        steps: args.steps,
        batch: args.batch,
        schedule: Schedule::Cosine { warmup: args.steps / 10, least: 0.1 },
        clip: Some(1.0),
        seed,
        evaluate_batch: args.batch,
        progress: Progress::Bar,
        ..TrainOptions::default()
    };
    let trained = Cell::new(0);
    let mut trainer = Trainer::new(model, optimizer, options)?;
    let mode = match method {
        "owlore" => Some(SamplingMode::Score),
        "lisa" => Some(SamplingMode::Uniform),
        _ => None,
    };
    if let Some(mode) = mode {
        let weights = SamplingWeights::new(scores, mode)?;
        trainer = trainer.with_hook(BlockSampler::new(weights, args.active, args.period, seed)?);
    }
    trainer = trainer.with_hook(|step: &mut StepContext<'_>| {
        trained.set(step.parameters.trained());
        Ok(())
    });
    let start = Instant::now();
    let history = trainer.run(train, None::<&TokenWindows>)?;
    let seconds = start.elapsed().as_secs_f64();
    let last = history.records.iter().rev().take(10);
    let loss = last.clone().map(|r| r.loss).sum::<f64>() / last.count().max(1) as f64;
    let peak = peak_mib();
    Ok(Run {
        trained: trained.get(),
        state: trainer.optimizer_len(),
        loss,
        heldout: evaluate(model, heldout, args.batch)?.loss(),
        peak,
        seconds,
    })
}

/// The peak of the resident memory, in MiB, as the operating system counts it.
fn peak_mib() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib / 1024)
}
