//! One training step: ResNet-20 on 128 images of CIFAR-10's size with SGD, and the Llama of
//! `assets/` on 8 windows of 128 tokens with AdamW. Medians of 10, and the peak memory of the
//! process; `train_step.py` is the same in PyTorch.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo run --release --example train_step
//! python examples/train_step.py 2
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use prune_candle::{Activations, TokenBatch, TrainableLlama};
use prune_checkpoint::Checkpoint;
use prune_core::Seed;
use prune_examples as _;
use prune_train::vision::{ImageBatch, Network};
use prune_train::{AdamW, AdamWOptions, Sgd, SgdOptions, TrainOptions, Trainer};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    let model = Network::resnet(20, 1.0, 10)?.build(Seed::new(0))?;
    let pixels = (0..128 * 3072u64).map(|i| (i * i % 997) as f32 / 498.5 - 1.0).collect();
    let batches = [ImageBatch { pixels, labels: (0..128).map(|i| i % 10).collect() }];
    let sgd = Sgd::new(SgdOptions { rate: 0.01, ..SgdOptions::default() })?;
    let mut trainer = Trainer::new(&model, sgd, TrainOptions::default())?;
    median("resnet-20, 128 images", || Ok(trainer.step(&batches, 1).map(drop)?))?;
    median("resnet-20, 128 images, inference", || {
        Ok(model.logits(&batches[0].pixels).map(drop)?)
    })?;
    drop(trainer);
    drop(model);

    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny-llama"));
    let checkpoint = Checkpoint::open(path)?;
    for (name, activations) in
        [("all kept", Activations::Keep), ("recomputed", Activations::Recompute)]
    {
        let model = TrainableLlama::load(&checkpoint.config()?, &checkpoint, activations)?;
        let ids = (0..8 * 129u64).map(|i| ((i * i * 7 + 13 * i) % 1536) as u32).collect();
        let batches = [TokenBatch { ids, time: 128 }];
        let adam = AdamW::new(AdamWOptions { rate: 1e-4, ..AdamWOptions::default() })?;
        let mut trainer = Trainer::new(&model, adam, TrainOptions::default())?;
        let name = format!("tiny llama, 8 x 128 tokens, {name}");
        median(&name, || Ok(trainer.step(&batches, 1).map(drop)?))?;
    }
    Ok(())
}

/// Prints the median of ten runs after one to warm up.
fn median(name: &str, mut step: impl FnMut() -> Result<()>) -> Result<()> {
    step()?;
    let mut times = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        step()?;
        times.push(1e3 * start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("?").trim();
    println!("{name}: {:.1} ms, peak of the process {peak}", (times[4] + times[5]) / 2.0);
    Ok(())
}
