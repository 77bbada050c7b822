//! PreCropping: networks made smaller before they are trained, beside uniform width and
//! fine-grained masks of the same budget.
//!
//! By default a small CNN learns the handwritten digits of `assets/digits`. With `--cifar10` it is a
//! ResNet-20 or a VGG-11 on CIFAR-10.
//!
//! ```text
//! cargo run --release --example precrop_train
//! cargo run --release --example precrop_train -- --cifar10 DIR --network resnet --train 5000
//! ```

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use prune_allocate::{Limits, PreCrop, Widths};
use prune_core::Seed;
use prune_examples::digits::{self, Result};
use prune_train::vision::{Augment, Images, LayerCount, MaskPlan, Network, Ratios, Size};
use prune_train::{
    Dataset, Masks, Progress, Schedule, Sgd, SgdOptions, TrainOptions, Trainer, evaluate,
};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    Resnet,
    Vgg,
}

/// Train cropped networks.
#[derive(Parser, Debug)]
struct Args {
    /// Folder with CIFAR-10; without it the digits that ship with the project are learnt.
    #[arg(long)]
    cifar10: Option<PathBuf>,
    /// The network, for CIFAR-10.
    #[arg(long, value_enum, default_value_t = Which::Resnet)]
    network: Which,
    /// Width multiplier of the network before it is cropped.
    #[arg(long, default_value_t = 1.0)]
    width: f64,
    /// Shares of parameters and of FLOPs.
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 0.3])]
    shares: Vec<f64>,
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
    /// Epochs.
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    /// Images of a batch.
    #[arg(long, default_value = "64")]
    batch: NonZeroUsize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 0.1)]
    rate: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (train, test) = data(&args)?;
    let full = match (args.cifar10.is_some(), args.network) {
        (false, _) => Network::small_cnn(&[1, 8, 8], (16.0 * args.width).round() as usize, 10)?,
        (true, Which::Resnet) => {
            Network::resnet(20, args.width, 10)?.for_images(args.side, args.side)?
        }
        (true, Which::Vgg) => Network::vgg(11, args.width, 10)?.for_images(args.side, args.side)?,
    };
    println!(
        "{} training and {} test images, {} epochs, seeds {:?}; accuracy in %",
        train.len(),
        test.len(),
        args.epochs,
        args.seeds
    );
    println!(
        "{:<16} {:<14} {:>9} {:>11} {:>6} {:>7} {:>8} {:>9} {:>7}",
        "budget", "by", "weights", "FLOPs", "acc", "sd", "train s", "test ms", "x dense"
    );
    let dense = row(&args, "full", "dense", &full, None, &train, &test, None)?;
    let channels = full.channels()?;
    let whole = channels.cost(&channels.full_widths());
    for &share in &args.shares {
        for by_parameters in [true, false] {
            let limits = match by_parameters {
                true => Limits { params: Some(share * whole.params as f64), flops: None },
                false => Limits { params: None, flops: Some(share * whole.flops as f64) },
            };
            let what = if by_parameters { "parameters" } else { "FLOPs" };
            let budget = format!("{:.0} % {what}", 100.0 * share);
            let show = |by: &str, network: &Network, density: Option<f64>| {
                row(&args, &budget, by, network, density, &train, &test, Some(dense)).map(|_| ())
            };
            let cropped = full.with_widths(&Widths::default().of(&channels, &limits)?)?;
            show("PreCrop", &cropped, None)?;
            show("uniform width", &narrowed(&full, &limits)?, None)?;
            let density = match by_parameters {
                true => share,
                false => density_within(&full, share * whole.flops as f64)?,
            };
            show("random masks", &full, Some(density))?;
            if by_parameters {
                let limits = Limits { flops: Some(whole.flops as f64), ..limits };
                let wide = Widths::new(PreCrop::widening(2.0)?).of(&channels, &limits)?;
                show("PreConfig", &full.with_widths(&wide)?, None)?;
            }
        }
    }
    Ok(())
}

fn data(args: &Args) -> Result<(Images, Images)> {
    let Some(folder) = &args.cifar10 else {
        let (train, test) = digits::load()?;
        return Ok((train.split(args.train).0, test));
    };
    let (train, test) = Images::cifar10(folder)?;
    let size = Size { height: args.side, width: args.side, ..train.size() };
    let train = train.split(args.train).0.resized(size)?;
    let train = train.augmented(Augment::CropAndFlip(args.side / 8));
    Ok((train, test.split(args.test).0.resized(size)?))
}

