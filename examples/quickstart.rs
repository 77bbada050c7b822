//! The whole path on the model in `assets/tiny-llama`: prune it four ways, compare perplexity and
//! divergence with the dense model on text that it never saw, verify every result from disk, and
//! draw sparsity and error of each layer.
//!
//! ```text
//! cargo run --release --example quickstart [OUT_DIR]
//! ```

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use plotters::prelude::*;
use prune_candle::{LlamaModel, Tokenizer};
use prune_checkpoint::Checkpoint;
use prune_core::Seed;
use prune_examples as _;
use prune_pipeline::{
    ApplyOptions, Calibration, Evaluation, Manifest, Plan, Recipe, TokenWindows, Weighted, apply,
    evaluate, verify,
};

const SEED: u64 = 0;
const WINDOW: usize = 256;
const CALIBRATION_WINDOWS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let out =
        std::env::args().nth(1).map_or_else(|| PathBuf::from("out/quickstart"), PathBuf::from);
    fs::create_dir_all(&out)?;

    // A checkpoint, the model in it, and text to calibrate and to judge on.
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let source = Checkpoint::open(&assets)?;
    let model = LlamaModel::new(&source.config()?, &source)?;
    let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let read = |name: &str| -> Result<Vec<u32>, Box<dyn Error>> {
        Ok(tokenizer.encode(&fs::read_to_string(assets.join("text").join(name))?)?)
    };
    let seed = Seed::new(SEED);
    let samples =
        TokenWindows::sampled("train.txt", &read("train.txt")?, WINDOW, CALIBRATION_WINDOWS, seed)?;
    let unseen = TokenWindows::consecutive("heldout.txt", &read("heldout.txt")?, WINDOW, None)?;
    let calibration = Calibration::new(&model, &samples);
    let dense = Weighted { model: &model, weights: &source };

    println!("{:<14} {:>10} {:>8} {:>9} {:>8}", "", "perplexity", "KL", "sparsity", "seconds");
    let evaluation = evaluate(dense, &unseen, None)?;
    row("dense", &evaluation, 0.0, 0.0);

    let recipes = [
        ("random", Recipe::new("random").sparsity(0.5)),
        ("magnitude", Recipe::new("magnitude").sparsity(0.5)),
        ("wanda", Recipe::new("wanda").sparsity(0.5)),
        ("wanda-2of4", Recipe::new("wanda").pattern("2:4")),
    ];
    for (name, recipe) in recipes {
        let start = Instant::now();
        let folder = out.join(name);
        let plan = Plan::new(&source, &recipe.seed(SEED), Some(&calibration))?;
        let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
        let manifest =
            apply(&source, &plan, Some(&calibration), &folder, &options, &mut |_, _, _| ())?;
        let seconds = start.elapsed().as_secs_f64();

        // What counts is what stands on the disk.
        let verification = verify(&folder)?;
        if !verification.ok {
            return Err(format!("{name}: {:?}", verification.failures).into());
        }
        let pruned = Checkpoint::open(&folder)?;
        let subject = Weighted { model: &model, weights: &pruned };
        let evaluation = evaluate(subject, &unseen, Some(dense))?;
        row(name, &evaluation, plan.totals.sparsity, seconds);
        if name == "wanda" {
            draw(&manifest, &out.join("layers.svg"))?;
        }
    }
    println!("\nverified from disk; checkpoints and layers.svg are in {}", out.display());
    Ok(())
}

fn row(name: &str, evaluation: &Evaluation, sparsity: f64, seconds: f64) {
    let kl = evaluation.kl.unwrap_or(0.0);
    println!("{name:<14} {:>10.2} {kl:>8.4} {sparsity:>9.4} {seconds:>8.1}", evaluation.perplexity);
}

/// Sparsity and relative output error of every pruned layer, in the order of the checkpoint.
fn draw(manifest: &Manifest, path: &Path) -> Result<(), Box<dyn Error>> {
    let layers: Vec<(f64, f64)> = manifest
        .tensors
        .iter()
        .filter_map(|t| t.pruned.as_ref())
        .map(|p| (p.sparsity, p.relative_error))
        .collect();
    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Wanda, 50 %: sparsity and output error by layer", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..layers.len() as f64, 0.0..0.6)?;
    chart.configure_mesh().x_desc("layer").y_desc("fraction").draw()?;
    let bars = layers.iter().enumerate().map(|(i, (sparsity, _))| {
        Rectangle::new(
            [(i as f64 + 0.1, 0.0), (i as f64 + 0.9, *sparsity)],
            BLUE.mix(0.25).filled(),
        )
    });
    chart
        .draw_series(bars)?
        .label("sparsity")
        .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], BLUE.mix(0.25).filled()));
    let errors = layers.iter().enumerate().map(|(i, (_, error))| (i as f64 + 0.5, *error));
    chart
        .draw_series(LineSeries::new(errors, &RED))?
        .label("relative squared output error")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 12, y)], RED));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}
