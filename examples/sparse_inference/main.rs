//! Text from a Llama whose layers are 2:4, block-sparse, ARMOR's three factors or in 4 bits, through
//! the kernels of prune-kernels: tokens per second and bytes against dense. Where the layers are in
//! 4 bits the output matrix is in 8; otherwise it is dense f32.
//!
//! ```text
//! cargo run --release --example sparse_inference [MODEL] [--tokens N] [--threads N]
//! ```
//!
//! MODEL is a checkpoint of the Llama family; without one it is the tiny Llama of this repository,
//! which fits the caches, so that its speeds say little. Layers that hold a pattern already keep
//! their weights; others are pruned here, by magnitude, without regard for the quality of the text.
//! Every variant is first held against the reference model on the weights that it stands for.

mod compress;
mod model;

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use compress::{Variant, gguf_types};
use model::{Cache, Model, Vocabulary};
use ndarray::Array2;
use prune_candle::{LlamaConfig, LlamaModel, Tokenizer};
use prune_checkpoint::{BlockType, Checkpoint, GgufExport, GgufOptions};
use prune_core::{BlockModel, DType, LayerId, TensorInfo, TensorSource, encode_f32};
use prune_kernels::{Activations, KernelPath};

/// What crosses the threads of a pool.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Args {
    /// A model directory or file; the tiny Llama of this repository by default.
    model: Option<PathBuf>,
    /// What the text starts with.
    #[arg(long, default_value = "Once upon a time, there was a little")]
    prompt: String,
    /// Tokens to generate.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Threads; as many as the machine has by default.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Times that the generation is repeated; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Block sparsity.
    #[arg(long, default_value_t = 0.5)]
    sparsity: f64,
    /// Rows of a block of ARMOR's block-diagonal factors.
    #[arg(long, default_value_t = 32)]
    armor_block: usize,
    /// Iterations of ARMOR for each layer.
    #[arg(long, default_value_t = 20)]
    armor_iterations: usize,
    /// Columns of a group in 4 bits.
    #[arg(long, default_value_t = 64)]
    group: usize,
    /// Where to write the Q4_0 file that the last variant stands for, for llama.cpp.
    #[arg(long)]
    gguf: Option<PathBuf>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    // A product that is started by a thread of the pool does not wait for one to wake.
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?.install(|| run(&args))
}

fn run(args: &Args) -> Result<(), Failure> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let source = Checkpoint::open(args.model.as_deref().unwrap_or(&tiny))?;
    let config = LlamaConfig::from_json(&source.config()?)?;
    let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let prompt = tokenizer.encode(&args.prompt)?;

    if let Some(out) = &args.gguf {
        let options = GgufOptions { overwrite: true, ..GgufOptions::default() };
        let export = GgufExport::create(out, &source, &gguf_types(BlockType::Q4_0), &options)?;
        for tensor in source.tensors() {
            export.write(&tensor.name, &source.read_f32(&tensor.name)?)?;
        }
        export.finish()?;
    }
    let embedding = Arc::new(source.read_matrix("model.embed_tokens.weight")?);
    let head_layer =
        LayerId::new(if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" });

    let variants = [
        Variant::Dense,
        Variant::TwoOfFour,
        Variant::Blocks { sparsity: args.sparsity },
        Variant::Armor { block: args.armor_block, iterations: args.armor_iterations },
        Variant::FourBits { group: args.group, activations: Activations::F32 },
        Variant::FourBits { group: args.group, activations: Activations::Q8 },
        Variant::Gguf { block: BlockType::Q4_0 },
    ];
    println!(
        "{} threads, {}\n{:<28} {:>10} {:>7} {:>10} {:>9} {:>7} {:>10}",
        rayon::current_num_threads(),
        KernelPath::best(),
        "",
        "blocks MB",
        "",
        "with head",
        "tokens/s",
        "",
        "logits off"
    );
    let mut dense: Option<(usize, f64)> = None;
    let mut texts = Vec::new();
    for variant in &variants {
        let mut stands_for = Replaced::new(&source);
        let head = source.read_matrix(&head_layer.weight_name())?;
        let (head, weight) = variant.head(&head_layer, head)?;
        stands_for.replace(head_layer.weight_name(), weight.clone());
        let embedding = match config.tie_word_embeddings {
            true => Arc::new(weight),
            false => Arc::clone(&embedding),
        };
        let vocabulary = Vocabulary { embedding, head };
        let model = Model::load(&config, &source, vocabulary, |name| {
            let layer = LayerId::new(name);
            let weight = source.read_matrix(&layer.weight_name())?;
            let (kernel, weight) = variant.apply(&layer, weight)?;
            stands_for.replace(layer.weight_name(), weight);
            Ok(kernel)
        })?;
        let off = compare(&model, &stands_for, &source.config()?, &prompt)?;
        drop(stands_for);

        let mut speeds = Vec::new();
        let mut text = Vec::new();
        for _ in 0..args.runs.max(1) {
            let mut cache = Cache::default();
            let mut logits = model.forward(&prompt, &mut cache, true)?;
            text.clear();
            let start = Instant::now();
            for _ in 0..args.tokens {
                let next = largest(logits.row(0).iter());
                text.push(next);
                logits = model.forward(&[next], &mut cache, true)?;
            }
            speeds.push(args.tokens as f64 / start.elapsed().as_secs_f64());
        }
        speeds.sort_by(f64::total_cmp);
        let speed = speeds[speeds.len() / 2];
        let (blocks, bytes) = model.nbytes();
        let (dense_blocks, dense_speed) = *dense.get_or_insert((blocks, speed));
        println!(
            "{:<28} {:>10.1} {:>6.2}x {:>10.1} {:>9.1} {:>6.2}x {:>10.1e}",
            variant.name(),
            blocks as f64 / 1e6,
            dense_blocks as f64 / blocks as f64,
            bytes as f64 / 1e6,
            speed,
            speed / dense_speed,
            off
        );
        texts.push((variant.name(), tokenizer.decode(&text)?));
    }
    for (name, text) in texts {
        println!("\n{name}: {}{text}", args.prompt);
    }
    Ok(())
}

