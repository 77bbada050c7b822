//! Fine-tuning of the model that ships with the project.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use prune_allocate::{SamplingMode, SamplingWeights};
use prune_candle::{
    Activations, LlamaModel, LoraOptions, TokenBatch, TokenWindows, TrainableLlama, outlier_scores,
};
use prune_checkpoint::Checkpoint;
use prune_core::Seed;
use prune_train::{
    AdamW, AdamWOptions, BlockSampler, Decay, GaLore, GaLoreOptions, Model, TrainOptions, Trainer,
};

fn checkpoint() -> Checkpoint {
    Checkpoint::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-llama")))
        .unwrap()
}

fn load(activations: Activations) -> TrainableLlama {
    let checkpoint = checkpoint();
    TrainableLlama::load(&checkpoint.config().unwrap(), &checkpoint, activations).unwrap()
}

/// Four windows of 32 predictions: token i is 7 i² + 13 i modulo 1536.
fn batch() -> TokenBatch {
    let ids = (0..4 * 33).map(|i: u32| (i * i * 7 + 13 * i) % 1536).collect();
    TokenBatch { ids, time: 32 }
}

fn adam() -> AdamWOptions {
    AdamWOptions { rate: 1e-3, weight_decay: 0.1, decay: Decay::All, ..AdamWOptions::default() }
}

/// Losses of transformers 5.24.0 on PyTorch 2.15.0 (float32, eager attention, one thread, AdamW with
/// a rate of 1e-3 and a decay of 0.1).
#[rustfmt::skip]
const ADAMW: [f64; 20] = [
    16.2776508, 13.7805529, 11.6833849, 9.9779253, 8.5663366, 7.5515957, 6.6056995, 5.7467308,
    4.9949813, 4.2779331, 3.5889015, 2.9763412, 2.4649098, 2.0381272, 1.6793163, 1.3692559,
    1.1025313, 0.8984203, 0.7531689, 0.6454846,
];

#[test]
fn full_fine_tuning_gives_the_losses_of_transformers() {
    for activations in [Activations::Recompute, Activations::Keep] {
        let model = load(activations);
        let optimizer = AdamW::new(adam()).unwrap();
        let mut trainer = Trainer::new(&model, optimizer, TrainOptions::default()).unwrap();
        for (step, expected) in ADAMW.iter().enumerate() {
            let loss = trainer.step(&[batch()], 1).unwrap().loss;
            assert!((loss - expected).abs() < 2e-5 * expected, "{step}: {loss}, {expected}");
        }
    }
}

#[test]
fn recomputing_changes_no_gradient() {
    let (a, b) = (load(Activations::Recompute), load(Activations::Keep));
    for block in [0, 1, 3] {
        for model in [&a, &b] {
            for p in model.parameters().iter() {
                p.freeze(!p.name().contains(&format!("layers.{block}.")));
            }
        }
        let (one, other) = (a.gradients(&batch()).unwrap(), b.gradients(&batch()).unwrap());
        assert_eq!(one.0, other.0);
        for (i, p) in a.parameters().iter().enumerate() {
            let values = |g: &prune_train::Gradients| {
                g.get(i).map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            };
            let trained = p.name().contains(&format!("layers.{block}."));
            assert_eq!(values(&one.1).is_some(), trained, "{}", p.name());
            assert_eq!(values(&one.1), values(&other.1), "{}", p.name());
        }
    }
}

#[test]
fn the_loss_is_that_of_the_model_that_runs_block_by_block() {
    let checkpoint = checkpoint();
    let model = LlamaModel::new(&checkpoint.config().unwrap(), &checkpoint).unwrap();
    let trainable = load(Activations::Recompute);
    let batch = batch();
    let mut sum = 0.0;
    for window in batch.ids.chunks(33) {
        use prune_core::BlockModel;
        let mut x = model.embed(&checkpoint, &window[..32]).unwrap();
        for b in 0..model.blocks() {
            x = model.load_block(&checkpoint, b).unwrap().forward(x.view()).unwrap();
        }
        let logits = model.load_head(&checkpoint).unwrap().logits(x.view()).unwrap();
        for (row, target) in logits.rows().into_iter().zip(&window[1..]) {
            let max = row.fold(f32::MIN, |m, v| m.max(*v));
            let sum_exp: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            sum += sum_exp.ln() - f64::from(row[*target as usize] - max);
        }
    }
    let loss = trainable.evaluate(&batch).unwrap();
    assert!((loss.loss() - sum / 128.0).abs() < 1e-5, "{} {}", loss.loss(), sum / 128.0);
    assert!((trainable.gradients(&batch).unwrap().0.loss() - loss.loss()).abs() < 1e-6);
}

