//! The loop: masks that hold, training that resumes to the same bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use prune_allocate::{SamplingMode, SamplingWeights};
use prune_core::Seed;
use prune_spectral::{Farms, TailFit, TempBalance};
use prune_train::vision::{Augment, Images, MaskPlan, Network, VisionModel};
use prune_train::{
    AdamW, AdamWOptions, BlockSampler, GaLore, GaLoreOptions, Hook, Keep, LayerRates, Model,
    OnFreeze, Optimizer, Result, Schedule, Sgd, SgdOptions, StepContext, TrainOptions, Trainer,
    evaluate, save_weights,
};

fn digits() -> (Images, Images) {
    Images::digits(
        include_bytes!("../../../assets/digits/pixels.u8"),
        include_bytes!("../../../assets/digits/labels.u8"),
    )
    .unwrap()
    .split(1297)
}

fn cnn(seed: u64) -> VisionModel {
    Network::small_cnn(&[1, 8, 8], 4, 10).unwrap().build(Seed::new(seed)).unwrap()
}

fn optimizers() -> Vec<Box<dyn Fn() -> Box<dyn Optimizer>>> {
    let adam = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
    let galore = GaLoreOptions { adam, rank: 4, gap: 7, ..GaLoreOptions::default() };
    vec![
        Box::new(|| Box::new(Sgd::new(SgdOptions::default()).unwrap())),
        Box::new(move || Box::new(AdamW::new(adam).unwrap())),
        Box::new(move || Box::new(GaLore::new(galore).unwrap())),
    ]
}

#[test]
fn masked_weights_are_exactly_zero_after_500_steps_of_every_optimiser() {
    let (train, _) = digits();
    for optimizer in optimizers() {
        let model = Network::mlp(&[1, 8, 8], &[24], 10).unwrap().build(Seed::new(1)).unwrap();
        let plan = MaskPlan { density: 0.2, ..MaskPlan::default() };
        let masks = plan.masks(&model, None).unwrap();
        let options = TrainOptions { steps: 500, batch: 16, ..TrainOptions::default() };
        let trainer = Trainer::new(&model, optimizer(), options).unwrap();
        trainer.with_masks(masks.clone()).unwrap().run(&train, None::<&Images>).unwrap();
        for (layer, mask) in masks.iter() {
            let weight = model.parameters().get(&layer.weight_name()).unwrap();
            let values = weight.var().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (i, w) in values.iter().enumerate() {
                let kept = mask.is_kept(i / mask.cols(), i % mask.cols());
                assert!(kept || w.to_bits() == 0, "{layer} {i}: {w}");
            }
            // Those that are kept have been trained.
            assert!(values.iter().filter(|w| **w != 0.0).count() == mask.kept());
        }
    }
}

/// Stops training as a killed process would be stopped: between two checkpoints.
struct Kill(usize);

impl Hook for Kill {
    fn before_step(&mut self, context: &mut StepContext<'_>) -> Result<()> {
        match context.step == self.0 {
            true => Err(prune_train::Error::UnknownParameter("killed".to_string())),
            false => Ok(()),
        }
    }
}

#[test]
fn killed_and_resumed_training_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (train, heldout) = digits();
    let train = train.augmented(Augment::Crop(1));
    for (which, optimizer) in optimizers().iter().enumerate() {
        let path = |name: &str| folder.path().join(format!("{which}-{name}"));
        let options = |name: &str| TrainOptions {
            steps: 60,
            batch: 50,
            accumulate: 2,
            schedule: Schedule::Cosine { warmup: 5, least: 0.01 },
            clip: Some(1.0),
            evaluate_every: 8,
            keep: Keep::Best,
            checkpoint: Some(path(&format!("{name}.safetensors"))),
            checkpoint_every: 7,
            log: Some(path(&format!("{name}.jsonl"))),
            ..TrainOptions::default()
        };
        let plan = MaskPlan { density: 0.5, ..MaskPlan::default() };
        let whole = cnn(2);
        let masks = plan.masks(&whole, None).unwrap();
        // Measured every 12 steps, the length of an epoch: not where a checkpoint is.
        let rates = || LayerRates::new(TempBalance::default(), 1).unwrap();
        let trainer = Trainer::new(&whole, optimizer(), options("whole")).unwrap();
        let mut trainer = trainer.with_masks(masks.clone()).unwrap().with_hook(rates());
        trainer.run(&train, Some(&heldout)).unwrap();

        let killed = cnn(2);
        let trainer = Trainer::new(&killed, optimizer(), options("parts")).unwrap();
        let trainer = trainer.with_masks(masks.clone()).unwrap().with_hook(rates());
        let mut trainer = trainer.with_hook(Kill(33));
        assert!(trainer.run(&train, Some(&heldout)).is_err());
        drop(trainer);

        // Another process: other initial weights, which the checkpoint replaces.
        let resumed = cnn(77);
        let trainer = Trainer::new(&resumed, optimizer(), options("parts")).unwrap();
        let mut trainer = trainer.with_masks(masks).unwrap();
        let error = trainer.resume(&path("parts.safetensors")).unwrap_err().to_string();
        assert!(error.contains("layer rates"), "{error}");
        let mut trainer = trainer.with_hook(rates());
        trainer.resume(&path("parts.safetensors")).unwrap();
        assert_eq!(trainer.steps_done(), 28);
        trainer.run(&train, Some(&heldout)).unwrap();

        let same = |name: &str| {
            let read = |run: &str| fs::read(path(&format!("{run}{name}"))).unwrap();
            assert!(read("whole") == read("parts"), "{name} of optimiser {which} differ");
        };
        same(".safetensors");
        same(".jsonl");
        save_weights(whole.parameters(), &path("whole.weights")).unwrap();
        save_weights(resumed.parameters(), &path("parts.weights")).unwrap();
        same(".weights");
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let (train, _) = digits();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let model = cnn(3);
            let options = TrainOptions { steps: 12, batch: 60, ..TrainOptions::default() };
            let sgd = Sgd::new(SgdOptions::default()).unwrap();
            let mut trainer = Trainer::new(&model, sgd, options).unwrap();
            trainer.run(&train, None::<&Images>).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("weights");
            save_weights(model.parameters(), &path).unwrap();
            fs::read(path).unwrap()
        })
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

