//! ARMOR on one generated layer, and then on every linear layer of a language model next to
//! pruners of the same pattern.
//!
//! ```text
//! cargo run --release --example armor
//! cargo run --release --example armor -- --model SmolLM2 --calibration calib.npy --text test.npy
//! ```
//!
//! Without arguments the model is the one in `assets/tiny-llama`. All methods see the inputs of the
//! dense model.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use ndarray::{Array2, ArrayView2};
use prune_candle::{Tokenizer, load_model};
use prune_checkpoint::Checkpoint;
use prune_core::{
    BlockModel, ColumnStats, DType, Factoriser, GramAccumulator, LayerId, LayerStats, Pattern,
    Scope, Seed, Target, TensorInfo, TensorSource, encode_f32,
};
use prune_pipeline::{TokenWindows, Weighted, evaluate};
use prune_unstructured::{Armor, ArmorMethod, ArmorOptions, GroupChoice, armor, pruner};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const PATTERN: Pattern = Pattern::NM { n: 2, m: 4 };

/// Put 2:4 cores between block-diagonal factors.
#[derive(Parser, Debug)]
struct Args {
    /// A checkpoint of a language model; the embedded one unless given.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Calibration windows of token ids (.npy); the embedded text unless given.
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Windows to measure perplexity on (.npy); the embedded text unless given.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Calibration windows at most.
    #[arg(long, default_value_t = 32)]
    samples: usize,
    /// Windows to measure on at most.
    #[arg(long, default_value_t = 64)]
    windows: usize,
    /// Rows of a block of the model's factors.
    #[arg(long, default_value_t = 16)]
    block: usize,
    /// Iterations for the model.
    #[arg(long, default_value_t = 200)]
    iterations: usize,
    /// Seed of the generated layer and of random choices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    one_layer(args.seed)?;
    a_model(&args)
}

fn target(layer: &LayerId, weights: usize, seed: u64) -> Target<'_> {
    Target {
        layer,
        pattern: PATTERN,
        scope: Scope::PerRow,
        remove: weights / 2,
        stream: Seed::new(seed).stream(layer.as_str()),
    }
}

/// A layer of 512 x 512 whose inputs are correlated and have outlier channels.
fn one_layer(seed: u64) -> Result<()> {
    let mut stream = Seed::new(seed).stream("generated layer");
    let mut normal = || {
        let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * stream.uniform()).cos()) as f32
    };
    let weight = Array2::from_shape_simple_fn((512, 512), &mut normal);
    let mixing = Array2::from_shape_simple_fn((64, 512), &mut normal);
    let mut inputs = Array2::from_shape_simple_fn((2048, 64), &mut normal).dot(&mixing) * 0.125;
    for (j, mut column) in inputs.columns_mut().into_iter().enumerate() {
        let scale = if j % 97 == 5 { 10.0 } else { normal().exp() };
        column.mapv_inplace(|x| scale * (x + 0.5 * normal()));
    }
    let mut columns = ColumnStats::new(512);
    columns.update("inputs", inputs.view())?;
    let importance: Vec<f64> = columns.squared_norm().iter().map(|s| s / 2048.0).collect();
    let output = |weight: ArrayView2<'_, f32>| -> f64 {
        inputs.dot(&weight.t()).iter().map(|y| f64::from(*y).powi(2)).sum()
    };
    let whole = output(weight.view());

    println!("one layer of 512 x 512; loss and output error of a layer of zeros are 1");
    println!(
        "{:<34} {:>8} {:>8} {:>9} {:>6} {:>8}",
        "", "overhead", "loss", "output", "steps", "seconds"
    );
    let fast = || ArmorOptions::fast();
    for (name, options) in [
        ("NoWag-P", fast().iterations(0)),
        ("Adam, blocks of 16", fast()),
        ("Adam, blocks of 32", fast().block(32)),
        ("Adam, blocks of 64", fast().block(64)),
        ("the same, groups drawn by gradient", {
            ArmorOptions {
                discrete_steps: 1,
                ..fast().block(64).choice(GroupChoice::GradientRandom)
            }
        }),
        ("the same, largest gradient", {
            ArmorOptions { discrete_steps: 1, ..fast().block(64).choice(GroupChoice::Greedy) }
        }),
        ("exact steps, blocks of 64", {
            fast().block(64).method(ArmorMethod::Exact { core_steps: 2 }).iterations(40)
        }),
        ("sequential, blocks of 64", fast().block(64).method(ArmorMethod::Sequential)),
    ] {
        let layer = LayerId::new("generated");
        let start = Instant::now();
        let found =
            armor(weight.view(), &importance, &options, &target(&layer, weight.len(), seed))?;
        let seconds = start.elapsed().as_secs_f64();
        let error = output((&weight - &found.layer.to_dense()).view()) / whole;
        println!(
            "{name:<34} {:>6.1} % {:>8.5} {error:>9.5} {:>6} {seconds:>8.2}",
            100.0 * options.overhead(512, 512),
            found.loss,
            found.losses.len() - 1,
        );
    }
    Ok(())
}

