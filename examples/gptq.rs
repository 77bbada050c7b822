//! Quantizers side by side: rounding to nearest, GPTQ, AWQ and HQQ at 4, 3 and 2 bits, each written
//! to the disk, verified, and judged by text that the model never saw.
//!
//! ```text
//! cargo run --release --example gptq [MODEL_DIR] [OUT_DIR]
//! ```
//!
//! Without arguments it runs on the model in `assets/tiny-llama`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use prune_candle::{Tokenizer, load_model};
use prune_checkpoint::{Checkpoint, open_model};
use prune_core::Seed;
use prune_pipeline::{
    ApplyOptions, Calibration, Plan, Recipe, TokenWindows, Weighted, apply, evaluate, verify,
};

const WINDOW: usize = 256;
const CALIBRATION_WINDOWS: usize = 32;
const EVALUATION_WINDOWS: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let folder = args.next().map_or_else(|| assets.clone(), PathBuf::from);
    let out = args.next().map_or_else(|| PathBuf::from("out/gptq"), PathBuf::from);
    fs::create_dir_all(&out)?;

    let source = Checkpoint::open(&folder)?;
    let model = load_model(&source.config()?, &source)?;
    let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let read = |name: &str| -> Result<Vec<u32>, Box<dyn Error>> {
        Ok(tokenizer.encode(&fs::read_to_string(assets.join("text").join(name))?)?)
    };
    let train = read("train.txt")?;
    let samples =
        TokenWindows::sampled("train.txt", &train, WINDOW, CALIBRATION_WINDOWS, Seed::new(0))?;
    let heldout = read("heldout.txt")?;
    let windows =
        TokenWindows::consecutive("heldout.txt", &heldout, WINDOW, Some(EVALUATION_WINDOWS))?;
    let calibration = Calibration::new(&*model, &samples);
    let dense = Weighted { model: &*model, weights: &source };
    println!("dense: perplexity {:.4}", evaluate(dense, &windows, None)?.perplexity);
    println!(
        "\n{:<12} {:<20} {:>10} {:>8} {:>7} {:>8}",
        "method", "scheme", "perplexity", "KL", "bits", "seconds"
    );
    for bits in [4, 3, 2] {
        for method in ["rtn", "rtn-mse", "gptq", "gptq-act", "awq", "hqq"] {
            let zero = if method == "hqq" { "float" } else { "asym" };
            let scheme = format!("int{bits} g64 {zero}");
            let start = Instant::now();
            let recipe = Recipe::new(method).scheme(&scheme);
            let plan = Plan::new(&source, &recipe, Some(&calibration))?;
            let directory = out.join(format!("{method}-{bits}"));
            let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
            apply(&source, &plan, Some(&calibration), &directory, &options, &mut |_, _, _| ())?;
            let seconds = start.elapsed().as_secs_f64();
            let verification = verify(&directory)?;
            if !verification.ok {
                return Err(format!("{method}: {:?}", verification.failures).into());
            }
            let quantised = open_model(&directory)?;
            let subject = Weighted { model: &*model, weights: &*quantised };
            let found = evaluate(subject, &windows, Some(dense))?;
            let stored = 8.0 * plan.totals.quantized_bytes as f64;
            println!(
                "{method:<12} {scheme:<20} {:>10.4} {:>8.4} {:>7.3} {seconds:>8.1}",
                found.perplexity,
                found.kl.unwrap_or(f64::NAN),
                stored / plan.totals.quantized_weights as f64,
            );
        }
    }
    println!("\nverified from disk; the checkpoints are in {}", out.display());
    Ok(())
}
