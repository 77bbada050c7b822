//! Zeroth-order scores against reference values, what they cost, and the laws of perturbation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use ndarray::Array2;
use proptest::prelude::*;
use prune_core::{
    DType, Error, LayerId, LayerInfo, Objective, Result, Seed, TensorInfo, TensorSource, encode_f32,
};
use prune_importance::{
    Distribution, Noise, Perturbed, SeededNoise, Spsa, SpsaGradient, Together, Weighing,
    ZerothOrder,
};

/// Tensors in memory, sorted by name.
struct Tensors {
    infos: Vec<TensorInfo>,
    bytes: Vec<Vec<u8>>,
}

impl Tensors {
    fn new(mut tensors: Vec<(&str, DType, Array2<f64>)>) -> Self {
        tensors.sort_by_key(|t| t.0);
        let info = |(name, dtype, w): &(&str, DType, Array2<f64>)| TensorInfo {
            name: name.to_string(),
            dtype: *dtype,
            shape: w.shape().to_vec(),
        };
        let bytes = |(name, dtype, w): &(&str, DType, Array2<f64>)| match dtype {
            DType::F64 => w.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => {
                let values: Vec<f32> = w.iter().map(|x| *x as f32).collect();
                encode_f32(name, *dtype, &values).unwrap()
            }
        };
        Self {
            infos: tensors.iter().map(info).collect(),
            bytes: tensors.iter().map(bytes).collect(),
        }
    }
}

impl TensorSource for Tensors {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
        let i = self.infos.iter().position(|t| t.name == name);
        let bytes = &self.bytes[i.ok_or_else(|| Error::UnknownTensor(name.to_string()))?];
        buf.copy_from_slice(&bytes[offset..offset + buf.len()]);
        Ok(())
    }
}

/// A tensor in f64, as it is delivered.
fn read(weights: &dyn TensorSource, name: &str) -> Result<Vec<f64>> {
    let info = weights.info(name)?;
    let bytes = weights.read(name)?;
    Ok(match info.dtype {
        DType::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        _ => prune_core::decode_f32(name, info.dtype, &bytes)?.into_iter().map(f64::from).collect(),
    })
}

/// A function of the weights that counts how often it is asked.
struct Function<F> {
    f: F,
    passes: usize,
}

fn function<F: FnMut(&dyn TensorSource) -> Result<f64>>(f: F) -> Function<F> {
    Function { f, passes: 0 }
}

impl<F: FnMut(&dyn TensorSource) -> Result<f64>> Objective for Function<F> {
    fn loss(&mut self, weights: &dyn TensorSource) -> Result<f64> {
        self.passes += 1;
        (self.f)(weights)
    }
}