/// The widest network within limits whose layers all have one factor.
fn narrowed(full: &Network, limits: &Limits) -> Result<Network> {
    let fits = |net: &Network| {
        let weights: usize = net.counts().iter().map(|c| c.weights).sum();
        limits.params.is_none_or(|p| weights as f64 <= p)
            && limits.flops.is_none_or(|f| net.multiplications() as f64 <= f)
    };
    for factor in (1..400).rev() {
        let net = full.scaled(f64::from(factor) / 400.0)?;
        if fits(&net) {
            return Ok(net);
        }
    }
    Err("no width is within the limits".into())
}

/// The largest density, to a thousandth, at which the weights that ERK keeps take part in at most
/// `flops` multiplications.
fn density_within(network: &Network, flops: f64) -> Result<f64> {
    let model = network.build(Seed::new(0))?;
    let (mut within, mut beyond) = (0, 1000);
    while beyond - within > 1 {
        let middle = (within + beyond) / 2;
        let masks = erk(f64::from(middle) / 1000.0, Seed::new(0)).masks(&model, None)?;
        match multiplications(network, &masks) as f64 <= flops {
            true => within = middle,
            false => beyond = middle,
        }
    }
    match within {
        0 => Err("no density is within the limit".into()),
        within => Ok(f64::from(within) / 1000.0),
    }
}

fn erk(density: f64, seed: Seed) -> MaskPlan {
    MaskPlan { density, ratios: Ratios::Erk, seed, ..MaskPlan::default() }
}

/// The multiplications for one image by weights that masks keep.
fn multiplications(network: &Network, masks: &Masks) -> usize {
    let kept = |layer: &str| {
        let mut of_layer = masks.iter().filter(|(id, _)| id.as_str() == layer);
        of_layer.next().map(|(_, mask)| mask.kept())
    };
    let of = |c: LayerCount| {
        let weights = kept(&c.name).unwrap_or(c.weights);
        c.multiplications.checked_div(c.weights).map_or(0, |places| weights * places)
    };
    network.counts().into_iter().map(of).sum()
}

/// Trains with all seeds and prints a line; returns the milliseconds of a pass over the test images.
#[expect(clippy::too_many_arguments, reason = "a line of the table")]
fn row(
    args: &Args,
    budget: &str,
    by: &str,
    network: &Network,
    density: Option<f64>,
    train: &Images,
    test: &Images,
    dense: Option<f64>,
) -> Result<f64> {
    let (mut accuracies, mut seconds, mut passes) = (Vec::new(), 0.0, Vec::new());
    let mut flops = network.multiplications();
    let mut weights = network.counts().iter().map(|c| c.weights).sum::<usize>();
    for &seed in &args.seeds {
        let seed = Seed::new(seed);
        let model = network.build(seed)?;
        let masks = match density {
            Some(density) => erk(density, seed).masks(&model, None)?,
            None => Masks::default(),
        };
        if density.is_some() {
            (weights, flops) = (masks.kept(), multiplications(network, &masks));
        }
        let options = TrainOptions {
            steps: args.epochs * (train.len() / args.batch.get()),
            batch: args.batch.get(),
            schedule: Schedule::cifar(),
            seed,
            progress: Progress::Bar,
            ..TrainOptions::default()
        };
        let sgd = Sgd::new(SgdOptions { rate: args.rate, ..SgdOptions::default() })?;
        let start = Instant::now();
        let mut trainer = Trainer::new(&model, sgd, options)?.with_masks(masks)?;
        trainer.run(train, None::<&Images>)?;
        seconds += start.elapsed().as_secs_f64() / args.seeds.len() as f64;
        accuracies.push(evaluate(&model, test, 250)?.accuracy());
        for _ in 0..3 {
            let start = Instant::now();
            evaluate(&model, test, 250)?;
            passes.push(1e3 * start.elapsed().as_secs_f64());
        }
    }
    passes.sort_by(f64::total_cmp);
    let pass = passes[passes.len() / 2];
    let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
    let squares: f64 = accuracies.iter().map(|a| (a - mean).powi(2)).sum();
    let deviation = (squares / (accuracies.len().max(2) - 1) as f64).sqrt();
    println!(
        "{budget:<16} {by:<14} {weights:>9} {flops:>11} {:>6.2} {:>7.2} {seconds:>8.1} {pass:>9.1} {:>7.2}",
        100.0 * mean,
        100.0 * deviation,
        dense.unwrap_or(pass) / pass,
    );
    Ok(pass)
}
