//! Trains the small vision transformer that ships in `assets/tiny-vit`.
//!
//! The model is a Hugging Face `ViTForImageClassification` of 135 thousand parameters: images of
//! 8 x 8 in 16 patches of 2 x 2, 4 blocks of width 64 with 4 heads, 10 classes. It is trained on the
//! first 1,297 images of `assets/digits` and judged on the last 500.
//!
//! ```text
//! cargo run --release --example train_tiny_vit
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::DType as CandleType;
use clap::Parser;
use prune_candle::{Vit, VitConfig, VitNaming};
use prune_checkpoint::{HfWriter, WriterOptions};
use prune_core::{DType, Seed, TensorInfo, encode_f32};
use prune_examples::digits::{self, Result, Training};
use prune_train::{Dataset, Masks, Model, Parameter, evaluate};
use serde_json::json;

/// Train the small vision transformer of `assets/`. The defaults are the shipped run.
#[derive(Parser, Debug)]
struct Args {
    /// Folder that receives the checkpoint and `train.log`; it must not exist.
    #[arg(long, default_value = "out/tiny-vit")]
    out: PathBuf,
    /// Seed of the initial weights and of the order of the images.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Passes over the images.
    #[arg(long, default_value_t = 200)]
    epochs: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (trained, judged) = digits::load_for_vit()?;
    let config = VitConfig {
        image_size: judged.size().height,
        patch_size: 2,
        channels: 1,
        hidden_size: 64,
        intermediate_size: 128,
        layers: 4,
        heads: 4,
        classes: 10,
        norm_eps: 1e-12,
        qkv_bias: true,
        distilled: false,
        naming: VitNaming::Vit,
    };
    let vit = Vit::init(config, Seed::new(args.seed))?.with_label_smoothing(0.1)?;
    let mut log = String::new();
    let mut note = |line: String| {
        println!("{line}");
        log += &line;
        log += "\n";
    };
    let training = Training { epochs: args.epochs, rate: 2e-3, seed: args.seed };
    note(format!(
        "{} parameters, {} images; {training:?}",
        vit.parameters().count(),
        trained.len()
    ));
    let start = Instant::now();
    let history = digits::train(&vit, (&trained, &judged), training, Masks::default())?;
    for record in &history.records {
        if let Some(right) = record.heldout_accuracy {
            let (step, loss, right) = (record.step, record.loss, 100.0 * right);
            note(format!("step {step:>4}  loss {loss:.4}  judged {right:.1} %"));
        }
    }
    println!("{:.0} s", start.elapsed().as_secs_f64());
    // What is written is what is judged.
    for parameter in vit.parameters().iter() {
        let rounded = parameter.var().to_dtype(CandleType::BF16)?.to_dtype(CandleType::F32)?;
        vit.parameters().set(parameter.name(), &rounded)?;
    }
    for (what, images) in [("trained", &trained), ("judged", &judged)] {
        let right = 100.0 * evaluate(&vit, images, 250)?.accuracy();
        note(format!("in bf16: {right:.1} % of the {} {what} images right", images.len()));
    }
    save(&vit, &args.out)?;
    Ok(fs::write(args.out.join("train.log"), log)?)
}

fn save(vit: &Vit, out: &Path) -> Result<()> {
    let config = vit.config();
    let json = json!({
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "id2label": (0..config.classes).map(|i| (i.to_string(), json!(i.to_string())))
            .collect::<serde_json::Map<_, _>>(),
        "label2id": (0..config.classes).map(|i| (i.to_string(), json!(i)))
            .collect::<serde_json::Map<_, _>>(),
        "torch_dtype": "bfloat16",
    });
    let info = |p: &Parameter| TensorInfo {
        name: p.name().to_string(),
        dtype: DType::BF16,
        shape: p.var().dims().to_vec(),
    };
    let plan = vit.parameters().iter().map(info).collect();
    let mut writer = HfWriter::create(out, WriterOptions { plan, ..WriterOptions::default() })?;
    for parameter in vit.parameters().iter() {
        let values = parameter.var().flatten_all()?.to_vec1::<f32>()?;
        let bytes = encode_f32(parameter.name(), DType::BF16, &values)?;
        writer.write_tensor(&info(parameter), &bytes)?;
    }
    writer.add_file("config.json", format!("{json:#}\n").as_bytes())?;
    writer.finish()?;
    Ok(())
}