/// The linear congruential generator of the reference values.
fn lcg_gaussian(seed: u64, count: usize) -> Vec<f64> {
    let mut x = seed;
    let mut uniform = || {
        x = (1_103_515_245 * x + 12_345) % (1 << 31);
        (x as f64 + 0.5) / (1u64 << 31) as f64
    };
    let normal = |u: f64, v: f64| (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos();
    (0..count)
        .map(|_| {
            let u = uniform();
            normal(u, uniform())
        })
        .collect()
}

/// Directions given beforehand, one after the other.
struct Given {
    numbers: Vec<f64>,
    /// Elements of one draw, and where each tensor begins in it.
    size: usize,
    starts: Vec<(String, usize)>,
}

impl Noise for Given {
    fn fill(&self, tensor: &str, draw: u64, first: usize, out: &mut [f64]) {
        let start = self.starts.iter().find(|s| s.0 == tensor).unwrap().1;
        let from = draw as usize * self.size + start + first;
        out.copy_from_slice(&self.numbers[from..from + out.len()]);
    }
}

fn given(numbers: Vec<f64>, tensor: &str, size: usize) -> Given {
    Given { numbers, size, starts: vec![(tensor.to_string(), 0)] }
}

fn wsin() -> Array2<f64> {
    Array2::from_shape_fn((4, 3), |(i, j)| {
        let (i, j) = (i as f64, j as f64);
        (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2).sin()
    })
}

fn one_layer() -> [LayerInfo; 1] {
    [LayerInfo::linear("w", 4, 3)]
}

fn score(
    weights: &Tensors,
    draws: usize,
    epsilon: f64,
    seed: u64,
    f: impl FnMut(&dyn TensorSource) -> Result<f64>,
) -> f64 {
    let noise = given(lcg_gaussian(seed, 12 * draws), "w.weight", 12);
    let order = ZerothOrder::default().with_draws(draws).unwrap().with_epsilon(epsilon).unwrap();
    let mut f = function(f);
    let scores =
        order.scores_along(&noise, &one_layer(), weights, &mut [&mut f], &mut |_, _| ()).unwrap();
    assert_eq!(f.passes, 2 * draws);
    scores[0]
}

#[test]
fn linear_losses_match_the_reference_at_any_step() {
    let g = wsin();
    let weights = Tensors::new(vec![("w.weight", DType::F64, Array2::zeros((4, 3)))]);
    let linear =
        |w: &dyn TensorSource| Ok(read(w, "w.weight")?.iter().zip(&g).map(|(w, g)| w * g).sum());
    for epsilon in [1e-4, 1e-3, 0.1, 10.0] {
        assert_abs_diff_eq!(score(&weights, 1, epsilon, 5, linear), 2.048739, epsilon = 1e-6);
    }
    let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
    let expected = norm * (2.0 / std::f64::consts::PI).sqrt();
    assert_abs_diff_eq!(expected, 1.953274, epsilon = 1e-6);
    assert_abs_diff_eq!(score(&weights, 2000, 1e-3, 11, linear), 1.963395, epsilon = 1e-6);
}

#[test]
fn draws_of_several_calls_are_those_of_one() {
    let weights = Tensors::new(vec![("w.weight", DType::F64, wsin())]);
    let layers = [LayerInfo::linear("w", 4, 3)];
    let sines = |w: &dyn TensorSource| Ok(read(w, "w.weight")?.iter().map(|w| w.sin()).sum());
    let scores = |first, draws| {
        let score = ZerothOrder::default().with_first_draw(first).with_draws(draws).unwrap();
        let mut loss = function(sines);
        score.scores(&layers, &weights, &mut [&mut loss], &mut |_, _| ()).unwrap()[0]
    };
    let apart: Vec<f64> = (0..4).map(|first| scores(first, 1)).collect();
    assert!(apart.iter().skip(1).all(|s| s != &apart[0]));
    assert_abs_diff_eq!(scores(0, 4), apart.iter().sum::<f64>() / 4.0, epsilon = 1e-12);
}

#[test]
fn curved_losses_match_the_reference_up_to_the_square_of_the_step() {
    let weights = Tensors::new(vec![("w.weight", DType::F64, wsin())]);
    let sines = |w: &dyn TensorSource| Ok(read(w, "w.weight")?.iter().map(|w| w.sin()).sum());
    assert_abs_diff_eq!(score(&weights, 1, 1e-3, 5, sines), 0.661610, epsilon = 1e-6);
    assert_abs_diff_eq!(score(&weights, 1, 0.1, 5, sines), 0.660466, epsilon = 1e-6);
    let exact: f64 = wsin().iter().zip(lcg_gaussian(5, 12)).map(|(w, z)| w.cos() * z).sum();
    assert_abs_diff_eq!(exact, -0.661610, epsilon = 1e-6);
    // Half the squared norm of the row sums: exact at any step.
    let quadratic = |w: &dyn TensorSource| {
        let rows = read(w, "w.weight")?;
        Ok(rows.chunks(3).map(|r| r.iter().sum::<f64>().powi(2)).sum::<f64>() / 2.0)
    };
    for epsilon in [1e-3, 0.5, 4.0] {
        assert_abs_diff_eq!(score(&weights, 1, epsilon, 5, quadratic), 1.069193, epsilon = 1e-6);
    }
}

/// Two blocks of two layers, one outside.
fn network() -> (Vec<LayerInfo>, Tensors) {
    let names = ["layers.0.k", "layers.0.q", "layers.1.k", "layers.1.q", "tail"];
    let layers = names.iter().map(|n| LayerInfo::linear(n, 5, 7)).collect();
    let weight = |l: usize| Array2::from_shape_fn((5, 7), |(i, j)| ((l + i * 7 + j) as f64).sin());
    let tensors = [
        ("layers.0.k.weight", DType::BF16, weight(0)),
        ("layers.0.q.weight", DType::F32, weight(1)),
        ("layers.1.k.weight", DType::F16, weight(2)),
        ("layers.1.q.weight", DType::F64, weight(3)),
        ("tail.weight", DType::F32, weight(4)),
    ];
    (layers, Tensors::new(tensors.to_vec()))
}

/// A sum over all layers, the l-th weighing l + 1 times as much.
fn weighted_sum(weights: &dyn TensorSource) -> Result<f64> {
    let mut sum = 0.0;
    for (l, t) in weights.tensors().iter().enumerate() {
        sum += (l + 1) as f64 * read(weights, &t.name)?.iter().sum::<f64>();
    }
    Ok(sum)
}

#[test]
fn each_draw_costs_two_forward_passes_and_moves_one_layer_or_one_block() {
    let (layers, weights) = network();
    let dense: Vec<Vec<f64>> =
        weights.tensors().iter().map(|t| read(&weights, &t.name).unwrap()).collect();
    for (together, groups) in [(Together::Layer, 5), (Together::Block, 3)] {
        let mut moved: Vec<BTreeSet<String>> = Vec::new();
        let mut progress = Vec::new();
        let mut loss = function(|w: &dyn TensorSource| {
            let mut names = BTreeSet::new();
            for (t, before) in w.tensors().iter().zip(&dense) {
                if read(w, &t.name)? != *before {
                    names.insert(t.name.clone());
                }
            }
            moved.push(names);
            weighted_sum(w)
        });
        let order = ZerothOrder::default().with_together(together).with_draws(3).unwrap();
        let scores = order
            .scores(&layers, &weights, &mut [&mut loss], &mut |done, all| {
                progress.push((done, all))
            })
            .unwrap();
        assert_eq!(loss.passes, 2 * 3 * groups);
        assert_eq!(progress.len(), 3 * groups);
        assert_eq!(progress.last(), Some(&(6 * groups, 6 * groups)));
        assert!(scores.iter().all(|s| *s > 0.0));
        let sizes: Vec<usize> = moved.iter().map(BTreeSet::len).collect();
        let expected: Vec<usize> = match together {
            Together::Layer => vec![1; 30],
            Together::Block => [vec![2; 12], vec![1; 6]].concat(),
        };
        assert_eq!(sizes, expected);
        if together == Together::Block {
            assert_eq!((scores[0], scores[2]), (scores[1], scores[3]));
        }
    }
}

#[test]
fn scores_estimate_the_norms_of_the_gradients() {
    let (layers, weights) = network();
    let order = ZerothOrder::default().with_draws(500).unwrap();
    let mut loss = function(weighted_sum);
    let scores = order.scores(&layers, &weights, &mut [&mut loss], &mut |_, _| ()).unwrap();
    let root = (2.0 / std::f64::consts::PI).sqrt();
    for (l, score) in scores.iter().enumerate() {
        let norm = (l + 1) as f64 * 35f64.sqrt();
        assert_relative_eq!(*score, root * norm, max_relative = 0.15);
    }
    // A block's layers share the norm of both.
    let mut loss = function(weighted_sum);
    let blocks = order.with_together(Together::Block);
    let scores = blocks.scores(&layers, &weights, &mut [&mut loss], &mut |_, _| ()).unwrap();
    assert_relative_eq!(2.0 * scores[0], root * (5.0 * 35f64).sqrt(), max_relative = 0.15);
}

#[test]
fn weighed_scores_scale_with_the_weights() {
    let (layers, weights) = network();
    let of = |weighing| {
        let mut loss = function(weighted_sum);
        let order = ZerothOrder::default().with_weighing(weighing);
        order.scores(&layers, &weights, &mut [&mut loss], &mut |_, _| ()).unwrap()
    };
    let plain = of(Weighing::Gradient);
    for (weighing, power) in [(Weighing::Magnitude, 1), (Weighing::Square, 2)] {
        for ((s, p), t) in of(weighing).iter().zip(&plain).zip(weights.tensors()) {
            let sum: f64 =
                read(&weights, &t.name).unwrap().iter().map(|w| w.abs().powi(power)).sum();
            assert_relative_eq!(*s, p.powi(power) * sum, max_relative = 1e-6);
        }
    }
}

#[test]
fn draws_go_round_the_objectives_and_pairs_stay_together() {
    let (layers, weights) = network();
    let mut first = function(weighted_sum);
    let mut second = function(|w: &dyn TensorSource| Ok(10.0 * weighted_sum(w)?));
    let order = ZerothOrder::default().with_draws(3).unwrap();
    order.scores(&layers[..1], &weights, &mut [&mut first, &mut second], &mut |_, _| ()).unwrap();
    assert_eq!((first.passes, second.passes), (4, 2));
    let none = order.scores(&layers, &weights, &mut [], &mut |_, _| ());
    assert!(matches!(none, Err(Error::Infeasible(_))));
}

#[test]
fn draws_without_a_number_are_replaced_and_three_in_a_row_give_up() {
    let (layers, weights) = network();
    let mut calls = 0;
    let mut sometimes = function(|w: &dyn TensorSource| {
        calls += 1;
        if calls <= 4 { Ok(f64::NAN) } else { weighted_sum(w) }
    });
    let order = ZerothOrder::default().with_draws(1).unwrap();
    let got = order.scores(&layers[..1], &weights, &mut [&mut sometimes], &mut |_, _| ());
    assert!(got.unwrap()[0] > 0.0);
    assert_eq!(sometimes.passes, 6);
    let mut never = function(|_: &dyn TensorSource| Ok(f64::INFINITY));
    let e = order.scores(&layers[1..], &weights, &mut [&mut never], &mut |_, _| ()).unwrap_err();
    assert!(matches!(e, Error::NotFinite { .. }) && e.to_string().contains("layers.0.q"), "{e}");
    assert_eq!(never.passes, 6);
}

#[test]
fn bad_options_and_tensors_are_refused() {
    let order = ZerothOrder::default();
    assert!(order.with_draws(0).is_err());
    for epsilon in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(order.with_epsilon(epsilon).is_err() && Spsa::new(epsilon, 1).is_err());
    }
    assert!(Spsa::new(1e-3, 0).is_err());
    let (_, weights) = network();
    let mut loss = function(weighted_sum);
    let unknown = [LayerInfo::linear("nowhere", 2, 2)];
    let e = order.scores(&unknown, &weights, &mut [&mut loss], &mut |_, _| ()).unwrap_err();
    assert!(matches!(e, Error::UnknownTensor(name) if name == "nowhere.weight"));
    let noise = SeededNoise::new(Seed::new(0), Distribution::Gaussian);
    assert!(Perturbed::new(&weights, &["tail.weight"], &noise, 0, f64::NAN).is_err());
    let integers = Tensors {
        infos: vec![TensorInfo { name: "i".into(), dtype: DType::I32, shape: vec![1, 1] }],
        bytes: vec![vec![0; 4]],
    };
    let e = Perturbed::new(&integers, &["i"], &noise, 0, 1.0);
    assert!(matches!(e, Err(Error::DType { .. })));
    let up = Perturbed::new(&weights, &["tail.weight"], &noise, 0, 1.0).unwrap();
    let beyond = up.read_at("tail.weight", 139, &mut [0; 2]);
    assert!(matches!(beyond, Err(Error::OutOfRange { .. })));
}

