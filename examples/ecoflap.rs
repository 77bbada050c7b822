//! ECoFLaP whole: the zeroth-order score of every layer by forward passes alone, kept weights by
//! water-fill, Wanda within every layer; perplexity beside uniform sparsity.
//!
//! ```text
//! cargo run --release --example ecoflap -- [--out DIR] [--sparsity 0.5,0.6,0.7]
//!     [--model DIR --calibration TEXT --heldout TEXT] [--window 256] [--seed 0]
//! ```
//!
//! Without `--model` it runs on the model in `assets/tiny-llama` and the texts beside it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use plotters::prelude::*;
use prune_allocate::Ecoflap;
use prune_candle::{Tokenizer, load_model};
use prune_checkpoint::Checkpoint;
use prune_core::{
    Allocator, BlockModel, Budget, LayerInfo, Objective, Result as CoreResult, ScoredLayer, Seed,
    TensorSource,
};
use prune_importance::ZerothOrder;
use prune_pipeline::{
    ApplyOptions, Calibration, CalibrationLoss, Plan, Recipe, TokenWindows, Weighted, apply,
    evaluate, verify,
};

/// Windows of a batch and batches: what the released code uses.
const WINDOWS: usize = 8;
const BATCHES: usize = 4;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "out/ecoflap")]
    out: PathBuf,
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.6,0.7")]
    sparsity: Vec<f64>,
    #[arg(long, requires_all = ["calibration", "heldout"])]
    model: Option<PathBuf>,
    #[arg(long)]
    calibration: Option<PathBuf>,
    #[arg(long)]
    heldout: Option<PathBuf>,
    #[arg(long, default_value_t = 256)]
    window: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
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
    let seed = Seed::new(arguments.seed);
    let text = read(path(&arguments.calibration, "text/train.txt"))?;
    let samples = TokenWindows::sampled("calibration", &text, arguments.window, 64, seed)?;
    let text = read(path(&arguments.heldout, "text/heldout.txt"))?;
    let unseen = TokenWindows::consecutive("heldout", &text, arguments.window, None)?;
    let calibration = Calibration::new(&*model, &samples);
    fs::create_dir_all(&arguments.out)?;

    let scores = score(&*model, &source, &calibration, seed)?;
    let blocks = by_block(model.layers(), &scores, model.blocks());
    let most = blocks.iter().copied().fold(0.0, f64::max);
    println!("\nblock   score");
    for (b, score) in blocks.iter().enumerate() {
        let bar = "#".repeat((40.0 * score / most) as usize);
        println!("{b:>5} {score:>7.3} {bar}");
    }

    // Stage one by hand: what the water-fill makes of these scores.
    let scored: Vec<ScoredLayer> = model
        .layers()
        .iter()
        .zip(&scores)
        .map(|(info, &score)| ScoredLayer { info: info.clone(), score })
        .collect();
    let last = arguments.sparsity.last().copied().unwrap_or(0.7);
    let kept = Ecoflap::default().allocate(&scored, &Budget::sparsity(last)?)?;
    let sparsities: Vec<f64> =
        kept.sparsities(model.layers())?.iter().map(|(_, sparsity)| *sparsity).collect();
    draw(&blocks, &means(model.layers(), &sparsities, model.blocks()), last, &arguments.out)?;

    // Both stages by recipe, written, verified from disk and evaluated.
    let dense = Weighted { model: &*model, weights: &source };
    println!("\n{:<22} {:>10} {:>8}", "", "perplexity", "KL");
    println!("{:<22} {:>10.2} {:>8}", "dense", evaluate(dense, &unseen, None)?.perplexity, "");
    for &sparsity in &arguments.sparsity {
        for allocator in ["uniform", "ecoflap", "ecoflap-layer", "ecoflap-joint"] {
            let recipe = Recipe::new("wanda").sparsity(sparsity).allocate(allocator);
            let plan = Plan::new(&source, &recipe.seed(arguments.seed), Some(&calibration))?;
            let folder = arguments.out.join(format!("{allocator}-{sparsity}"));
            let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
            apply(&source, &plan, Some(&calibration), &folder, &options, &mut |_, _, _| ())?;
            if !verify(&folder)?.ok {
                return Err(format!("{} does not verify", folder.display()).into());
            }
            let pruned = Checkpoint::open(&folder)?;
            let subject = Weighted { model: &*model, weights: &pruned };
            let evaluation = evaluate(subject, &unseen, Some(dense))?;
            let kl = evaluation.kl.unwrap_or(0.0);
            let name = format!("{allocator} {:.0} %", 100.0 * sparsity);
            println!("{name:<22} {:>10.2} {kl:>8.4}", evaluation.perplexity);
        }
    }
    println!("\ncheckpoints and ecoflap.svg are in {}", arguments.out.display());
    Ok(())
}