#[test]
fn averaged_gradients_of_two_halves_are_those_of_the_whole() {
    let (train, _) = digits();
    let model = Network::mlp(&[1, 8, 8], &[16], 10).unwrap().build(Seed::new(0)).unwrap();
    let batch = |from: usize, to: usize| {
        let samples: Vec<usize> = (from..to).collect();
        prune_train::Dataset::plain(&train, &samples).unwrap()
    };
    let after = |batches: Vec<prune_train::vision::ImageBatch>| {
        let before = model.parameters().snapshot().unwrap();
        let sgd = Sgd::new(SgdOptions::default()).unwrap();
        let mut trainer = Trainer::new(&model, sgd, TrainOptions::default()).unwrap();
        let loss = trainer.step(&batches, 1).unwrap().loss;
        let weight = model.parameters().get("fc0.weight").unwrap().var().flatten_all().unwrap();
        let weight = weight.to_vec1::<f32>().unwrap();
        model.parameters().restore(&before).unwrap();
        (loss, weight)
    };
    let whole = after(vec![batch(0, 40)]);
    let halves = after(vec![batch(0, 30), batch(30, 40)]);
    assert!((whole.0 - halves.0).abs() < 1e-6);
    assert!(whole.1.iter().zip(&halves.1).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn training_stops_early_and_ends_with_the_best_parameters() {
    let (train, heldout) = digits();
    let model = cnn(4);
    let options = TrainOptions {
        steps: 400,
        batch: 32,
        evaluate_every: 4,
        patience: Some(2),
        keep: Keep::Best,
        ..TrainOptions::default()
    };
    let sgd = Sgd::new(SgdOptions { rate: 0.2, ..SgdOptions::default() }).unwrap();
    let mut trainer = Trainer::new(&model, sgd, options).unwrap();
    let history = trainer.run(&train, Some(&heldout)).unwrap().clone();
    assert!(history.records.len() < 400);
    let best = history.records.iter().filter_map(|r| r.heldout_loss).fold(f64::MAX, f64::min);
    let tally = evaluate(&model, &heldout, 256).unwrap();
    assert_eq!(tally.loss(), best);
}

#[test]
fn checkpoints_of_other_runs_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.safetensors");
    let model = cnn(0);
    let options = TrainOptions::default();
    let sgd = || Sgd::new(SgdOptions::default()).unwrap();
    Trainer::new(&model, sgd(), options.clone()).unwrap().save(&path).unwrap();
    let adam = AdamW::new(AdamWOptions::default()).unwrap();
    let error = Trainer::new(&model, adam, options.clone()).unwrap().resume(&path).unwrap_err();
    assert!(error.to_string().contains("optimiser is sgd; expected adamw"), "{error}");
    let other = TrainOptions { seed: Seed::new(5), ..options.clone() };
    let error = Trainer::new(&model, sgd(), other).unwrap().resume(&path).unwrap_err();
    assert!(error.to_string().contains("seed is 0; expected 5"), "{error}");
    let wide = Network::small_cnn(&[1, 8, 8], 5, 10).unwrap().build(Seed::new(0)).unwrap();
    let error = Trainer::new(&wide, sgd(), options.clone()).unwrap().resume(&path).unwrap_err();
    assert!(error.to_string().contains("conv0.weight"), "{error}");
    fs::write(&path, b"no checkpoint").unwrap();
    let error = Trainer::new(&model, sgd(), options).unwrap().resume(&path).unwrap_err();
    assert!(error.to_string().contains("c.safetensors"), "{error}");
}

#[test]
fn divergence_is_an_error_with_its_step() {
    let (train, _) = digits();
    let model = cnn(0);
    let options = TrainOptions { steps: 50, batch: 32, ..TrainOptions::default() };
    let sgd = Sgd::new(SgdOptions { rate: 1e12, ..SgdOptions::default() }).unwrap();
    let mut trainer = Trainer::new(&model, sgd, options).unwrap();
    let error = trainer.run(&train, None::<&Images>).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("lower the learning rate"), "{error}");
}

