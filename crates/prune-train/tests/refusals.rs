//! Input that makes no sense is refused by name, and leaves the model as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use prune_allocate::{Saliency, SamplingMode, SamplingWeights};
use prune_core::{DType, Seed, encode_f32};
use prune_train::vision::reliability::{
    Disturbance, Prediction, detection, disturbed, predictions,
};
use prune_train::vision::{Images, MaskPlan, Network, Ratios, Size, VisionModel};
use prune_train::{
    BlockSampler, Dataset, Error, Keep, Model, ParameterKind, Parameters, Sgd, SgdOptions,
    TrainOptions, Trainer, cross_entropy, load_weights,
};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

fn digits() -> (Images, Images) {
    let pixels = include_bytes!("../../../assets/digits/pixels.u8");
    let labels = include_bytes!("../../../assets/digits/labels.u8");
    Images::digits(pixels, labels).unwrap().split(1297)
}

fn cnn(seed: u64) -> VisionModel {
    Network::small_cnn(&[1, 8, 8], 4, 10).unwrap().build(Seed::new(seed)).unwrap()
}

fn sgd() -> Sgd {
    Sgd::new(SgdOptions::default()).unwrap()
}

fn all_values(model: &VisionModel) -> Vec<Vec<f32>> {
    let values = |p: &prune_train::Parameter| p.var().flatten_all().unwrap().to_vec1().unwrap();
    model.parameters().iter().map(values).collect()
}

#[test]
fn a_pixel_that_is_no_number_stops_training_before_it_spreads() {
    let model = cnn(0);
    let before = all_values(&model);
    let mut batch = digits().0.plain(&[0, 1, 2]).unwrap();
    batch.pixels[70] = f32::NAN;
    let options = TrainOptions { steps: 3, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&model, sgd(), options).unwrap();
    let error = trainer.step(&[batch], 1).unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 0, .. }), "{error}");
    // Running statistics have taken the batch up; no weight has.
    let after = all_values(&model);
    let parameters = model.parameters().iter().zip(before.iter().zip(&after));
    for (parameter, (before, after)) in parameters {
        assert!(parameter.kind() == ParameterKind::Buffer || before == after);
    }
    // And what is not finite never takes the place of a checkpoint.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    fs::write(&path, b"the last good one").unwrap();
    let error = trainer.save(&path).unwrap_err().to_string();
    assert!(error.contains("running_mean"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"the last good one");
}

#[test]
fn weights_of_other_programs_are_taken_up_or_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (source, target) = (cnn(1), cnn(2));
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for p in source.parameters().iter() {
        let values = p.var().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes = encode_f32(p.name(), DType::BF16, &values).unwrap();
        tensors.push((p.name().to_string(), Dtype::BF16, p.var().dims().to_vec(), bytes));
    }
    // PyTorch's norms have a counter beside their statistics.
    tensors.push(("bn0.num_batches_tracked".to_string(), Dtype::I64, vec![], vec![0; 8]));
    let write = |tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]| {
        let view = |(name, dtype, shape, bytes): &'_ (String, Dtype, Vec<usize>, Vec<u8>)| {
            (name.clone(), *dtype, shape.clone(), bytes.clone())
        };
        let owned: Vec<_> = tensors.iter().map(view).collect();
        let views = owned.iter().map(|(name, dtype, shape, bytes)| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, &path).unwrap();
    };
    write(&tensors);
    load_weights(target.parameters(), &path).unwrap();
    for (a, b) in all_values(&source).iter().flatten().zip(all_values(&target).iter().flatten()) {
        assert!((a - b).abs() <= a.abs() / 256.0, "{a} as bf16 is {b}");
    }
    let before = all_values(&target);
    let last = tensors.iter().position(|t| t.0 == "fc.bias").unwrap();
    let removed = tensors.remove(last);
    write(&tensors);
    let error = load_weights(target.parameters(), &path).unwrap_err().to_string();
    assert!(error.contains("fc.bias"), "{error}");
    tensors.push((removed.0, Dtype::I64, vec![10], vec![0; 80]));
    write(&tensors);
    let error = load_weights(target.parameters(), &path).unwrap_err().to_string();
    assert!(error.contains("fc.bias is I64"), "{error}");
    assert_eq!(all_values(&target), before);
}