#[test]
fn tied_copies_of_a_weight_move_together() {
    let w = Array2::from_elem((2, 3), 0.5);
    let weights =
        Tensors::new(vec![("embed.weight", DType::F32, w.clone()), ("head.weight", DType::F32, w)]);
    let mut head = LayerInfo::linear("head", 2, 3);
    head.tie = Some(LayerId::new("embed"));
    let mut loss = function(|w: &dyn TensorSource| {
        assert_eq!(read(w, "embed.weight")?, read(w, "head.weight")?);
        read(w, "head.weight").map(|w| w.iter().sum())
    });
    let scores = ZerothOrder::default().scores(&[head], &weights, &mut [&mut loss], &mut |_, _| ());
    assert!(scores.unwrap()[0] > 0.0);
}

/// `logits = W2 tanh(W1 x)`, mean cross-entropy over four samples.
fn small_net(weights: &dyn TensorSource) -> Result<f64> {
    let (w1, w2) = (read(weights, "w1.weight")?, read(weights, "w2.weight")?);
    let mut loss = 0.0;
    for (t, label) in [0usize, 1, 2, 0].into_iter().enumerate() {
        let x: Vec<f64> = (0..3).map(|j| ((t + 1) as f64 * (j + 1) as f64).sin()).collect();
        let h: Vec<f64> =
            (0..4).map(|i| (0..3).map(|j| w1[3 * i + j] * x[j]).sum::<f64>().tanh()).collect();
        let y: Vec<f64> =
            (0..3).map(|i| (0..4).map(|j| w2[4 * i + j] * h[j]).sum::<f64>()).collect();
        let normaliser = y.iter().map(|y| y.exp()).sum::<f64>().ln();
        loss += (normaliser - y[label]) / 4.0;
    }
    Ok(loss)
}