fn largest<'a>(logits: impl Iterator<Item = &'a f32>) -> u32 {
    let (token, _) = logits
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, v)| if *v > best.1 { (i, *v) } else { best });
    token as u32
}

/// The largest difference of a logit from the reference model's on the weights that the kernels
/// stand for, over the standard deviation of the reference's; the prompt is given whole, then token
/// by token.
fn compare(
    model: &Model,
    weights: &Replaced<'_>,
    config: &serde_json::Value,
    prompt: &[u32],
) -> Result<f32, Failure> {
    let reference = LlamaModel::new(config, weights)?;
    let mut hidden = reference.embed(weights, prompt)?;
    for index in 0..reference.blocks() {
        hidden = reference.load_block(weights, index)?.forward(hidden.view())?;
    }
    let expected = reference.load_head(weights)?.logits(hidden.view())?;
    let whole = model.forward(prompt, &mut Cache::default(), false)?;
    let mut cache = Cache::default();
    let mut stepwise = Array2::zeros(expected.dim());
    for (token, mut row) in prompt.iter().zip(stepwise.outer_iter_mut()) {
        row.assign(&model.forward(&[*token], &mut cache, true)?.row(0));
    }
    let scale = expected.std(0.0);
    let off = |found: &Array2<f32>| {
        found.iter().zip(&expected).map(|(f, e)| (f - e).abs() / scale).fold(0.0, f32::max)
    };
    Ok(off(&whole).max(off(&stepwise)))
}

/// A checkpoint with some matrices replaced.
struct Replaced<'a> {
    source: &'a Checkpoint,
    tensors: Vec<TensorInfo>,
    matrices: HashMap<String, Array2<f32>>,
}

impl<'a> Replaced<'a> {
    fn new(source: &'a Checkpoint) -> Self {
        Self { source, tensors: source.tensors().to_vec(), matrices: HashMap::new() }
    }

    fn replace(&mut self, name: String, matrix: Array2<f32>) {
        self.tensors.iter_mut().filter(|t| t.name == name).for_each(|t| t.dtype = DType::F32);
        self.matrices.insert(name, matrix);
    }
}

impl TensorSource for Replaced<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let Some(matrix) = self.matrices.get(name) else {
            return self.source.read_at(name, offset, buf);
        };
        let values = matrix.as_slice().unwrap_or_default();
        let end = offset + buf.len();
        let bytes = encode_f32(name, DType::F32, &values[offset / 4..end.div_ceil(4)])?;
        buf.copy_from_slice(&bytes[offset % 4..][..end - offset]);
        Ok(())
    }
}