/// A layer a block, and a head.
fn four_blocks() -> Network {
    let mut net = Network::new([1, 8, 8]).unwrap();
    let mut x = net.input();
    for i in 0..4 {
        x = net.linear(&format!("blocks.{i}.fc"), x, 16, Default::default()).unwrap();
    }
    net.linear("head", x, 10, Default::default()).unwrap();
    net
}

#[test]
fn frozen_blocks_stay_and_lose_their_state() {
    let (train, _) = digits();
    let net = four_blocks();
    let model = net.build(Seed::new(0)).unwrap();
    let before = model.parameters().snapshot().unwrap();
    let weights = SamplingWeights::new(&[1.0; 4], SamplingMode::Uniform).unwrap();
    let sampler = BlockSampler::new(weights, 1, 3, Seed::new(0)).unwrap();
    let block = sampler.blocks(0).unwrap()[0];
    let options = TrainOptions { steps: 3, batch: 32, ..TrainOptions::default() };
    let sgd = Sgd::new(SgdOptions { rate: 1e-3, ..SgdOptions::default() }).unwrap();
    let mut trainer = Trainer::new(&model, sgd, options).unwrap().with_hook(sampler);
    trainer.run(&train, None::<&Images>).unwrap();
    let own = if block == 0 { 64 * 16 + 16 } else { 16 * 16 + 16 };
    assert_eq!(trainer.optimizer_len(), own + 16 * 10 + 10);
    for (parameter, before) in model.parameters().iter().zip(&before) {
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let moved = values(parameter.var()) != values(before);
        let trained = parameter.name().starts_with(&format!("blocks.{block}."))
            || parameter.name().starts_with("head");
        assert_eq!(moved, trained, "{}", parameter.name());
    }
}

#[test]
fn state_of_frozen_blocks_stays_where_it_is_asked_for() {
    let (train, _) = digits();
    let net = four_blocks();
    let state_after = |on_freeze| {
        let model = net.build(Seed::new(0)).unwrap();
        let weights = SamplingWeights::new(&[1.0; 4], SamplingMode::Uniform).unwrap();
        let sampler = BlockSampler::new(weights, 1, 1, Seed::new(0)).unwrap();
        let drawn: std::collections::BTreeSet<usize> =
            (0..12).map(|step| sampler.blocks(step).unwrap()[0]).collect();
        assert_eq!(drawn.len(), 4);
        let options = TrainOptions { steps: 12, batch: 32, ..TrainOptions::default() };
        let adam = AdamW::new(AdamWOptions::default()).unwrap();
        let trainer = Trainer::new(&model, adam, options).unwrap();
        let mut trainer = trainer.with_hook(sampler.with_state(on_freeze));
        trainer.run(&train, None::<&Images>).unwrap();
        (trainer.optimizer_len(), 2 * model.parameters().count())
    };
    // In the end every block has had its turn.
    let (kept, all) = state_after(OnFreeze::Keep);
    assert_eq!(kept, all);
    let (dropped, all) = state_after(OnFreeze::Drop);
    assert!(dropped < all, "{dropped} of {all}");
}

#[test]
fn temp_balance_gives_layers_their_own_rates() {
    let (train, heldout) = digits();
    let model = Network::mlp(&[1, 8, 8], &[64, 64], 10).unwrap().build(Seed::new(0)).unwrap();
    let options = TrainOptions { steps: 60, batch: 64, ..TrainOptions::default() };
    let farms = Farms::new(10, 1.0).unwrap().fit(TailFit::median());
    let rates = LayerRates::new(TempBalance::default(), 1).unwrap().with_farms(farms);
    let sgd = Sgd::new(SgdOptions::default()).unwrap();
    let seen = std::cell::RefCell::new(Vec::new());
    let look = |context: &mut StepContext<'_>| {
        seen.borrow_mut().push(context.factors.to_vec());
        Ok(())
    };
    let trainer = Trainer::new(&model, sgd, options).unwrap();
    trainer.with_hook(rates).with_hook(look).run(&train, None::<&Images>).unwrap();
    let seen = seen.borrow();
    assert!(seen[0].iter().any(|f| *f < 0.75) && seen[0].iter().any(|f| *f > 1.25), "{seen:?}");
    // Measured anew after an epoch of 20 steps.
    assert!(seen[0] == seen[19] && seen[0] != seen[20]);
    assert!(evaluate(&model, &heldout, 256).unwrap().accuracy() > 0.85);
}