fn small_net_layers() -> [LayerInfo; 2] {
    [LayerInfo::linear("w1", 4, 3), LayerInfo::linear("w2", 3, 4)]
}

fn small_net_weights() -> Tensors {
    let wave = |i: usize, j: usize, p: f64| 0.5 * (7.0 * i as f64 + 3.0 * j as f64 + p).sin();
    Tensors::new(vec![
        ("w1.weight", DType::F64, Array2::from_shape_fn((4, 3), |(i, j)| wave(i, j, 0.0))),
        ("w2.weight", DType::F64, Array2::from_shape_fn((3, 4), |(i, j)| wave(i, j, 1.0))),
    ])
}

/// Its gradient by both weights in PyTorch, f64.
const SMALL_NET_GRADIENT: [f64; 24] = [
    -0.015895, 0.006318, 0.015224, 0.011320, -0.026286, -0.006437, -0.000430, 0.037807, 0.001969,
    -0.002154, -0.057177, 0.003310, -0.039805, 0.139349, 0.212465, 0.207211, 0.012471, -0.098092,
    -0.136754, -0.126755, 0.027334, -0.041257, -0.075711, -0.080456,
];

/// The cosine of an estimate with [`SMALL_NET_GRADIENT`].
fn cosine(estimate: &SpsaGradient) -> f64 {
    let layers = small_net_layers();
    let parts = layers.iter().map(|l| estimate.layer(l).unwrap().into_iter().map(f64::from));
    let found: Vec<f64> = parts.flatten().collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norm = |a: &[f64]| dot(a, a).sqrt();
    dot(&found, &SMALL_NET_GRADIENT) / (norm(&found) * norm(&SMALL_NET_GRADIENT))
}