fn a_model(args: &Args) -> Result<()> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let path = args.model.as_ref().unwrap_or(&assets);
    let source = Checkpoint::open(path)?;
    let model = load_model(&source.config()?, &source)?;
    let windows = |file: &Option<PathBuf>, embedded: &str, count: usize| -> Result<TokenWindows> {
        if let Some(file) = file {
            return Ok(TokenWindows::from_npy(file, Some(count))?);
        }
        let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
        let text = fs::read_to_string(assets.join("text").join(embedded))?;
        let tokens = Tokenizer::from_bytes(&json)?.encode(&text)?;
        let count = count.min(tokens.len() / 256);
        Ok(TokenWindows::consecutive(embedded, &tokens, 256, Some(count))?)
    };
    let calibration = windows(&args.calibration, "train.txt", args.samples)?;
    let unseen = windows(&args.text, "heldout.txt", args.windows)?;

    let options = ArmorOptions::fast().block(args.block).iterations(args.iterations);
    println!("\n{} at 2:4, ARMOR in blocks of {}", path.display(), args.block);
    println!("{:<12} {:>11} {:>9} {:>9}", "", "perplexity", "overhead", "seconds");
    let dense = Weighted { model: &*model, weights: &source };
    println!("{:<12} {:>11.3}", "dense", evaluate(dense, &unseen, None)?.perplexity);

    let mut methods: BTreeMap<&str, Replaced<'_>> = BTreeMap::new();
    let mut seconds: HashMap<&str, f64> = HashMap::new();
    let (mut more, mut all) = (0.0, 0);
    observe(&*model, &source, &calibration, &mut |layer, stats| {
        let weight = source.read_matrix(&layer.weight_name())?;
        let target = target(layer, weight.len(), args.seed);
        for name in ["wanda", "nowag", "sparsegpt", "armor"] {
            let start = Instant::now();
            let changed = if name == "armor" {
                more += options.overhead(weight.nrows(), weight.ncols()) * weight.len() as f64;
                all += weight.len();
                Armor(options.clone()).factorise(weight.view(), stats, &target)?.weight
            } else {
                let mut changed = weight.clone();
                pruner(name).ok_or("no such pruner")?.prune(changed.view_mut(), stats, &target)?;
                changed
            };
            *seconds.entry(name).or_default() += start.elapsed().as_secs_f64();
            methods
                .entry(name)
                .or_insert_with(|| Replaced { base: &source, tensors: HashMap::new() })
                .insert(layer, &changed)?;
        }
        Ok(())
    })?;
    for name in ["wanda", "nowag", "sparsegpt", "armor"] {
        let weights = methods.get(name).ok_or("the model has no layers")?;
        let subject = Weighted { model: &*model, weights };
        let overhead = if name == "armor" { 100.0 * more / all as f64 } else { 0.0 };
        println!(
            "{name:<12} {:>11.3} {overhead:>7.1} % {:>9.1}",
            evaluate(subject, &unseen, None)?.perplexity,
            seconds.get(name).copied().unwrap_or(0.0)
        );
    }
    Ok(())
}

/// Shows every linear layer of every block with the statistics of its input in the dense model.
fn observe(
    model: &dyn BlockModel,
    source: &Checkpoint,
    calibration: &TokenWindows,
    show: &mut dyn FnMut(&LayerId, &LayerStats) -> Result<()>,
) -> Result<()> {
    let embed = |tokens: &Vec<u32>| model.embed(source, tokens);
    let mut hidden = calibration.windows().iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    for index in 0..model.blocks() {
        let block = model.load_block(source, index)?;
        // Layers that share an input share its statistics.
        let mut seen: Vec<(Vec<LayerId>, LayerStats)> = Vec::new();
        for state in &mut hidden {
            block.observe(state.view(), &mut |layers, input| {
                let at = seen.iter().position(|(known, _)| known == layers);
                let at = at.unwrap_or_else(|| {
                    seen.push((
                        layers.to_vec(),
                        LayerStats {
                            columns: Some(ColumnStats::new(input.ncols())),
                            gram: Some(GramAccumulator::new(input.ncols())),
                            ..LayerStats::default()
                        },
                    ));
                    seen.len() - 1
                });
                let stats = &mut seen[at].1;
                if let (Some(columns), Some(gram)) = (&mut stats.columns, &mut stats.gram) {
                    columns.update("inputs", input)?;
                    gram.update("inputs", input)?;
                }
                Ok(())
            })?;
            *state = block.forward(state.view())?;
        }
        for (layers, stats) in &seen {
            for layer in layers {
                show(layer, stats)?;
            }
        }
    }
    Ok(())
}

/// A checkpoint some of whose weights are replaced.
struct Replaced<'a> {
    base: &'a Checkpoint,
    tensors: HashMap<String, (TensorInfo, Vec<u8>)>,
}

impl Replaced<'_> {
    fn insert(&mut self, layer: &LayerId, weight: &Array2<f32>) -> Result<()> {
        let name = layer.weight_name();
        let info = TensorInfo { dtype: DType::F32, ..self.base.info(&name)?.clone() };
        let values: Vec<f32> = weight.iter().copied().collect();
        let bytes = encode_f32(&name, DType::F32, &values)?;
        self.tensors.insert(name, (info, bytes));
        Ok(())
    }
}

impl TensorSource for Replaced<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        self.base.tensors()
    }

    fn info(&self, name: &str) -> prune_core::Result<&TensorInfo> {
        match self.tensors.get(name) {
            Some((info, _)) => Ok(info),
            None => self.base.info(name),
        }
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let Some((_, bytes)) = self.tensors.get(name) else {
            return self.base.read_at(name, offset, buf);
        };
        let part =
            bytes.get(offset..offset + buf.len()).ok_or_else(|| prune_core::Error::OutOfRange {
                what: format!("{name}: byte range"),
                found: format!("{offset} + {}", buf.len()),
                expected: format!("within {} bytes", bytes.len()),
            })?;
        buf.copy_from_slice(part);
        Ok(())
    }
}
