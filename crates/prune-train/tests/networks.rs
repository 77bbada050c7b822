//! Counts that are published, and saliencies at initialisation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use candle_core::{Device, Tensor};
use ndarray::{ArrayD, IxDyn};
use prune_allocate::Saliency;
use prune_core::{LayerId, Seed};
use prune_train::vision::{
    Activation, ImageBatch, Images, MaskPlan, Network, Positions, Ratios, Size, VisionModel,
    reliability,
};
use prune_train::{Dataset, Error, Model, Tally};

fn digits() -> Images {
    Images::digits(
        include_bytes!("../../../assets/digits/pixels.u8"),
        include_bytes!("../../../assets/digits/labels.u8"),
    )
    .unwrap()
}

#[test]
fn parameters_and_multiplications_are_those_that_are_published() {
    // Of chenyaofo/pytorch-cifar-models (ResNet with projections, millions) and, for 224 x 224, of
    // torchvision; VGG-16 without the two wide linear layers, counted with PyTorch.
    let million = |n: usize| (n as f64 / 1e4).round() / 100.0;
    for (net, parameters, multiplications) in [
        (Network::resnet(20, 1.0, 10), 0.27, 40.81),
        (Network::resnet(32, 1.0, 10), 0.47, 69.12),
        (Network::resnet(56, 1.0, 10), 0.86, 125.75),
        (Network::mobilenet_v2(32, 10), 2.24, 87.98),
    ] {
        let net = net.unwrap();
        assert_eq!(million(net.parameters()), parameters);
        assert_eq!(million(net.multiplications()), multiplications);
    }
    assert_eq!(Network::resnet(20, 1.0, 10).unwrap().parameters(), 272_474);
    assert_eq!(Network::mobilenet_v2(224, 1000).unwrap().parameters(), 3_504_872);
    assert_eq!(Network::vgg(16, 1.0, 10).unwrap().parameters(), 14_724_042);
    let multiplications = Network::mobilenet_v2(224, 1000).unwrap().multiplications();
    assert_eq!(million(multiplications), 300.77);
}

#[test]
fn layers_are_those_of_the_channel_networks_of_the_allocator() {
    for (net, channels) in [
        (Network::resnet(20, 1.0, 10), prune_allocate::resnet20(10)),
        (Network::vgg(16, 1.0, 10), prune_allocate::vgg16(10)),
        (Network::mobilenet_v2(224, 1000), prune_allocate::mobilenet_v2(1000)),
    ] {
        let (net, theirs) = (net.unwrap(), channels.unwrap());
        let ours = net.channels().unwrap();
        let sorted = |c: &prune_allocate::ChannelNetwork| {
            let mut layers = c.layers(&c.full_widths());
            layers.sort_by(|a, b| a.id.cmp(&b.id));
            layers
        };
        assert_eq!(sorted(&ours), sorted(&theirs));
        let cost = ours.cost(&ours.full_widths());
        assert_eq!(cost, theirs.cost(&theirs.full_widths()));
        let weights: usize = net.counts().iter().map(|c| c.weights).sum();
        assert_eq!((weights, net.multiplications()), (cost.params as usize, cost.flops as usize));
    }
}

#[test]
fn ill_built_networks_are_refused() {
    let mut net = Network::new([1, 4, 4]).unwrap();
    let x = net.conv("a", net.input(), 2, 3, 1).unwrap();
    assert!(matches!(net.conv("a", x, 2, 3, 1), Err(Error::Layer { .. })));
    assert!(net.conv("b", x, 0, 3, 1).is_err());
    assert!(net.conv("b", x, 2, 2, 1).is_err());
    assert!(net.add(x, net.input(), Activation::Relu).is_err());
    assert!(Network::resnet(21, 1.0, 10).is_err());
    let model = net.build(Seed::new(0)).unwrap();
    assert!(model.logits(&[0.0; 15]).is_err());
}

