//! Every allocator on one model, side by side: the same budget, the same pruner within the layers,
//! and what comes of it on text that the model never saw. A table, and a figure of the sparsity of
//! each block.
//!
//! ```text
//! cargo run --release --example allocators -- [--out DIR] [--sparsity 0.6] [--method wanda]
//!     [--model DIR --calibration TEXT --heldout TEXT] [--window 256] [--samples 64] [--seed 0]
//!     [--only owl,farms=0.1]
//! ```
//!
//! Without `--model` it runs on the model in `assets/tiny-llama` and the texts beside it. `--only`
//! takes names as recipes do, with a parameter after `=`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use plotters::prelude::*;
use prune_allocate::allocators;
use prune_candle::{Tokenizer, load_model};
use prune_checkpoint::Checkpoint;
use prune_core::{LayerInfo, Seed};
use prune_pipeline::{
    Action, ApplyOptions, Calibration, Plan, Recipe, TokenWindows, Weighted, apply, evaluate,
    verify,
};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "out/allocators")]
    out: PathBuf,
    #[arg(long, default_value_t = 0.6)]
    sparsity: f64,
    #[arg(long, default_value = "wanda")]
    method: String,
    #[arg(long, requires_all = ["calibration", "heldout"])]
    model: Option<PathBuf>,
    #[arg(long)]
    calibration: Option<PathBuf>,
    #[arg(long)]
    heldout: Option<PathBuf>,
    #[arg(long, default_value_t = 256)]
    window: usize,
    #[arg(long, default_value_t = 64)]
    samples: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let path =
        |given: &Option<PathBuf>, here: &str| given.clone().unwrap_or_else(|| assets.join(here));
    let source = Checkpoint::open(&path(&arguments.model, ""))?;
    let model = load_model(&source.config()?, &source)?;
    let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let read = |path: PathBuf| -> Result<Vec<u32>, Box<dyn Error>> {
        Ok(tokenizer.encode(&fs::read_to_string(path)?)?)
    };
    let (seed, window) = (Seed::new(arguments.seed), arguments.window);
    let text = read(path(&arguments.calibration, "text/train.txt"))?;
    let samples = TokenWindows::sampled("calibration", &text, window, arguments.samples, seed)?;
    let text = read(path(&arguments.heldout, "text/heldout.txt"))?;
    let unseen = TokenWindows::consecutive("heldout", &text, window, None)?;
    let calibration = Calibration::new(&*model, &samples);
    let dense = Weighted { model: &*model, weights: &source };
    fs::create_dir_all(&arguments.out)?;

    println!(
        "{} at {:.0} %\n\n{:<20} {:>10} {:>8} {:>8} {:>8} {:>8}",
        arguments.method,
        100.0 * arguments.sparsity,
        "",
        "perplexity",
        "KL",
        "least",
        "most",
        "planned"
    );
    let perplexity = evaluate(dense, &unseen, None)?.perplexity;
    println!("{:<20} {perplexity:>10.2} {:>8} {:>8} {:>8}", "dense", "", "", "");
    let names = match arguments.only.is_empty() {
        true => allocators().iter().map(|entry| entry.name.to_string()).collect(),
        false => arguments.only.clone(),
    };
    let mut series: Vec<(String, Vec<f64>)> = Vec::new();
    for name in names {
        let recipe = Recipe::new(&arguments.method).sparsity(arguments.sparsity).allocate(&name);
        let start = Instant::now();
        let plan = match Plan::new(&source, &recipe.seed(arguments.seed), Some(&calibration)) {
            Ok(plan) => plan,
            Err(e) => {
                println!("{name:<20} {e}");
                continue;
            }
        };
        let planned = start.elapsed().as_secs_f64();
        let folder = arguments.out.join(name.replace('+', "-plus"));
        let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
        apply(&source, &plan, Some(&calibration), &folder, &options, &mut |_, _, _| ())?;
        if !verify(&folder)?.ok {
            return Err(format!("{} does not verify", folder.display()).into());
        }
        let pruned = Checkpoint::open(&folder)?;
        let subject = Weighted { model: &*model, weights: &pruned };
        let evaluation = evaluate(subject, &unseen, Some(dense))?;
        let layers: Vec<f64> = plan.tensors.iter().filter_map(sparsity).collect();
        let least = layers.iter().copied().fold(1.0, f64::min);
        let most = layers.iter().copied().fold(0.0, f64::max);
        println!(
            "{name:<20} {:>10.2} {:>8.4} {least:>8.3} {most:>8.3} {planned:>6.1} s",
            evaluation.perplexity,
            evaluation.kl.unwrap_or(0.0),
        );
        series.push((name, by_block(&plan, model.layers(), model.blocks())));
    }
    draw(&series, &arguments.out.join("allocators.svg"))?;
    println!("\ncheckpoints and allocators.svg are in {}", arguments.out.display());
    Ok(())
}

/// The sparsity of a tensor that is pruned.
fn sparsity(tensor: &prune_pipeline::PlannedTensor) -> Option<f64> {
    let Action::Prune { remove, .. } = &tensor.action else { return None };
    Some(*remove as f64 / tensor.shape.iter().product::<usize>() as f64)
}

/// The sparsity of every block.
fn by_block(plan: &Plan, layers: &[LayerInfo], blocks: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); blocks];
    for layer in layers {
        let name = layer.id.weight_name();
        let tensor = plan.tensors.iter().find(|t| t.name == name);
        let place = layer.block.and_then(|b| sums.get_mut(b));
        if let (Some(s), Some((removed, all))) = (tensor.and_then(sparsity), place) {
            *removed += s * layer.numel() as f64;
            *all += layer.numel() as f64;
        }
    }
    sums.iter().map(|(removed, all)| removed / all).collect()
}

/// Sparsity by block, a line an allocator.
fn draw(series: &[(String, Vec<f64>)], path: &Path) -> Result<(), Box<dyn Error>> {
    let blocks = series.first().map_or(1, |s| s.1.len());
    let root = SVGBackend::new(path, (1000, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("sparsity of every block", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .right_y_label_area_size(150)
        .build_cartesian_2d(0.0..blocks as f64 - 1.0 + 1e-9, 0.0..1.0)?;
    chart.configure_mesh().x_desc("block").y_desc("fraction removed").draw()?;
    for (i, (name, values)) in series.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        let points = values.iter().enumerate().map(|(b, s)| (b as f64, *s));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}
