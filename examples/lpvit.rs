//! LPViT end to end on the small vision transformer in `assets/tiny-vit`: half of its
//! multiplications go, in blocks of 16 x 16, and what is left is trained on with the mask kept.
//!
//! Three seeds choose the images of the calibration and the order of the training; every row of the
//! table is their mean, with the largest distance from it. `magnitude` is the baseline: the same
//! part of every layer's blocks, those of smallest weights.
//!
//! ```text
//! cargo run --release --example lpvit
//! ```

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use clap::Parser;
use ndarray::Array2;
use prune_allocate::{
    BlockCurve, BlockSolver, Lpvit, ReleasedBisection, ReleasedLayer, multiplications,
};
use prune_candle::Vit;
use prune_checkpoint::Checkpoint;
use prune_core::{LayerId, Mask, Seed};
use prune_examples::digits::{self, Result, Training};
use prune_importance::{BlockRanking, BlockScore, TaylorOrder};
use prune_train::vision::Images;
use prune_train::{Dataset, Masks, evaluate};

/// Prune the blocks of a small vision transformer.
#[derive(Parser, Debug)]
struct Args {
    /// A ViT or DeiT for images of 8 x 8.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny-vit"))]
    model: PathBuf,
    /// Rows and columns of a block.
    #[arg(long, num_args = 2, default_values_t = [16, 16])]
    block: Vec<usize>,
    /// The part of the multiplications that stays.
    #[arg(long, default_value_t = 0.5)]
    keep: f64,
    /// Images of the calibration.
    #[arg(long, default_value_t = 512)]
    calibration: usize,
    /// Passes over the images after pruning.
    #[arg(long, default_value_t = 30)]
    epochs: usize,
    /// Write the first images of the calibration to this safetensors file, for `prune compress --method
    /// lpvit`, and end.
    #[arg(long)]
    write_images: Option<PathBuf>,
    /// Number of seeds.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
}

/// The rows of the table.
#[derive(Debug, Clone, Copy)]
enum Method {
    /// Blocks by their Taylor score, divided over the layers by a solver.
    Taylor(BlockSolver),
    /// The same part of every layer, smallest weights first.
    Magnitude,
    /// The released code's bisection, and its masks: smallest weights first.
    Released,
}

const METHODS: [(&str, Method); 5] = [
    ("LPViT, exact", Method::Taylor(BlockSolver::Exact)),
    ("LPViT, hull", Method::Taylor(BlockSolver::Hull)),
    ("Taylor, uniform", Method::Taylor(BlockSolver::Uniform)),
    ("magnitude, uniform", Method::Magnitude),
    ("released LPViT", Method::Released),
];

/// What is known of one layer's blocks.
struct Layer {
    id: LayerId,
    weights: usize,
    /// Multiplications of a weight for one image.
    positions: usize,
    taylor: BlockRanking,
    magnitude: BlockRanking,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (trained, judged) = digits::load_for_vit()?;
    if let Some(path) = &args.write_images {
        let first: Vec<usize> = (0..args.calibration.min(trained.len())).collect();
        tensor(&trained, &first)?.save_safetensors("images", path)?;
        println!("wrote {} images to {}", first.len(), path.display());
        return Ok(());
    }
    let checkpoint = Checkpoint::open(&args.model)?;
    let load = || -> Result<Vit> {
        Ok(Vit::load(&checkpoint.config()?, &checkpoint)?.with_label_smoothing(0.1)?)
    };
    let accuracy = |vit: &Vit| -> Result<f64> { Ok(evaluate(vit, &judged, 250)?.accuracy()) };
    let dense = accuracy(&load()?)?;
    println!("dense: {:.1} % of {} images right\n", 100.0 * dense, judged.len());
    println!(
        "{:<20} {:>9} {:>12} {:>14} {:>14}",
        "", "kept", "curve", "after mask", "after training"
    );
    for (name, method) in METHODS {
        let mut rows = Vec::new();
        for seed in 0..args.seeds {
            let vit: Vit = load()?;
            let layers = measure(&vit, &trained, &args, seed)?;
            let removed = allocate(&layers, method, args.keep)?;
            let (masks, kept, loss) = masks(&layers, &removed, method)?;
            masks.apply(prune_train::Model::parameters(&vit))?;
            let masked = accuracy(&vit)?;
            let training = Training { epochs: args.epochs, rate: 1e-3, seed };
            digits::train(&vit, (&trained, &judged), training, masks.clone())?;
            for (layer, mask) in masks.iter() {
                let left = Mask::of_nonzeros(vit.weight(layer)?.view());
                if left.and(mask)? != left {
                    return Err(format!("{layer}: training brought back a removed weight").into());
                }
            }
            rows.push([100.0 * kept, loss, 100.0 * masked, 100.0 * accuracy(&vit)?]);
        }
        let [kept, loss, masked, tuned] = [0, 1, 2, 3].map(|i| spread(&rows, i));
        println!(
            "{name:<20} {:>7.1} % {:>12.6} {:>7.1} ± {:>3.1} % {:>7.1} ± {:>3.1} %",
            kept.0, loss.0, masked.0, masked.1, tuned.0, tuned.1
        );
    }
    Ok(())
}

