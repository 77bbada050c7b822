//! Pruners that fit weights to outputs, on a real model: the embedded one, or any Llama checkpoint.
//!
//! ```text
//! cargo run --release --example sparsegpt
//! cargo run --release --example sparsegpt -- --model SmolLM2-135M-Instruct \
//!     --calibration calibration.txt --heldout wikitext-2.txt --methods wanda,sparsegpt
//! ```
//!
//! Each method prunes block after block: the Gram matrices of a block come from inputs that the
//! blocks before it, already pruned, have made. Prints perplexity and divergence from the dense
//! model on unseen text, the mean relative error of the layers' outputs with and without the fit,
//! and what the manifest says of damping and iterations. Every result is verified from disk.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use prune_candle::{LlamaModel, Tokenizer};
use prune_checkpoint::Checkpoint;
use prune_core::Seed;
use prune_pipeline::{
    ApplyOptions, Calibration, Manifest, Plan, PrunedRecord, Recipe, TokenWindows, Weighted, apply,
    evaluate, verify,
};

#[derive(Parser)]
struct Args {
    /// Checkpoint; the model in assets/tiny-llama if left out.
    #[arg(long, requires_all = ["calibration", "heldout"])]
    model: Option<PathBuf>,
    /// Text to calibrate on.
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Text to judge on.
    #[arg(long)]
    heldout: Option<PathBuf>,
    /// Names of pruners, as `prune_unstructured::pruner` takes them.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "magnitude,wanda,ria,sparsegpt,ria+refit,admm,alps"
    )]
    methods: Vec<String>,
    /// `unstructured`, at half sparsity, or N:M.
    #[arg(long, value_delimiter = ',', default_value = "unstructured,2:4")]
    patterns: Vec<String>,
    /// Tokens of a window.
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// Windows to calibrate on.
    #[arg(long, default_value_t = 32)]
    windows: usize,
    /// Where results go.
    #[arg(long, default_value = "out/sparsegpt")]
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let text = |given: &Option<PathBuf>, own: &str| {
        given.clone().unwrap_or_else(|| assets.join("text").join(own))
    };
    let source = Checkpoint::open(args.model.as_deref().unwrap_or(&assets))?;
    let model = LlamaModel::new(&source.config()?, &source)?;
    let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let tokens = |path: &Path| -> Result<Vec<u32>, Box<dyn Error>> {
        Ok(tokenizer.encode(&std::fs::read_to_string(path)?)?)
    };
    let known = tokens(&text(&args.calibration, "train.txt"))?;
    let samples =
        TokenWindows::sampled("calibration", &known, args.length, args.windows, Seed::new(0))?;
    let unseen = tokens(&text(&args.heldout, "heldout.txt"))?;
    let unseen = TokenWindows::consecutive("heldout", &unseen, args.length, Some(64))?;
    let calibration = Calibration::new(&model, &samples);
    let dense = Weighted { model: &model, weights: &source };

    println!(
        "{:<13} {:<16} {:>10} {:>8} {:>10} {:>10} {:>8}",
        "", "", "perplexity", "KL", "mask only", "written", "seconds"
    );
    let evaluation = evaluate(dense, &unseen, None)?;
    println!("{:<13} {:<16} {:>10.2}", "", "dense", evaluation.perplexity);
    std::fs::create_dir_all(&args.out)?;
    for pattern in &args.patterns {
        for method in &args.methods {
            let recipe = match pattern.as_str() {
                "unstructured" => Recipe::new(method).sparsity(0.5),
                groups => Recipe::new(method).pattern(groups),
            };
            let folder = args.out.join(format!("{method}-{}", pattern.replace(':', "of")));
            let start = Instant::now();
            let plan = Plan::new(&source, &recipe.seed(0), Some(&calibration))?;
            let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
            let manifest =
                apply(&source, &plan, Some(&calibration), &folder, &options, &mut |_, _, _| ())?;
            let seconds = start.elapsed().as_secs_f64();
            let verification = verify(&folder)?;
            if !verification.ok {
                return Err(format!("{method}: {:?}", verification.failures).into());
            }
            let pruned = Checkpoint::open(&folder)?;
            let subject = Weighted { model: &model, weights: &pruned };
            let evaluation = evaluate(subject, &unseen, Some(dense))?;
            let (mask, written) =
                (mean(&manifest, |r| r.mask_error), mean(&manifest, |r| r.relative_error));
            println!(
                "{pattern:<13} {method:<16} {:>10.2} {:>8.4} {mask:>10.4} {written:>10.4} {seconds:>8.1}{}",
                evaluation.perplexity,
                evaluation.kl.unwrap_or(0.0),
                remarks(&manifest),
            );
        }
    }
    Ok(())
}

fn records(manifest: &Manifest) -> impl Iterator<Item = &PrunedRecord> {
    manifest.tensors.iter().filter_map(|t| t.pruned.as_ref())
}

/// The mean over the pruned layers.
fn mean(manifest: &Manifest, value: impl Fn(&PrunedRecord) -> f64) -> f64 {
    records(manifest).map(value).sum::<f64>() / records(manifest).count().max(1) as f64
}

/// What the methods had to do that was not asked for, and how long the iterative ones took.
fn remarks(manifest: &Manifest) -> String {
    let mut text = String::new();
    let raised = records(manifest).filter(|r| r.damping_raised > 0).count();
    if raised > 0 {
        text += &format!("  damping raised in {raised} layers");
    }
    let dead: usize = records(manifest).map(|r| r.dead_columns).sum();
    if dead > 0 {
        text += &format!("  {dead} dead channels");
    }
    let most = records(manifest).filter_map(|r| r.iterations).max();
    most.map_or(text.clone(), |most| format!("{text}  at most {most} iterations"))
}
