//! Bits below a whole number: some blocks in 4 bits, some in 2, and who gets which (LIM, ZD, a
//! random order, measured errors); then sparsity and bits together under one budget of bytes.
//!
//! ```text
//! cargo run --release --example layerwise_bits [MODEL_DIR] [OUT_DIR]
//! ```
//!
//! Without arguments it runs on the model in `assets/tiny-llama`.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prune_allocate::{Choice, CostAllocator, ShareGroup, Solver};
use prune_candle::{Tokenizer, load_model};
use prune_checkpoint::{Checkpoint, open_model};
use prune_core::{
    DType, LayerId, LayerStats, Mask, QuantScheme, QuantTarget, Quantizer, Seed, TensorInfo,
    TensorSource, encode_f32,
};
use prune_pipeline::{
    ApplyOptions, Calibration, Plan, Recipe, TokenWindows, Weighted, apply, evaluate,
    linear_layers, verify,
};
use prune_quant::Rtn;

const WINDOW: usize = 256;
const CALIBRATION_WINDOWS: usize = 16;
const EVALUATION_WINDOWS: usize = 24;
const RANDOM_ORDERS: u64 = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let folder = args.next().map_or_else(|| assets.clone(), PathBuf::from);
    let out = args.next().map_or_else(|| PathBuf::from("out/layerwise"), PathBuf::from);
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
    println!("dense: perplexity {:.4}\n", evaluate(dense, &windows, None)?.perplexity);

    let directory = out.join("model");
    let perplexity = |recipe: &Recipe| -> Result<f64, Box<dyn Error>> {
        let plan = Plan::new(&source, recipe, Some(&calibration))?;
        let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
        apply(&source, &plan, Some(&calibration), &directory, &options, &mut |_, _, _| ())?;
        if !verify(&directory)?.ok {
            return Err("what was written does not verify".into());
        }
        let written = open_model(&directory)?;
        let subject = Weighted { model: &*model, weights: &*written };
        Ok(evaluate(subject, &windows, None)?.perplexity)
    };
    println!("GPTQ in groups of 64, perplexity");
    println!(
        "{:<8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>19}",
        "levels", "bits", "lim", "lim-all", "zd", "curve", "knapsack", "random, mean ± dev."
    );
    for levels in [[4, 2], [4, 3]] {
        for bits in [3.0, 3.25, 3.5] {
            let recipe = |allocate: &str, seed: u64| {
                let recipe = Recipe::new("gptq").scheme("g64 asym").bits(bits).levels(&levels);
                recipe.allocate(allocate).seed(seed)
            };
            print!("{:<8} {bits:>6}", format!("{}/{}", levels[0], levels[1]));
            for allocate in ["lim", "lim-all", "zd", "curve", "knapsack"] {
                print!(" {:>9.3}", perplexity(&recipe(allocate, 0))?);
            }
            let random: Vec<f64> = (0..RANDOM_ORDERS)
                .map(|seed| perplexity(&recipe("random", seed)))
                .collect::<Result<_, _>>()?;
            let mean = random.iter().sum::<f64>() / random.len() as f64;
            let squares = random.iter().map(|p| (p - mean).powi(2)).sum::<f64>();
            println!(" {mean:>9.3} ± {:.3}", (squares / random.len() as f64).sqrt());
        }
    }
    joint(&source, &|weights| {
        Ok(evaluate(Weighted { model: &*model, weights }, &windows, None)?.perplexity)
    })
}

/// The perplexity of a model with these weights.
type Judge<'a> = dyn Fn(&dyn TensorSource) -> Result<f64, Box<dyn Error>> + 'a;

/// How a layer is compressed: the part of its weights that goes, and the bits of those that stay.
type Share = (u32, u8);

/// What can be chosen from: percent of weights removed, and bits.
const SHARES: [Share; 8] = [(0, 8), (0, 5), (0, 4), (0, 3), (0, 2), (50, 8), (50, 4), (50, 3)];

