//! Writes a Llama checkpoint of any size with random weights, to try memory budgets and speed on.
//!
//! ```text
//! cargo run --release --example generate_llama -- OUT_DIR --gigabytes 8 --seed 0
//! ```
//!
//! The weights are bf16, normal with the usual standard deviation 0.02; the tokenizer is that of
//! the embedded model, so that the result can be calibrated. Holds one tensor at a time.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
use prune_core::{DType, Seed, TensorInfo, encode_f32};
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// Folder to write.
    out: PathBuf,
    /// Size of the weights; blocks are added until it is reached.
    #[arg(long, default_value_t = 8.0)]
    gigabytes: f64,
    /// Width of the hidden states, a multiple of 128.
    #[arg(long, default_value_t = 4096)]
    hidden: usize,
    /// Width of the gated layer.
    #[arg(long, default_value_t = 11008)]
    intermediate: usize,
    /// Bytes of a shard.
    #[arg(long, default_value_t = 2_000_000_000)]
    shard_size: u64,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let tiny = Checkpoint::open(&assets)?;
    let vocab = tiny.config()?["vocab_size"].as_u64().ok_or("no vocab_size")? as usize;
    let (hidden, inner, kv) = (args.hidden, args.intermediate, args.hidden / 4);
    let roles = [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    ];
    let block: usize = roles.iter().map(|(_, rows, cols)| 2 * rows * cols).sum();
    let blocks = ((args.gigabytes * 1e9 / block as f64).ceil() as usize).max(1);

    let bf16 = |name: String, shape: Vec<usize>| TensorInfo { name, dtype: DType::BF16, shape };
    let mut plan = vec![
        bf16("model.embed_tokens.weight".into(), vec![vocab, hidden]),
        bf16("model.norm.weight".into(), vec![hidden]),
    ];
    for i in 0..blocks {
        let name = |role: &str| format!("model.layers.{i}.{role}.weight");
        plan.extend(roles.iter().map(|(role, rows, cols)| bf16(name(role), vec![*rows, *cols])));
        plan.push(bf16(name("input_layernorm"), vec![hidden]));
        plan.push(bf16(name("post_attention_layernorm"), vec![hidden]));
    }
    let bytes: usize = plan.iter().map(TensorInfo::nbytes).sum();
    println!("{blocks} blocks, {} tensors, {bytes} bytes", plan.len());

    let options = WriterOptions {
        plan: plan.clone(),
        shard_size: args.shard_size,
        overwrite: true,
        ..WriterOptions::default()
    };
    let mut writer = HfWriter::create(&args.out, options)?;
    for info in &plan {
        let mut stream = Seed::new(args.seed).stream(&info.name);
        let norm = info.shape.len() == 1;
        let values: Vec<f32> = (0..info.numel())
            .map(|_| match norm {
                true => 1.0,
                // A sum of four uniforms is near enough to a normal and has variance 1/3.
                false => {
                    let sum: f64 = (0..4).map(|_| stream.uniform()).sum();
                    ((sum - 2.0) * 0.02 * 3f64.sqrt()) as f32
                }
            })
            .collect();
        writer.write_tensor(info, &encode_f32(&info.name, DType::BF16, &values)?)?;
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": hidden / 128, "num_key_value_heads": hidden / 512,
        "rms_norm_eps": 1e-5, "vocab_size": vocab, "tie_word_embeddings": true,
        "hidden_act": "silu", "rope_theta": 10000.0, "max_position_embeddings": 2048,
    });
    writer.add_file("config.json", serde_json::to_string_pretty(&config)?.as_bytes())?;
    for file in tiny.auxiliary_files()?.iter().filter(|f| f.name.starts_with("tokenizer")) {
        writer.copy_file(file)?;
    }
    writer.finish()?;
    println!("wrote {}", args.out.display());
    Ok(())
}