#[test]
fn a_checkpoint_of_another_run_is_refused_before_anything_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let (train, heldout) = digits();
    let options = TrainOptions {
        steps: 6,
        batch: 50,
        accumulate: 2,
        seed: Seed::new(3),
        ..Default::default()
    };
    let masks = |seed| {
        let plan = MaskPlan { density: 0.5, seed: Seed::new(seed), ..MaskPlan::default() };
        plan.masks(&cnn(0), None).unwrap()
    };
    let model = cnn(0);
    let mut trainer =
        Trainer::new(&model, sgd(), options.clone()).unwrap().with_masks(masks(1)).unwrap();
    trainer.run(&train, None::<&Images>).unwrap();
    trainer.save(&path).unwrap();

    let model = cnn(9);
    let refused = |options: TrainOptions, seed: Option<u64>| {
        let trainer = Trainer::new(&model, sgd(), options).unwrap();
        let mut trainer = match seed {
            Some(seed) => trainer.with_masks(masks(seed)).unwrap(),
            None => trainer,
        };
        let before = all_values(&model);
        let error = trainer.resume(&path).unwrap_err().to_string();
        assert_eq!(all_values(&model), before);
        error
    };
    let other = TrainOptions { batch: 25, ..options.clone() };
    assert!(refused(other, Some(1)).contains("samples of a batch is 50; expected 25"));
    let other = TrainOptions { accumulate: 1, ..options.clone() };
    assert!(refused(other, Some(1)).contains("batches of a step is 2; expected 1"));
    let other = TrainOptions { keep: Keep::Best, ..options.clone() };
    assert!(refused(other, Some(1)).contains("Last; expected Best"));
    assert!(refused(options.clone(), None).contains("masked weights"));
    assert!(refused(options.clone(), Some(2)).contains("that the masks remove"));

    let more = TrainOptions { steps: 8, ..options };
    let mut trainer = Trainer::new(&model, sgd(), more).unwrap().with_masks(masks(1)).unwrap();
    trainer.resume(&path).unwrap();
    let error = trainer.run(&heldout, None::<&Images>).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("samples to train on is 500"), "{error}");
    trainer.run(&train, None::<&Images>).unwrap();
    assert_eq!(trainer.steps_done(), 8);
}

#[test]
fn the_best_parameters_need_something_to_be_judged_on() {
    let (train, heldout) = digits();
    let model = cnn(0);
    let empty = heldout.split(500).1;
    for options in [
        TrainOptions { keep: Keep::Best, ..TrainOptions::default() },
        TrainOptions { patience: Some(2), ..TrainOptions::default() },
    ] {
        let mut trainer = Trainer::new(&model, sgd(), options).unwrap();
        for judged in [None, Some(&empty)] {
            let error = trainer.run(&train, judged).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("samples of the held-out data is 0"), "{error}");
        }
    }
}

#[test]
fn a_loss_on_held_out_data_that_is_no_number_stops_training() {
    let (train, heldout) = digits();
    // Pixels near the largest f32.
    let beyond = heldout.normalised(&[0.0], &[3e-39]).unwrap();
    let model = cnn(0);
    let options = TrainOptions { steps: 2, evaluate_every: 1, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&model, sgd(), options).unwrap();
    let error = trainer.run(&train, Some(&beyond)).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 0, .. }), "{error}");
    assert!(error.to_string().contains("loss on held-out data"), "{error}");
}

#[test]
fn a_log_is_whole_after_a_resumption() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (train, _) = digits();
    let options = |steps| TrainOptions {
        steps,
        batch: 100,
        accumulate: 5,
        log: Some(path("log.jsonl")),
        checkpoint: Some(path("state.safetensors")),
        ..TrainOptions::default()
    };
    let model = cnn(0);
    Trainer::new(&model, sgd(), options(3)).unwrap().run(&train, None::<&Images>).unwrap();
    fs::write(path("log.jsonl"), "what another program wrote\n").unwrap();
    let mut trainer = Trainer::new(&model, sgd(), options(6)).unwrap();
    trainer.resume(&path("state.safetensors")).unwrap();
    let history = trainer.run(&train, None::<&Images>).unwrap();
    let read = prune_train::History::read(&path("log.jsonl")).unwrap();
    assert_eq!(read.records.len(), 6);
    assert_eq!(read.records.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    // Twelve batches an epoch, five a step.
    assert_eq!(history.records.iter().map(|r| r.epoch).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 2]);
}

