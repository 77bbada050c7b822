//! Losses of PyTorch 2.15.0 (numpy 2.4.6, float32, one thread) from the same weights and batches.
//!
//! Weight i of a layer is sin(0.7 i + the layer's number) · √(3 / fan-in), biases are 0; batch t is
//! the digits 32 t to 32 t + 31. GaLore is its published algorithm on `torch.linalg.svd`
//! in f64, the largest component of every singular vector made positive: the signs matter once
//! moments outlive a projection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use candle_core::{Device, Tensor};
use prune_train::vision::{Activation, Images, Network, VisionModel};
use prune_train::{
    AdamW, AdamWOptions, Dataset, Decay, GaLore, GaLoreOptions, Model, Momentum, Optimizer,
    ParameterKind, Refresh, Sgd, SgdOptions, TrainOptions, Trainer,
};

fn digits() -> Images {
    Images::digits(
        include_bytes!("../../../assets/digits/pixels.u8"),
        include_bytes!("../../../assets/digits/labels.u8"),
    )
    .unwrap()
}

/// The formula of the reference; `layers` in the order of their numbers.
fn fill(model: &VisionModel, layers: &[&str]) {
    for (i, layer) in layers.iter().enumerate() {
        let name = format!("{layer}.weight");
        let shape = model.parameters().get(&name).unwrap().var().dims().to_vec();
        let count: usize = shape.iter().product();
        let scale = (3.0 * shape[0] as f64 / count as f64).sqrt();
        let value = |n: usize| ((0.7 * n as f64 + i as f64).sin() * scale) as f32;
        let values = Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu);
        model.parameters().set(&name, &values.unwrap()).unwrap();
    }
    for parameter in model.parameters().iter() {
        let bias = parameter.kind() == ParameterKind::Vector && parameter.name().starts_with("fc");
        if bias {
            let zeros = parameter.var().zeros_like().unwrap();
            model.parameters().set(parameter.name(), &zeros).unwrap();
        }
    }
}

/// Every kind of layer: strides 1 and 2, depthwise, 1 x 1, norms, a skip, pools.
fn cnn() -> VisionModel {
    let mut net = Network::new([1, 8, 8]).unwrap();
    let a = net.conv("c1", net.input(), 4, 3, 1).unwrap();
    let a = net.norm("b1", a, Activation::Relu).unwrap();
    let d = net.depthwise("d", a, 3, 1).unwrap();
    let d = net.norm("b2", d, Activation::Linear).unwrap();
    let a = net.add(d, a, Activation::Relu).unwrap();
    let b = net.conv("c2", a, 8, 3, 2).unwrap();
    let b = net.norm("b3", b, Activation::Linear).unwrap();
    let c = net.conv("c3", a, 8, 1, 2).unwrap();
    let b = net.add(b, c, Activation::Relu).unwrap();
    let b = net.max_pool(b).unwrap();
    net.linear("fc", b, 10, Activation::Linear).unwrap();
    let model = net.build(prune_core::Seed::new(0)).unwrap();
    fill(&model, &["c1", "d", "c2", "c3", "fc"]);
    model
}

fn mlp() -> VisionModel {
    let net = Network::mlp(&[1, 8, 8], &[24, 32], 10).unwrap();
    let model = net.build(prune_core::Seed::new(0)).unwrap();
    fill(&model, &["fc0", "fc1", "fc2"]);
    model
}

fn losses(model: &VisionModel, optimizer: impl Optimizer, clip: Option<f64>) -> Vec<f64> {
    let data = digits();
    let options = TrainOptions { steps: 20, batch: 32, clip, ..TrainOptions::default() };
    let mut trainer = Trainer::new(model, optimizer, options).unwrap();
    let step = |t: usize| {
        let samples: Vec<usize> = (32 * t..32 * (t + 1)).collect();
        trainer.step(&[data.plain(&samples).unwrap()], 1).unwrap().loss
    };
    (0..20).map(step).collect()
}

fn assert_close(found: &[f64], expected: &[f64], within: f64) {
    for (t, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() < within, "step {t}: {f} instead of {e}\n{found:?}");
    }
}