/// The gradient of every parameter against differences of the loss.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let mut net = Network::new([2, 7, 6]).unwrap();
    let a = net.conv("a", net.input(), 3, 3, 2).unwrap();
    let a = net.norm("an", a, Activation::Relu6).unwrap();
    let d = net.depthwise("d", a, 3, 2).unwrap();
    let p = net.conv("p", a, 3, 1, 2).unwrap();
    let x = net.add(d, p, Activation::Linear).unwrap();
    let x = net.conv("e", x, 5, 5, 1).unwrap();
    let x = net.norm("en", x, Activation::Linear).unwrap();
    let x = net.mean_pool(x).unwrap();
    net.linear("fc", x, 4, Activation::Linear).unwrap();
    let model = net.build(Seed::new(9)).unwrap();
    let pixels: Vec<f32> = (0..5 * 84).map(|i| (0.37 * (i * i % 97) as f32).sin()).collect();
    let batch = ImageBatch { pixels, labels: vec![0, 1, 2, 3, 0] };
    let gradients = model.gradients(&batch).unwrap().1;
    for (number, parameter) in model.parameters().iter().enumerate() {
        let Some(gradient) = gradients.get(number) else {
            assert!(parameter.name().contains("running"), "{}", parameter.name());
            continue;
        };
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = parameter.var().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for at in [0, values.len() / 2, values.len() - 1] {
            let loss = |step: f32| {
                let mut moved = values.clone();
                moved[at] += step;
                let dims = parameter.var().dims();
                let moved = Tensor::from_vec(moved, dims, &Device::Cpu).unwrap();
                model.parameters().set(parameter.name(), &moved).unwrap();
                model.gradients(&batch).unwrap().0.loss()
            };
            let slope = (loss(4e-3) - loss(-4e-3)) / 8e-3;
            loss(0.0);
            let found = f64::from(gradient[at]);
            assert!((found - slope).abs() < 2e-3, "{} {at}: {found}, {slope}", parameter.name());
        }
    }
}