#[test]
fn sampling_leaves_frozen_parameters_frozen_and_frees_the_others_afterwards() {
    let (train, _) = digits();
    let mut net = Network::new([1, 8, 8]).unwrap();
    let mut x = net.input();
    for i in 0..3 {
        x = net.linear(&format!("blocks.{i}.fc"), x, 16, Default::default()).unwrap();
    }
    net.linear("head", x, 10, Default::default()).unwrap();
    let model = net.build(Seed::new(0)).unwrap();
    for i in 0..3 {
        model.parameters().get(&format!("blocks.{i}.fc.bias")).unwrap().freeze(true);
    }
    let before = all_values(&model);
    let weights = SamplingWeights::new(&[1.0; 3], SamplingMode::Uniform).unwrap();
    let sampler = BlockSampler::new(weights, 2, 2, Seed::new(0)).unwrap();
    let options = TrainOptions { steps: 8, batch: 32, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&model, sgd(), options).unwrap().with_hook(sampler);
    trainer.run(&train, None::<&Images>).unwrap();
    for (parameter, (before, after)) in
        model.parameters().iter().zip(before.iter().zip(&all_values(&model)))
    {
        let frozen = parameter.name().starts_with("blocks") && parameter.name().ends_with("bias");
        assert_eq!(parameter.is_trained(), !frozen, "{}", parameter.name());
        assert_eq!(before == after, frozen, "{}", parameter.name());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    trainer.save(&path).unwrap();
    let weights = SamplingWeights::new(&[1.0; 3], SamplingMode::Uniform).unwrap();
    for sampler in [None, Some(BlockSampler::new(weights, 1, 2, Seed::new(0)).unwrap())] {
        let options = TrainOptions { steps: 8, batch: 32, ..TrainOptions::default() };
        let trainer = Trainer::new(&model, sgd(), options).unwrap();
        let mut trainer = match sampler {
            Some(sampler) => trainer.with_hook(sampler),
            None => trainer,
        };
        assert!(trainer.resume(&path).unwrap_err().to_string().contains("block sampler"));
    }
}

#[test]
fn figures_of_reliability_refuse_what_they_cannot_judge() {
    let (_, test) = digits();
    let nan = Prediction { confidence: f64::NAN, correct: true };
    assert!(detection(&[nan, nan], &[nan]).is_finite());
    let model = cnn(0);
    let size = Size { channels: 1, height: 16, width: 16 };
    let large = test.clone().split(3).0.resized(size).unwrap();
    let error = predictions(&model, &large, 10).unwrap_err().to_string();
    assert!(error.contains("images: found shape [1, 16, 16], expected [1, 8, 8]"), "{error}");
    assert!(disturbed(&model, &large, Disturbance::Fgsm { size: 0.1 }, 10).is_err());
    let weight = model.parameters().get("fc.weight").unwrap().var();
    let huge = (weight.ones_like().unwrap() * 1e38).unwrap();
    model.parameters().set("fc.weight", &(huge * 10.0).unwrap()).unwrap();
    let error = predictions(&model, &test, 100).unwrap_err().to_string();
    assert!(error.contains("logits"), "{error}");
}

#[test]
fn losses_of_impossible_classes_and_odd_smoothings() {
    let (tally, _) = cross_entropy(&[0.0, f32::NEG_INFINITY], 2, &[0], 0.0).unwrap();
    assert_eq!(tally.loss(), 0.0);
    for smoothing in [-0.1, 1.0, f64::NAN] {
        assert!(cross_entropy(&[0.0, 1.0], 2, &[0], smoothing).is_err());
    }
}

#[test]
fn networks_images_and_parameters_are_checked() {
    for width in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        assert!(Network::resnet(20, width, 10).is_err() && Network::vgg(11, width, 10).is_err());
        assert!(Network::resnet(20, 1.0, 10).unwrap().scaled(width).is_err());
    }
    let (images, _) = digits();
    assert!(images.clone().normalised(&[f32::NAN], &[1.0]).is_err());
    let error = images.normalised(&[0.0], &[1.0, 1.0]).unwrap_err().to_string();
    assert!(error.contains("channel deviations: found shape [2], expected [1]"), "{error}");

    let mut parameters = Parameters::default();
    let mut push = |name: &str, value| {
        parameters.push(name, ParameterKind::Vector, &[1], vec![value]).map(|_| ())
    };
    push("a", 1.0).unwrap();
    assert!(push("a", 2.0).is_err());
    push("b", 3.0).unwrap();
    let value = |name: &str| parameters.get(name).unwrap().var().to_vec1::<f32>().unwrap()[0];
    assert_eq!((value("a"), value("b")), (1.0, 3.0));
}

#[test]
fn a_saliency_that_fails_leaves_the_model_as_it_was() {
    let model = cnn(0);
    let before = all_values(&model);
    let plan = MaskPlan { ratios: Ratios::Of(Saliency::Snip), ..MaskPlan::default() };
    let mut batch = digits().0.plain(&[0, 1]).unwrap();
    let labels = std::mem::replace(&mut batch.labels, vec![0, 12]);
    assert!(plan.masks(&model, Some(&batch)).is_err());
    assert_eq!(all_values(&model), before);
    batch.labels = labels;
    model.parameters().get("conv0.weight").unwrap().freeze(true);
    let error = plan.masks(&model, Some(&batch)).unwrap_err().to_string();
    assert!(error.contains("`conv0`") && error.contains("frozen"), "{error}");
}