#[rustfmt::skip]
const SGD: [f64; 20] = [3.4768715, 2.7162313, 2.6200249, 2.1742473, 2.1243646, 2.1601415, 1.9484682, 2.0012789, 1.8952587, 1.7115470, 1.6144716, 1.6195776, 1.9285834, 2.0240207, 1.6229153, 1.5907124, 1.7954025, 1.8708830, 1.8910848, 1.3635490,];
#[rustfmt::skip]
const NESTEROV: [f64; 20] = [3.4768715, 2.8271737, 2.8183992, 2.3644402, 2.3208516, 2.2840021, 2.0002928, 1.9558980, 2.0558839, 2.0167301, 1.7818439, 1.8563266, 1.8844891, 1.8835382, 1.7323689, 1.7066146, 1.7119274, 1.5845251, 1.7219403, 1.3362000,];
#[rustfmt::skip]
const ADAMW: [f64; 20] = [3.4768715, 2.8460772, 2.9540982, 2.5949352, 2.5208850, 2.3890233, 2.5227969, 2.4499235, 2.3264136, 2.5386167, 2.3429589, 2.2622869, 2.2916381, 2.2199893, 2.0650911, 2.1707785, 2.0686328, 2.0586910, 2.1309693, 1.9932908,];
#[rustfmt::skip]
const GALORE: [f64; 20] = [2.5368207, 2.2571132, 2.1878166, 2.2764387, 2.1283891, 2.0713289, 1.8115685, 2.0657570, 2.0002117, 2.0000634, 1.8841692, 2.0398560, 1.9053500, 1.9899993, 1.8834269, 1.9488827, 1.9762416, 1.9582285, 1.8706293, 1.8884319,];

const SGD_OPTIONS: SgdOptions = SgdOptions {
    rate: 0.05,
    momentum: 0.9,
    kind: Momentum::Classical,
    weight_decay: 5e-4,
    decay: Decay::All,
};

#[test]
fn sgd_with_momentum_and_decay_gives_the_losses_of_pytorch() {
    let found = losses(&cnn(), Sgd::new(SGD_OPTIONS).unwrap(), None);
    assert_close(&found, &SGD, 1e-5);
}

#[test]
fn nesterov_and_clipping_give_the_losses_and_statistics_of_pytorch() {
    let model = cnn();
    let options = SgdOptions { kind: Momentum::Nesterov, ..SGD_OPTIONS };
    let found = losses(&model, Sgd::new(options).unwrap(), Some(1.0));
    assert_close(&found, &NESTEROV, 1e-5);
    let running = |part: &str| -> Vec<f64> {
        let name = format!("b3.running_{part}");
        let values = model.parameters().get(&name).unwrap().var().to_vec1::<f32>().unwrap();
        values.into_iter().map(f64::from).collect()
    };
    #[rustfmt::skip]
    assert_close(&running("mean"), &[-0.053434, 0.469144, 0.184273, 0.388529, 0.205528, 0.175646, 0.391443, 0.066674], 2e-5);
    #[rustfmt::skip]
    assert_close(&running("var"), &[2.799455, 2.611022, 2.776415, 2.728220, 2.842064, 2.973419, 3.010062, 3.173918], 2e-5);
    let samples: Vec<usize> = (1000..1200).collect();
    let tally = model.evaluate(&digits().plain(&samples).unwrap()).unwrap();
    assert!((tally.loss() - 1.3017179).abs() < 1e-5, "{}", tally.loss());
}

#[test]
fn adamw_gives_the_losses_of_pytorch() {
    let options =
        AdamWOptions { rate: 0.005, weight_decay: 0.1, decay: Decay::All, ..Default::default() };
    let found = losses(&cnn(), AdamW::new(options).unwrap(), None);
    assert_close(&found, &ADAMW, 1e-5);
}

#[test]
fn galore_gives_the_losses_of_pytorch() {
    let adam = AdamWOptions { rate: 0.01, eps: 1e-6, weight_decay: 0.0, ..Default::default() };
    let options = GaLoreOptions { adam, rank: 4, gap: 5, scale: 0.5, refresh: Refresh::Keep };
    let found = losses(&mlp(), GaLore::new(options).unwrap(), None);
    assert_close(&found, &GALORE, 1e-5);
}