#[test]
fn the_simultaneous_estimate_matches_the_reference() {
    let (weights, layers) = (small_net_weights(), small_net_layers());
    assert_abs_diff_eq!(small_net(&weights).unwrap(), 1.1197512708, epsilon = 1e-10);
    let sign = |k: usize, i: usize| (1.3 * (k + 1) as f64 * (i + 1) as f64).sin().signum();
    let noise = Given {
        numbers: (0..8).flat_map(|k| (0..24).map(move |i| sign(k, i))).collect(),
        size: 24,
        starts: vec![("w1.weight".into(), 0), ("w2.weight".into(), 12)],
    };
    let mut loss = function(small_net);
    let gradient = Spsa::new(1e-3, 8)
        .unwrap()
        .estimate_along(Box::new(noise), &layers, &weights, &mut [&mut loss])
        .unwrap();
    assert_eq!(loss.passes, 16);
    let w1 = gradient.layer(&layers[0]).unwrap();
    for (j, want) in [0.064884, -0.068307, 0.109971].into_iter().enumerate() {
        assert_abs_diff_eq!(f64::from(w1[[0, j]]), want, epsilon = 5.5e-7);
    }
    assert_eq!(gradient.layer(&layers[1]).unwrap().shape(), [3, 4]);
    // The gradient that it is compared with is printed to six decimals.
    assert_abs_diff_eq!(cosine(&gradient), 0.421133, epsilon = 2e-6);
}

