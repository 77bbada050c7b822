//! Prunes a sentence encoder with Wanda and shows how far its sentence vectors turn.
//!
//! ```text
//! cargo run --release --example sentence_embeddings -- MODEL_DIR TEXT OUT_DIR [SPARSITY]
//! cargo run --release --example sentence_embeddings -- MODEL_DIR --vectors < SENTENCES
//! ```
//!
//! TEXT is what the encoder is calibrated on. The second form prints a vector a line, for every
//! line that it reads.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;

use ndarray::Array2;
use prune_candle::{SentenceEncoder, SentenceOptions, Tokenizer, load_model};
use prune_checkpoint::Checkpoint;
use prune_core::{BlockModel, Seed, TensorSource};
use prune_pipeline::{ApplyOptions, Calibration, Plan, Recipe, TokenWindows, apply, verify};

const SENTENCES: [&str; 10] = [
    "A cat sleeps on the warm windowsill.",
    "The kitten is taking a nap in the sun.",
    "Interest rates rose by a quarter of a percentage point.",
    "The central bank tightened monetary policy again.",
    "He plays the cello in a string quartet.",
    "She is practising scales on the violin.",
    "The bridge was closed after the flood.",
    "Heavy rain made the river burst its banks.",
    "Sparse matrices store only the elements that are not zero.",
    "Pruning removes weights that matter little to the output of a network.",
];
/// What sentence-transformers cuts texts to for all-MiniLM-L6-v2.
const MAX_TOKENS: usize = 256;
const WINDOW: usize = 128;
const WINDOWS: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("the model's directory is missing")?;
    let source = Checkpoint::open(Path::new(path))?;
    let model = load_model(&source.config()?, &source)?;
    let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    match &arguments[1..] {
        [flag] if flag == "--vectors" => print_vectors(&*model, &source, &tokenizer),
        [text, out, rest @ ..] => {
            let sparsity = rest.first().map_or(Ok(0.5), |s| s.parse())?;
            prune(&*model, &source, &tokenizer, Path::new(text), Path::new(out), sparsity)
        }
        _ => Err("expected MODEL_DIR TEXT OUT_DIR [SPARSITY] or MODEL_DIR --vectors".into()),
    }
}

fn encode(
    model: &dyn BlockModel,
    weights: &dyn TensorSource,
    tokenizer: &Tokenizer,
    texts: &[&str],
) -> Result<Array2<f32>, prune_candle::Error> {
    let options = SentenceOptions { max_tokens: Some(MAX_TOKENS), ..SentenceOptions::default() };
    SentenceEncoder::new(model, weights, tokenizer)?.options(options).encode(texts)
}

fn print_vectors(
    model: &dyn BlockModel,
    source: &Checkpoint,
    tokenizer: &Tokenizer,
) -> Result<(), Box<dyn Error>> {
    let text = io::read_to_string(io::stdin())?;
    let lines: Vec<&str> = text.lines().collect();
    let mut out = io::stdout().lock();
    for vector in encode(model, source, tokenizer, &lines)?.outer_iter() {
        let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
        writeln!(out, "{}", numbers.join(" "))?;
    }
    Ok(())
}

fn prune(
    model: &dyn BlockModel,
    source: &Checkpoint,
    tokenizer: &Tokenizer,
    text: &Path,
    out: &Path,
    sparsity: f64,
) -> Result<(), Box<dyn Error>> {
    let tokens = tokenizer.encode(&std::fs::read_to_string(text)?)?;
    let (before, after) = tokenizer.frame()?;
    let length = WINDOW - before.len() - after.len();
    let what = text.display().to_string();
    let windows = TokenWindows::sampled(&what, &tokens, length, WINDOWS, Seed::new(0))?
        .framed(&before, &after);
    let calibration = Calibration::new(model, &windows);
    let dense = encode(model, source, tokenizer, &SENTENCES)?;
    println!(
        "{:<10} {:>9} {:>9} {:>9}   same as dense: least, mean",
        "", "sparsity", "pair", "others"
    );
    row("dense", 0.0, &dense, &dense);
    for method in ["magnitude", "wanda"] {
        let recipe = Recipe::new(method).sparsity(sparsity);
        let plan = Plan::new(source, &recipe, Some(&calibration))?;
        let folder = out.join(method);
        let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
        std::fs::create_dir_all(out)?;
        apply(source, &plan, Some(&calibration), &folder, &options, &mut |_, _, _| ())?;
        let verification = verify(&folder)?;
        if !verification.ok {
            return Err(format!("{method}: {:?}", verification.failures).into());
        }
        let pruned = Checkpoint::open(&folder)?;
        let vectors = encode(model, &pruned, tokenizer, &SENTENCES)?;
        row(method, plan.totals.sparsity, &vectors, &dense);
    }
    Ok(())
}

/// Prints the mean cosine of the sentences that belong together, that of all others, and the
/// cosines between the vectors of one sentence before and after.
fn row(name: &str, sparsity: f64, vectors: &Array2<f32>, dense: &Array2<f32>) {
    let cosines = vectors.dot(&vectors.t());
    let (mut pair, mut others) = (Vec::new(), Vec::new());
    for ((i, j), cosine) in cosines.indexed_iter().filter(|((i, j), _)| i < j) {
        if i / 2 == j / 2 { &mut pair } else { &mut others }.push(*cosine);
    }
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
    let same: Vec<f32> =
        vectors.outer_iter().zip(dense.outer_iter()).map(|(a, b)| a.dot(&b)).collect();
    let least = same.iter().copied().fold(f32::INFINITY, f32::min);
    println!(
        "{name:<10} {sparsity:>9.4} {:>9.4} {:>9.4}   {least:.4} {:.4}",
        mean(&pair),
        mean(&others),
        mean(&same)
    );
}