fn wave(rows: usize, cols: usize, l: f64) -> Tensor {
    let at = |i: f64, j: f64| (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2 + l).sin() as f32;
    let values = (0..rows * cols).map(|n| at((n / cols) as f64, (n % cols) as f64)).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

/// 3-4-4-2 without activations or biases.
fn chain() -> VisionModel {
    let mut net = Network::new([3, 1, 1]).unwrap();
    let mut x = net.input();
    for (name, features) in [("a", 4), ("b", 4), ("c", 2)] {
        x = net.linear(name, x, features, Activation::Linear).unwrap();
    }
    let model = net.build(Seed::new(0)).unwrap();
    let p = model.parameters();
    p.set("a.weight", &wave(4, 3, 1.0)).unwrap();
    p.set("b.weight", &wave(4, 4, 2.0)).unwrap();
    p.set("c.weight", &wave(2, 4, 3.0)).unwrap();
    for name in ["a.bias", "b.bias", "c.bias"] {
        p.set(name, &p.get(name).unwrap().var().zeros_like().unwrap()).unwrap();
    }
    model
}

fn densities(model: &VisionModel, density: f64, saliency: Saliency) -> Vec<f64> {
    let (ratios, positions) = (Ratios::Of(saliency), Positions::Of(saliency));
    let plan = MaskPlan { density, ratios, positions, ..MaskPlan::default() };
    let masks = plan.masks(model, None).unwrap();
    masks.iter().map(|(_, m)| 1.0 - m.sparsity()).collect()
}

#[test]
fn synaptic_flow_gives_the_golden_densities() {
    let model = chain();
    let flow = model.synaptic_flow().unwrap();
    // Flow is the same through every layer, and the first row has the golden proportions.
    let score = |layer: &str| -> Vec<f64> {
        let number = model.parameters().number(&format!("{layer}.weight")).unwrap();
        let w = model.parameters().get(&format!("{layer}.weight")).unwrap().var().abs().unwrap();
        let s = (w * flow.get(number).unwrap()).unwrap().flatten_all().unwrap();
        s.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    };
    let sums: Vec<f64> = ["a", "b", "c"].iter().map(|l| score(l).iter().sum()).collect();
    assert!(sums.iter().all(|s| (s / sums[0] - 1.0).abs() < 1e-5), "{sums:?}");
    for (s, golden) in score("a").iter().zip([2.982768, 2.746200, 3.174238]) {
        assert!((s / sums[0] - golden / 23.770062).abs() < 1e-6);
    }
    assert_eq!(densities(&model, 0.5, Saliency::SynFlow), [0.5, 0.375, 0.75]);
    assert_eq!(densities(&model, 0.25, Saliency::SynFlow), [0.25, 0.1875, 0.375]);
}

#[test]
fn snip_gives_the_golden_scores() {
    let model = chain();
    let (x, y) = ([1.0, -0.5, 0.25], [0.3f32, -0.2]);
    let squared = |o: &[f32]| {
        let gradient: Vec<f32> = o.iter().zip(y).map(|(o, y)| o - y).collect();
        let sum = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>() / 2.0;
        Ok((Tally { sum, count: 1, correct: 0 }, gradient))
    };
    let (tally, gradients) = model.gradients_of(&x, squared).unwrap();
    assert!((tally.loss() - 5.324907).abs() < 1e-5);
    let mut scores = Vec::new();
    for layer in ["a", "b", "c"] {
        let number = model.parameters().number(&format!("{layer}.weight")).unwrap();
        let w = model.parameters().get(&format!("{layer}.weight")).unwrap().var().as_tensor();
        let product = (w * gradients.get(number).unwrap()).unwrap();
        let sum = f64::from(product.sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert!((sum - 10.150565).abs() < 1e-4, "{layer}: {sum}");
        let flat = product.abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        scores.push((LayerId::new(layer), ArrayD::from_shape_vec(IxDyn(w.dims()), flat).unwrap()));
    }
    let views: Vec<_> = scores.iter().map(|(id, s)| (id.clone(), s.view())).collect();
    // Densities .5, .375, .75 at a threshold of 1.169102.
    assert_eq!(prune_allocate::survivors(&views, 18).unwrap(), [6, 6, 6]);
    let least = scores.iter().flat_map(|(_, s)| s.iter()).filter(|s| **s >= 1.1691);
    assert_eq!(least.count(), 18);
}

#[test]
fn every_plan_keeps_the_exact_number_and_leaves_the_model_alone() {
    let model = Network::small_cnn(&[1, 8, 8], 4, 10).unwrap().build(Seed::new(0)).unwrap();
    let samples: Vec<usize> = (0..64).collect();
    let batch = digits().plain(&samples).unwrap();
    let before = model.parameters().snapshot().unwrap();
    let total: usize = model.parameters().layers().iter().map(|l| l.numel()).sum();
    let saliencies = [Saliency::Magnitude, Saliency::Snip, Saliency::GraSp, Saliency::SynFlow];
    let ratios = [Ratios::Uniform, Ratios::UniformPlus, Ratios::Er, Ratios::Erk, Ratios::ErkPlus];
    let ratios = ratios.into_iter().chain(saliencies.map(Ratios::Of));
    for ratios in ratios {
        for positions in [Positions::Random, Positions::Of(Saliency::Snip)] {
            let plan = MaskPlan { density: 0.4, ratios, positions, seed: Seed::new(1) };
            let masks = plan.masks(&model, Some(&batch)).unwrap();
            let keep = total - (0.6 * total as f64 + 1e-9) as usize;
            assert_eq!(masks.kept(), keep, "{plan:?}");
            assert_eq!(masks, plan.masks(&model, Some(&batch)).unwrap());
        }
    }
    for (p, before) in model.parameters().iter().zip(&before) {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(p.var()), values(before), "{}", p.name());
    }
    let plan = MaskPlan { density: 0.4, ratios: Ratios::Of(Saliency::Snip), ..MaskPlan::default() };
    assert!(plan.masks(&model, None).unwrap_err().to_string().contains("batch"));
}

#[test]
fn coin_tosses_keep_the_right_number_on_average() {
    let model = Network::mlp(&[1, 8, 8], &[200], 10).unwrap().build(Seed::new(0)).unwrap();
    let plan = MaskPlan { density: 0.3, positions: Positions::Bernoulli, ..MaskPlan::default() };
    let kept: Vec<usize> = (0..20)
        .map(|s| MaskPlan { seed: Seed::new(s), ..plan }.masks(&model, None).unwrap().kept())
        .collect();
    let (n, d) = (14_800.0, 0.3);
    let mean = kept.iter().sum::<usize>() as f64 / 20.0;
    assert!((mean - n * d).abs() < 4.0 * (n * d * (1.0 - d) / 20.0f64).sqrt(), "{mean}");
    assert!(kept.iter().any(|k| *k != kept[0]));
    // Counts of a layer spread as those of coins do.
    let model = Network::mlp(&[1, 4, 4], &[20], 10).unwrap().build(Seed::new(0)).unwrap();
    let of_first = |seed| {
        let masks = MaskPlan { seed: Seed::new(seed), ..plan }.masks(&model, None).unwrap();
        masks.iter().find(|(_, mask)| mask.cols() == 16).unwrap().1.kept() as f64
    };
    let kept: Vec<f64> = (0..600).map(of_first).collect();
    let mean = kept.iter().sum::<f64>() / 600.0;
    let variance = kept.iter().map(|k| (k - mean).powi(2)).sum::<f64>() / 599.0;
    let density = mean / 320.0;
    let ratio = variance / (320.0 * density * (1.0 - density));
    // Four standard errors of a variance from 600 draws.
    assert!((ratio - 1.0).abs() < 4.0 * (2.0f64 / 599.0).sqrt(), "{ratio}");
}

#[test]
fn signed_saliencies_of_a_relu_network_have_one_sum() {
    let model = Network::mlp(&[1, 8, 8], &[20, 15], 10).unwrap().build(Seed::new(4)).unwrap();
    for p in model.parameters().iter().filter(|p| p.name().ends_with("bias")) {
        model.parameters().set(p.name(), &p.var().zeros_like().unwrap()).unwrap();
    }
    let batch = digits().plain(&[0, 1, 2, 3, 4]).unwrap();
    let (_, gradients) = model.gradients(&batch).unwrap();
    let sum = |name: &str| {
        let number = model.parameters().number(name).unwrap();
        let weight = model.parameters().get(name).unwrap().var().as_tensor();
        let product = (weight * gradients.get(number).unwrap()).unwrap();
        let values = product.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f64::from).sum::<f64>()
    };
    let weights = model.parameters().layers();
    let sums: Vec<f64> = weights.iter().map(|l| sum(&l.id.weight_name())).collect();
    assert_eq!(sums.len(), 3);
    for s in &sums {
        assert!((s - sums[0]).abs() < 1e-5 * (1.0 + sums[0].abs()), "{sums:?}");
    }
}