#[test]
fn the_direction_of_the_estimate_becomes_that_of_the_gradient_with_the_draws() {
    let (weights, layers) = (small_net_weights(), small_net_layers());
    for distribution in [Distribution::Rademacher, Distribution::Gaussian] {
        let mut last = 0.0;
        for draws in [40, 400, 4000] {
            // Of 24 entries, each of an error of about the gradient's norm over √K.
            let expected = 1.0 / (1.0 + 24.0 / f64::from(draws)).sqrt();
            let seeds = 0..3;
            let mean: f64 = seeds
                .clone()
                .map(|seed| {
                    let spsa = Spsa::new(1e-3, draws as usize).unwrap();
                    let spsa = spsa.with_seed(Seed::new(seed)).with_distribution(distribution);
                    let mut loss = function(small_net);
                    cosine(&spsa.estimate(&layers, &weights, &mut [&mut loss]).unwrap())
                })
                .sum::<f64>()
                / seeds.count() as f64;
            assert!(mean > last, "{draws} draws: {mean} after {last}");
            assert!((mean - expected).abs() < 0.5 * (1.0 - expected), "{draws}: {mean} {expected}");
            last = mean;
        }
        assert!(last > 0.995, "{last}");
    }
}

#[test]
fn the_mean_over_all_signs_is_the_gradient() {
    let weights = Tensors::new(vec![("w.weight", DType::F64, Array2::from_elem((1, 3), 0.3))]);
    let numbers =
        (0..8).flat_map(|k| (0..3).map(move |i| if k >> i & 1 == 1 { 1.0 } else { -1.0 }));
    let noise = given(numbers.collect(), "w.weight", 3);
    let layers = [LayerInfo::linear("w", 1, 3)];
    let mut loss = function(|w: &dyn TensorSource| {
        let w = read(w, "w.weight")?;
        Ok(w[0].powi(3) + 2.0 * w[1] - w[0] * w[2])
    });
    let gradient = Spsa::new(1e-3, 8)
        .unwrap()
        .estimate_along(Box::new(noise), &layers, &weights, &mut [&mut loss])
        .unwrap()
        .layer(&layers[0])
        .unwrap();
    for (j, want) in [3.0 * 0.09 - 0.3, 2.0, -0.3].into_iter().enumerate() {
        assert_abs_diff_eq!(f64::from(gradient[[0, j]]), want, epsilon = 1e-5);
    }
}

#[test]
fn seeded_directions_have_mean_zero_and_variance_one() {
    for distribution in [Distribution::Gaussian, Distribution::Rademacher] {
        let noise = SeededNoise::new(Seed::new(4), distribution);
        let mut z = vec![0.0; 100_000];
        noise.fill("w", 0, 0, &mut z);
        let mean = z.iter().sum::<f64>() / 1e5;
        let variance = z.iter().map(|z| z * z).sum::<f64>() / 1e5;
        assert_abs_diff_eq!(mean, 0.0, epsilon = 0.015);
        assert_abs_diff_eq!(variance, 1.0, epsilon = 0.02);
        let mut other = vec![0.0; 100_000];
        noise.fill("w", 1, 0, &mut other);
        let product = z.iter().zip(&other).map(|(a, b)| a * b).sum::<f64>() / 1e5;
        assert_abs_diff_eq!(product, 0.0, epsilon = 0.015);
    }
}