#[test]
fn adapters_start_as_nothing_learn_alone_and_merge() {
    let model = load(Activations::Recompute);
    let before = model.evaluate(&batch()).unwrap().loss();
    let weights = model.parameters().len();
    let model = model.with_lora(LoraOptions::default(), Seed::new(0)).unwrap();
    assert_eq!(model.evaluate(&batch()).unwrap().loss(), before);
    let adapters: usize =
        model.parameters().iter().skip(weights).map(|p| p.var().elem_count()).sum();
    assert_eq!(model.parameters().trained(), adapters);
    let options = AdamWOptions { rate: 1e-2, ..adam() };
    let mut trainer =
        Trainer::new(&model, AdamW::new(options).unwrap(), TrainOptions::default()).unwrap();
    for _ in 0..8 {
        trainer.step(&[batch()], 1).unwrap();
    }
    let after = model.evaluate(&batch()).unwrap().loss();
    assert!(after < 0.8 * before, "{before} {after}");
    model.merge_lora().unwrap();
    let merged = model.evaluate(&batch()).unwrap().loss();
    assert!((merged - after).abs() < 1e-3, "{after} {merged}");
    let none = LoraOptions { layers: vec!["nothing".to_string()], ..LoraOptions::default() };
    assert!(load(Activations::Keep).with_lora(none, Seed::new(0)).is_err());
}

#[test]
fn owlore_holds_the_state_of_the_drawn_blocks_only() {
    let checkpoint = checkpoint();
    let llama = LlamaModel::new(&checkpoint.config().unwrap(), &checkpoint).unwrap();
    let ids = batch().ids;
    let samples: Vec<&[u32]> = ids.chunks(33).collect();
    let scores = outlier_scores(&llama, &checkpoint, &samples, 5.0).unwrap();
    assert_eq!(scores.len(), 4);
    assert!(scores.iter().all(|s| *s > 0.0 && *s < 10.0), "{scores:?}");
    let weights = SamplingWeights::new(&scores, SamplingMode::Score).unwrap();
    let sampler = BlockSampler::new(weights, 2, 2, Seed::new(1)).unwrap();
    let expected: Vec<Vec<usize>> = (0..4).map(|p| sampler.blocks(2 * p).unwrap()).collect();
    let model = load(Activations::Recompute);
    let adam = AdamWOptions { rate: 1e-3, eps: 1e-6, weight_decay: 0.0, ..adam() };
    let galore = GaLore::new(GaLoreOptions { adam, rank: 16, ..GaLoreOptions::owlore() }).unwrap();
    let mut trainer =
        Trainer::new(&model, galore, TrainOptions::default()).unwrap().with_hook(sampler);
    let first = trainer.step(&[batch()], 1).unwrap().loss;
    let one = trainer.optimizer_len();
    for step in 1..8 {
        trainer.step(&[batch()], 1).unwrap();
        // As much state as after the first step: two blocks, embeddings, the last norm.
        assert_eq!(trainer.optimizer_len(), one, "step {step}");
        let trained: Vec<usize> = (0..4)
            .filter(|b| {
                let name = format!("model.layers.{b}.mlp.up_proj.weight");
                model.parameters().get(&name).unwrap().is_trained()
            })
            .collect();
        assert_eq!(trained, expected[step / 2]);
    }
    assert!(trainer.step(&[batch()], 1).unwrap().loss < first);
}

#[test]
fn bad_batches_are_refused() {
    let model = load(Activations::Recompute);
    let bad = TokenBatch { ids: vec![1536; 33], time: 32 };
    assert!(model.evaluate(&bad).unwrap_err().to_string().contains("1536"));
    let bad = TokenBatch { ids: vec![1; 32], time: 32 };
    assert!(model.gradients(&bad).is_err());
    assert!(TokenWindows::new(vec![1, 2, 3], 3).is_err());
}