#[test]
fn deep_networks_have_a_finite_flow() {
    let model = Network::resnet(56, 1.0, 10).unwrap().build(Seed::new(0)).unwrap();
    let flow = model.synaptic_flow().unwrap();
    assert!(flow.norm().unwrap().is_finite());
}

#[test]
fn fgsm_hurts_more_than_noise_of_the_same_size() {
    let (train, heldout) = digits().split(1297);
    let model = Network::small_cnn(&[1, 8, 8], 8, 10).unwrap().build(Seed::new(0)).unwrap();
    let options = prune_train::TrainOptions { steps: 80, batch: 64, ..Default::default() };
    let sgd = prune_train::Sgd::new(Default::default()).unwrap();
    let mut trainer = prune_train::Trainer::new(&model, sgd, options).unwrap();
    trainer.run(&train, None::<&Images>).unwrap();
    let accuracy = |d| reliability::disturbed(&model, &heldout, d, 250).unwrap().accuracy();
    let noise = accuracy(reliability::Disturbance::Noise { deviation: 0.1, seed: Seed::new(0) });
    let fgsm = accuracy(reliability::Disturbance::Fgsm { size: 0.1 });
    let plain = accuracy(reliability::Disturbance::Fgsm { size: 0.0 });
    assert!(plain > 0.9 && noise > fgsm + 0.1, "{plain} {noise} {fgsm}");
    let known = reliability::predictions(&model, &heldout, 100).unwrap();
    let right = known.iter().filter(|p| p.correct).count() as f64 / known.len() as f64;
    assert!((right - plain).abs() < 1e-9);
    assert!(reliability::calibration_error(&known, 15) < 0.2);
}