proptest! {
    #[test]
    fn the_mean_over_all_signs_is_the_gradient_up_to_the_square_of_the_step(
        size in 1usize..7, power in 2i32..9, seed in any::<u64>(),
    ) {
        // L = Σ a w + Σ b w_i w_(i+1) + Σ c w³: along z its third derivative is 6 Σ c z³, so that
        // the mean over all signs is off by ε² c.
        let mut stream = Seed::new(seed).stream("loss");
        let mut random = || (0..size).map(|_| 2.0 * stream.uniform() - 1.0).collect::<Vec<f64>>();
        let (w, a, b, c) = (random(), random(), random(), random());
        let epsilon = 0.5f64.powi(power);
        let row = Array2::from_shape_vec((1, size), w.clone()).unwrap();
        let weights = Tensors::new(vec![("w.weight", DType::F64, row)]);
        let all = 1usize << size;
        let sign = |k: usize, i: usize| if k >> i & 1 == 1 { 1.0 } else { -1.0 };
        let numbers = (0..all).flat_map(|k| (0..size).map(move |i| sign(k, i))).collect();
        let next = |i: usize| (i + 1) % size;
        let mut loss = function(|source: &dyn TensorSource| {
            let w = read(source, "w.weight")?;
            Ok((0..size).map(|i| a[i] * w[i] + b[i] * w[i] * w[next(i)] + c[i] * w[i].powi(3)).sum())
        });
        let layers = [LayerInfo::linear("w", 1, size)];
        let estimate = Spsa::new(epsilon, all)
            .unwrap()
            .estimate_along(
                Box::new(given(numbers, "w.weight", size)), &layers, &weights, &mut [&mut loss],
            )
            .unwrap();
        let found = estimate.layer(&layers[0]).unwrap();
        for i in 0..size {
            let before = (i + size - 1) % size;
            let g = a[i] + b[i] * w[next(i)] + b[before] * w[before] + 3.0 * c[i] * w[i] * w[i];
            let off = f64::from(found[[0, i]]) - g;
            prop_assert!((off - c[i] * epsilon * epsilon).abs() < 1e-6, "{off} {}", c[i]);
        }
    }

    #[test]
    fn any_part_of_a_perturbed_tensor_reads_as_in_the_whole(
        offset in 0usize..70_000, length in 0usize..5000, f64_stored: bool,
    ) {
        let dtype = if f64_stored { DType::F64 } else { DType::BF16 };
        let w = Array2::from_shape_fn((131, 157), |(i, j)| (i * j % 17) as f64);
        let weights = Tensors::new(vec![("w", dtype, w)]);
        let noise = SeededNoise::new(Seed::new(1), Distribution::Gaussian);
        let up = Perturbed::new(&weights, &["w"], &noise, 3, 0.5).unwrap();
        let whole = up.read("w").unwrap();
        let end = (offset + length).min(whole.len());
        let mut part = vec![0; end - offset];
        up.read_at("w", offset, &mut part).unwrap();
        prop_assert_eq!(&part[..], &whole[offset..end]);
        // The other way round, the two average to the weight.
        let down = up.reversed();
        let (a, b) = (read(&down, "w").unwrap(), read(&weights, "w").unwrap());
        let up = Perturbed::new(&weights, &["w"], &noise, 3, 0.5).unwrap();
        let c = read(&up, "w").unwrap();
        for ((down, w), up) in a.iter().zip(&b).zip(&c) {
            prop_assert!(((down + up) / 2.0 - w).abs() < 1e-5);
        }
    }
}