/// A loss that counts how often it is asked for.
struct Counted<'a> {
    loss: CalibrationLoss<'a>,
    passes: usize,
}

impl Objective for Counted<'_> {
    fn loss(&mut self, weights: &dyn TensorSource) -> CoreResult<f64> {
        self.passes += 1;
        self.loss.loss(weights)
    }
}

/// The score of every layer: two forward passes a layer and batch, no gradient.
fn score(
    model: &dyn BlockModel,
    source: &dyn TensorSource,
    calibration: &Calibration<'_>,
    seed: Seed,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut losses: Vec<Counted<'_>> = CalibrationLoss::batches(calibration, WINDOWS)?
        .into_iter()
        .take(BATCHES)
        .map(|loss| Counted { loss, passes: 0 })
        .collect();
    let order = ZerothOrder::default().with_seed(seed).with_draws(losses.len())?;
    let start = Instant::now();
    let mut objectives: Vec<&mut dyn Objective> =
        losses.iter_mut().map(|l| l as &mut dyn Objective).collect();
    let scores = order.scores(model.layers(), source, &mut objectives, &mut |done, all| {
        if done == all || done % 40 == 0 {
            eprint!("\r{done} of {all} forward passes");
        }
    })?;
    let passes: usize = losses.iter().map(|l| l.passes).sum();
    println!(
        "\n{} layers scored by {passes} forward passes of {WINDOWS} windows in {:.1} s",
        scores.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(scores)
}

fn by_block(layers: &[LayerInfo], values: &[f64], blocks: usize) -> Vec<f64> {
    let mut sums = vec![0.0; blocks];
    for (layer, value) in layers.iter().zip(values) {
        if let Some(sum) = layer.block.and_then(|b| sums.get_mut(b)) {
            *sum += value;
        }
    }
    sums
}

/// The mean by weights over each block.
fn means(layers: &[LayerInfo], values: &[f64], blocks: usize) -> Vec<f64> {
    let sizes: Vec<f64> = layers.iter().map(|l| l.numel() as f64).collect();
    let weighted: Vec<f64> = values.iter().zip(&sizes).map(|(v, n)| v * n).collect();
    let (sums, sizes) = (by_block(layers, &weighted, blocks), by_block(layers, &sizes, blocks));
    sums.iter().zip(sizes).map(|(sum, n)| sum / n).collect()
}

/// Score and sparsity of every block.
fn draw(scores: &[f64], sparsities: &[f64], budget: f64, out: &Path) -> Result<(), Box<dyn Error>> {
    let path = out.join("ecoflap.svg");
    let root = SVGBackend::new(&path, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(280);
    let most = scores.iter().copied().fold(0.0, f64::max);
    let charts = [
        (above, "loss change of every block", scores, most, "score"),
        (below, "its sparsity", sparsities, 1.0, "fraction removed"),
    ];
    for (area, caption, values, top, unit) in charts {
        let mut chart = ChartBuilder::on(&area)
            .caption(caption, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..values.len() as f64, 0.0..1.05 * top)?;
        chart.configure_mesh().x_desc("block").y_desc(unit).draw()?;
        chart.draw_series(values.iter().enumerate().map(|(b, v)| {
            Rectangle::new([(b as f64 + 0.1, 0.0), (b as f64 + 0.9, *v)], BLUE.mix(0.4).filled())
        }))?;
        if top == 1.0 {
            let line = [(0.0, budget), (values.len() as f64, budget)];
            chart.draw_series(LineSeries::new(line, &RED))?;
        }
    }
    root.present()?;
    Ok(())
}