#[test]
fn cifar_files_are_read_and_broken_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data_batch_1.bin");
    let mut bytes = vec![7u8];
    bytes.extend((0..3072).map(|i| (i % 251) as u8));
    std::fs::write(&path, &bytes).unwrap();
    let images = Images::cifar10_binary(&[&path]).unwrap();
    let batch = images.plain(&[0]).unwrap();
    assert_eq!((batch.labels[0], batch.pixels.len()), (7, 3072));
    assert!((batch.pixels[1] - (1.0 / 255.0 - 0.4914) / 0.2470).abs() < 1e-6);
    bytes[0] = 10;
    std::fs::write(&path, &bytes).unwrap();
    assert!(Images::cifar10_binary(&[&path]).is_err());
    std::fs::write(&path, &bytes[1..]).unwrap();
    assert!(Images::cifar10_binary(&[&path]).is_err());
    let small = images.resized(Size { channels: 1, height: 8, width: 8 }).unwrap();
    assert_eq!(small.plain(&[0]).unwrap().pixels.len(), 64);
}

#[test]
fn images_shrink_to_means_and_grow_to_the_nearest_pixel() {
    let size = |height, width| Size { channels: 1, height, width };
    let images = Images::new(vec![10, 20, 30, 41, 0, 255], vec![3], size(2, 3)).unwrap();
    let images = images.normalised(&[0.5], &[0.25]).unwrap();
    let pixels = |images: Images| images.plain(&[0]).unwrap().pixels;
    let normal = |bytes: &[u8]| -> Vec<f32> {
        bytes.iter().map(|b| (f32::from(*b) / 255.0 - 0.5) / 0.25).collect()
    };
    // Columns 0, and 1 and 2; of two equally near bytes the larger.
    assert_eq!(pixels(images.resized(size(1, 2)).unwrap()), normal(&[26, 76]));
    let grown = pixels(images.resized(size(2, 6)).unwrap());
    assert_eq!(grown, normal(&[10, 10, 20, 20, 30, 30, 41, 41, 0, 0, 255, 255]));
    assert!(images.resized(size(0, 2)).is_err());
}

#[test]
fn a_folder_with_cifar_is_read_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Images::cifar10(folder.path()).is_err());
    let image = |class: u8| std::iter::once(class).chain((0..3072).map(move |i| i as u8 ^ class));
    let files: Vec<(String, u8)> = (1..=5).map(|i| (format!("data_batch_{i}"), i)).collect();
    for (name, class) in files.iter().chain([&("test_batch".to_string(), 9)]) {
        let bytes: Vec<u8> = image(*class).collect();
        std::fs::write(folder.path().join(format!("{name}.bin")), bytes).unwrap();
    }
    let (train, test) = Images::cifar10(folder.path()).unwrap();
    let all: Vec<usize> = (0..5).collect();
    let batches = (train.plain(&all).unwrap(), test.plain(&[0]).unwrap());
    assert_eq!((&batches.0.labels, &batches.1.labels), (&vec![1, 2, 3, 4, 5], &vec![9]));

    #[cfg(feature = "pictures")]
    {
        for (name, class) in files.iter().chain([&("test_batch".to_string(), 9)]) {
            let file = std::fs::File::create(folder.path().join(format!("{name}.png"))).unwrap();
            let mut picture = png::Encoder::new(file, 1024, 1);
            picture.set_color(png::ColorType::Rgb);
            let channels: Vec<u8> = image(*class).skip(1).collect();
            let pixels: Vec<u8> = (0..1024)
                .flat_map(|p| (0..3).map(move |c| c * 1024 + p))
                .map(|i| channels[i])
                .collect();
            picture.write_header().unwrap().write_image_data(&pixels).unwrap();
        }
        std::fs::write(folder.path().join("train_lables.json"), "[1, 2, 3, 4, 5]").unwrap();
        std::fs::write(folder.path().join("test_lables.json"), "[9]").unwrap();
        let (train, test) = Images::cifar10(folder.path()).unwrap();
        assert_eq!((train.plain(&all).unwrap(), test.plain(&[0]).unwrap()), batches);
        std::fs::write(folder.path().join("test_lables.json"), "[9, 1]").unwrap();
        assert!(Images::cifar10(folder.path()).is_err());
    }
}