/// Sparsity and bits of every layer, under one budget of bytes for all of them.
fn joint(source: &Checkpoint, perplexity: &Judge<'_>) -> Result<(), Box<dyn Error>> {
    let layers = linear_layers(source);
    let mut groups = Vec::new();
    let mut made: HashMap<(LayerId, Share), Vec<f32>> = HashMap::new();
    for layer in &layers {
        let weight = source.read_matrix(&layer.id.weight_name())?;
        let mut choices = Vec::new();
        for share in SHARES {
            let (values, bytes) = compress(&layer.id, weight.view(), share)?;
            let loss = values.iter().zip(&weight).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            choices.push(Choice { share, cost: bytes as u64, loss });
            made.insert((layer.id.clone(), share), values);
        }
        groups.push(ShareGroup::new(layer.id.clone(), choices)?);
    }
    println!("\nsparsity and bits together, magnitude masks and rounding in groups of 64");
    println!("{:>10} {:>22} {:>12} {:>10}", "bytes", "uniform", "lagrangian", "exact");
    for uniform in [(0, 4), (0, 3), (50, 4)] {
        let limit: u64 = groups
            .iter()
            .flat_map(|g| g.choices().iter().filter(|c| c.share == uniform))
            .map(|c| c.cost)
            .sum();
        let of = |share: &dyn Fn(&LayerId) -> Option<Share>| -> Result<f64, Box<dyn Error>> {
            let mut weights = HashMap::new();
            for layer in &layers {
                let key = (layer.id.clone(), share(&layer.id).ok_or("a layer without a share")?);
                let values = made.get(&key).ok_or("a share that was not made")?;
                weights.insert(
                    layer.id.weight_name(),
                    encode_f32(layer.id.as_str(), DType::F32, values)?,
                );
            }
            perplexity(&Changed::new(source, weights))
        };
        let mut found = vec![of(&|_| Some(uniform))?];
        for solver in [Solver::Lagrangian, Solver::Exact] {
            let chosen = CostAllocator::new(solver).allocate(&groups, limit)?;
            found.push(of(&|id| chosen.get(id).copied())?);
        }
        let name = format!("{} %, {} bits: {:.3}", uniform.0, uniform.1, found[0]);
        println!("{limit:>10} {name:>22} {:>12.3} {:>10.3}", found[1], found[2]);
    }
    Ok(())
}

/// The weights of one layer after pruning and rounding, and the bytes that they take: a bit mask
/// where some went, codes of those that stay, and scales.
fn compress(
    layer: &LayerId,
    weight: ndarray::ArrayView2<'_, f32>,
    (percent, bits): Share,
) -> Result<(Vec<f32>, usize), Box<dyn Error>> {
    let (rows, cols) = weight.dim();
    let mut sizes: Vec<f32> = weight.iter().map(|w| w.abs()).collect();
    let remove = rows * cols * percent as usize / 100;
    let limit = match remove {
        0 => -1.0,
        _ => *sizes.select_nth_unstable_by(remove - 1, f32::total_cmp).1,
    };
    let mask = Mask::from_fn(rows, cols, |r, c| weight[[r, c]].abs() > limit);
    let scheme = QuantScheme::int(bits)?.group(64);
    let target = QuantTarget { layer, scheme, keep: Some(&mask) };
    let done = Rtn::default().quantize(weight, &LayerStats::default(), &target)?;
    let kept = mask.kept();
    let scales = scheme.nbytes(rows, cols) - rows * cols * usize::from(bits) / 8;
    let bytes = (kept * usize::from(bits)).div_ceil(8)
        + scales
        + if percent > 0 { rows * cols / 8 } else { 0 };
    Ok((done.matrix.dequantize().into_raw_vec_and_offset().0, bytes))
}

/// A checkpoint with other weights in some places.
struct Changed<'a> {
    source: &'a Checkpoint,
    tensors: Vec<TensorInfo>,
    weights: HashMap<String, Vec<u8>>,
}

impl<'a> Changed<'a> {
    fn new(source: &'a Checkpoint, weights: HashMap<String, Vec<u8>>) -> Self {
        let mut tensors = source.tensors().to_vec();
        for tensor in tensors.iter_mut().filter(|t| weights.contains_key(&t.name)) {
            tensor.dtype = DType::F32;
        }
        Self { source, tensors, weights }
    }
}

impl TensorSource for Changed<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        match self.weights.get(name).and_then(|w| w.get(offset..offset + buf.len())) {
            Some(part) => {
                buf.copy_from_slice(part);
                Ok(())
            }
            None => self.source.read_at(name, offset, buf),
        }
    }
}