/// The mean of a column, and the largest distance from it.
fn spread(rows: &[[f64; 4]], column: usize) -> (f64, f64) {
    let mean = rows.iter().map(|r| r[column]).sum::<f64>() / rows.len().max(1) as f64;
    (mean, rows.iter().map(|r| (r[column] - mean).abs()).fold(0.0, f64::max))
}

/// Images by their numbers, `(images, 1, 8, 8)`.
fn tensor(images: &Images, samples: &[usize]) -> Result<Tensor> {
    let size = images.size();
    let shape = (samples.len(), size.channels, size.height, size.width);
    Ok(Tensor::from_vec(images.plain(samples)?.pixels, shape, &Device::Cpu)?)
}

/// Ranks the blocks of every layer by the gradient of the output's energy over calibration images.
fn measure(vit: &Vit, digits: &Images, args: &Args, seed: u64) -> Result<Vec<Layer>> {
    let mut stream = Seed::new(seed).stream("calibration");
    let mut images: Vec<usize> = (0..digits.len()).collect();
    for i in (1..images.len()).rev() {
        images.swap(i, stream.below(i as u64 + 1) as usize);
    }
    images.truncate(args.calibration);
    let mut total: HashMap<LayerId, Array2<f32>> = HashMap::new();
    for part in images.chunks(128) {
        let share = part.len() as f32 / images.len() as f32;
        for (layer, gradient) in vit.energy_gradients(&tensor(digits, part)?)? {
            let gradient = gradient * share;
            match total.get_mut(&layer) {
                Some(sum) => *sum += &gradient,
                None => drop(total.insert(layer, gradient)),
            }
        }
    }
    let block = (args.block[0], args.block[1]);
    let layer = |info: &prune_core::LayerInfo| -> Result<Layer> {
        let weight = vit.weight(&info.id)?;
        let gradient = total.get(&info.id).ok_or("a layer without a gradient")?;
        let rank = |by| BlockRanking::new(&info.id, weight.view(), gradient.view(), block, by);
        Ok(Layer {
            id: info.id.clone(),
            weights: info.numel(),
            positions: vit.positions(info),
            taylor: rank(BlockScore::Taylor)?,
            magnitude: rank(BlockScore::Magnitude)?,
        })
    };
    vit.layers().iter().map(layer).collect()
}

/// How many blocks each layer loses.
fn allocate(layers: &[Layer], method: Method, keep: f64) -> Result<Vec<usize>> {
    let costs = |layer: &Layer, ranking: &BlockRanking| {
        multiplications(layer.weights, &ranking.removed_weights(), layer.positions as u64)
    };
    let dense: u64 = layers.iter().map(|l| (l.weights * l.positions) as u64).sum();
    let curves = |by: fn(&Layer) -> &BlockRanking| -> Result<Vec<BlockCurve>> {
        let curve = |l: &Layer| {
            let losses = by(l).losses(TaylorOrder::default());
            Ok(BlockCurve::new(l.id.clone(), losses, costs(l, by(l)))?)
        };
        layers.iter().map(curve).collect()
    };
    let limit = (keep * dense as f64) as u64;
    let (curves, solver) = match method {
        Method::Taylor(solver) => (curves(|l| &l.taylor)?, solver),
        Method::Magnitude => (curves(|l| &l.magnitude)?, BlockSolver::Uniform),
        Method::Released => {
            let released = |l: &Layer| ReleasedLayer {
                curve: l.taylor.released_curve(100, TaylorOrder::default()),
                left: costs(l, &l.magnitude),
            };
            let layers: Vec<ReleasedLayer> = layers.iter().map(released).collect();
            return Ok(ReleasedBisection::default().solve(&layers, dense, 1.0 - keep)?.removed);
        }
    };
    let removed = Lpvit::new(solver).allocate(&curves, limit)?;
    Ok(removed.iter().map(|(_, k)| *k).collect())
}

/// The masks, the part of the multiplications that is left and the sum of the curves.
fn masks(layers: &[Layer], removed: &[usize], method: Method) -> Result<(Masks, f64, f64)> {
    let (mut masks, mut left, mut all, mut loss) = (Vec::new(), 0, 0, 0.0);
    for (layer, &k) in layers.iter().zip(removed) {
        let ranking = match method {
            Method::Taylor(_) => &layer.taylor,
            Method::Magnitude | Method::Released => &layer.magnitude,
        };
        let mask = ranking.mask(k)?;
        left += mask.kept() * layer.positions;
        all += layer.weights * layer.positions;
        loss += ranking.losses(TaylorOrder::default())[k];
        masks.push((layer.id.clone(), mask));
    }
    Ok((Masks::new(masks), left as f64 / all as f64, loss))
}
