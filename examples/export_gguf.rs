//! A model as GGUF files of every type, for llama.cpp: size, bits a weight, and what each costs.
//!
//! ```text
//! cargo run --release --example export_gguf [MODEL_DIR] [OUT_DIR]
//! ```
//!
//! Without arguments it runs on the model in `assets/tiny-llama`, whose rows do not divide into
//! blocks of 256: what is stored in place of a K type is in the last column.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prune_candle::{Tokenizer, load_model};
use prune_checkpoint::{Checkpoint, open_model};
use prune_core::block_of;
use prune_pipeline::{
    Action, ApplyOptions, Plan, Recipe, TokenWindows, Weighted, apply, evaluate, verify,
};

const WINDOW: usize = 256;
const EVALUATION_WINDOWS: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let folder = args.next().map_or_else(|| assets.clone(), PathBuf::from);
    let out = args.next().map_or_else(|| PathBuf::from("out/gguf"), PathBuf::from);
    fs::create_dir_all(&out)?;

    let source = Checkpoint::open(&folder)?;
    let model = load_model(&source.config()?, &source)?;
    let json = source.tokenizer_json()?.ok_or("the model has no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    let text = tokenizer.encode(&fs::read_to_string(assets.join("text/heldout.txt"))?)?;
    let windows =
        TokenWindows::consecutive("heldout.txt", &text, WINDOW, Some(EVALUATION_WINDOWS))?;
    let dense = Weighted { model: &*model, weights: &source };
    println!("dense: perplexity {:.4}\n", evaluate(dense, &windows, None)?.perplexity);
    println!("{:<6} {:>12} {:>10} {:>9}  stored as", "type", "bytes", "perplexity", "KL");
    for kind in
        ["f16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k"]
    {
        let recipe = Recipe::new("ggml").scheme(kind).format("gguf");
        let plan = Plan::new(&source, &recipe, None)?;
        let file = out.join(format!("{kind}.gguf"));
        let options = ApplyOptions { overwrite: true, ..ApplyOptions::default() };
        apply(&source, &plan, None, &file, &options, &mut |_, _, _| ())?;
        let verification = verify(&file)?;
        if !verification.ok {
            return Err(format!("{kind}: {:?}", verification.failures).into());
        }
        let written = open_model(&file)?;
        let subject = Weighted { model: &*model, weights: &*written };
        let found = evaluate(subject, &windows, Some(dense))?;
        let kinds: BTreeSet<&str> = plan
            .tensors
            .iter()
            .filter(|t| block_of(&t.name).is_some() && t.shape.len() == 2)
            .filter_map(|t| match &t.action {
                Action::Encode { kind } => Some(kind.as_str()),
                _ => None,
            })
            .collect();
        println!(
            "{kind:<6} {:>12} {:>10.4} {:>9.5}  {}",
            fs::metadata(&file)?.len(),
            found.perplexity,
            found.kl.unwrap_or(f64::NAN),
            kinds.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    println!("\nverified from disk; the files are in {}", out.display());
    Ok(())
}
