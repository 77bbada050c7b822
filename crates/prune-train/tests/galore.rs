//! GaLore's update on small matrices: golden numbers of an independent implementation in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::excessive_precision)]

use candle_core::{Device, Tensor};
use prune_core::Seed;
use prune_train::{
    AdamWOptions, GaLore, GaLoreOptions, Gradients, Init, Optimizer, ParameterKind, Parameters,
    Refresh,
};

/// sin(0.37 i² + 0.53 i j + 0.91 j² + 0.2 + l).
fn wave(rows: usize, cols: usize, l: f64) -> Vec<f32> {
    let at = |i: f64, j: f64| (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2 + l).sin();
    (0..rows * cols).map(|n| at((n / cols) as f64, (n % cols) as f64) as f32).collect()
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|n| values[(n % rows) * cols + n / rows]).collect()
}

fn parameters(rows: usize, cols: usize, values: Vec<f32>) -> Parameters {
    let mut parameters = Parameters::default();
    parameters.push("w.weight", ParameterKind::Weight, &[rows, cols], values).unwrap();
    parameters
}

fn values(parameters: &Parameters) -> Vec<f32> {
    parameters.get("w.weight").unwrap().var().flatten_all().unwrap().to_vec1().unwrap()
}

fn step(optimizer: &mut GaLore, parameters: &Parameters, gradient: Vec<f32>) {
    let shape = parameters.get("w.weight").unwrap().var().dims().to_vec();
    let mut gradients = Gradients::new(1);
    gradients.add(0, Tensor::from_vec(gradient, shape, &Device::Cpu).unwrap()).unwrap();
    optimizer.step(parameters, gradients, &[1.0]).unwrap();
}

fn galore(refresh: Refresh, gap: u64, rank: usize) -> GaLore {
    let adam = AdamWOptions { rate: 0.01, eps: 1e-6, weight_decay: 0.0, ..Default::default() };
    GaLore::new(GaLoreOptions { adam, rank, gap, scale: 1.0, refresh }).unwrap()
}

#[test]
fn two_steps_give_the_golden_weights() {
    let p = parameters(4, 3, wave(4, 3, 0.0));
    let mut optimizer = galore(Refresh::Keep, 200, 2);
    step(&mut optimizer, &p, wave(4, 3, 1.0));
    let change: Vec<f32> =
        values(&p).iter().zip(wave(4, 3, 0.0)).map(|(after, before)| after - before).collect();
    let golden = [
        -0.00762941,
        -0.00833042,
        0.00850794,
        -0.01189520,
        0.00488808,
        -0.00587798,
        -0.01189402,
        0.00489001,
        -0.00587998,
        0.01189560,
        -0.00488973,
        0.00587976,
    ];
    for (c, g) in change.iter().zip(golden) {
        assert!((c - g).abs() < 2e-7, "{change:?}");
    }
    step(&mut optimizer, &p, wave(4, 3, 2.0));
    let golden = [
        0.18313324,
        0.88059601,
        -0.62766644,
        0.51772776,
        0.91383658,
        -0.85907246,
        0.98585357,
        -0.47563387,
        0.90314033,
        -0.35528405,
        -0.26017602,
        -0.78711331,
    ];
    for (w, g) in values(&p).iter().zip(golden) {
        assert!((w - g).abs() < 5e-7, "{:?}", values(&p));
    }
}

/// The right singular vector of the smallest singular value of a matrix of three columns, which is
/// returned too: by inverse iteration on its Gram matrix.
fn smallest(values: &[f32]) -> ([f64; 3], f64) {
    let at = |i: usize, j: usize| {
        values.chunks(3).map(|row| f64::from(row[i]) * f64::from(row[j])).sum::<f64>()
    };
    let rows = [0, 1, 2].map(|i| [0, 1, 2].map(|j| at(i, j)));
    let cross = |a: [f64; 3], b: [f64; 3]| {
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    };
    let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let adjugate = [cross(rows[1], rows[2]), cross(rows[2], rows[0]), cross(rows[0], rows[1])];
    let mut v = [1.0, 0.5, -0.25];
    for _ in 0..200 {
        let next = adjugate.map(|row| dot(row, v));
        let norm = dot(next, next).sqrt();
        v = next.map(|x| x / norm);
    }
    (v, dot(v, rows.map(|row| dot(row, v))).sqrt())
}

#[test]
fn an_update_lies_in_the_space_of_the_leading_singular_vectors() {
    let (last, sigma) = smallest(&wave(4, 3, 1.0));
    assert!((sigma - 0.229020).abs() < 1e-6, "{sigma}");
    let beyond = |rank: usize| {
        let p = parameters(4, 3, vec![0.0; 12]);
        step(&mut galore(Refresh::Keep, 200, rank), &p, wave(4, 3, 1.0));
        let rows = values(&p);
        let along = rows.chunks(3).map(|row| row.iter().zip(last).map(|(x, v)| f64::from(*x) * v));
        along.map(|terms| terms.sum::<f64>().abs()).fold(0.0, f64::max)
    };
    assert!(beyond(2) < 1e-8 && beyond(3) > 1e-4, "{} and {}", beyond(2), beyond(3));
}

#[test]
fn a_rank_beyond_the_matrix_is_its_own() {
    let run = |rank| {
        let p = parameters(5, 3, wave(5, 3, 0.0));
        let mut optimizer = galore(Refresh::Keep, 2, rank);
        (1..5).for_each(|l| step(&mut optimizer, &p, wave(5, 3, f64::from(l))));
        values(&p)
    };
    assert_eq!(run(3), run(100));
}

#[test]
fn weights_decay_after_the_update() {
    let run = |weight_decay| {
        let p = parameters(4, 3, wave(4, 3, 0.0));
        let adam = AdamWOptions { rate: 0.01, eps: 1e-6, weight_decay, ..Default::default() };
        let options = GaLoreOptions { adam, rank: 2, gap: 200, scale: 1.0, refresh: Refresh::Keep };
        step(&mut GaLore::new(options).unwrap(), &p, wave(4, 3, 1.0));
        values(&p)
    };
    for (plain, decayed) in run(0.0).iter().zip(run(5.0)) {
        assert!((decayed - plain * (1.0 - 0.01 * 5.0)).abs() < 2e-7, "{plain} and {decayed}");
    }
}

#[test]
fn defaults_are_those_of_the_papers() {
    let (galore, owlore) = (GaLoreOptions::default(), GaLoreOptions::owlore());
    assert_eq!((galore.rank, galore.gap, galore.scale), (128, 200, 0.25));
    assert_eq!((owlore.rank, owlore.gap, owlore.scale), (256, 100, 1.0));
    let adam = owlore.adam;
    assert_eq!((adam.beta1, adam.beta2, adam.eps, adam.weight_decay), (0.9, 0.999, 1e-6, 0.0));
}

#[test]
fn a_transposed_matrix_gets_the_transposed_update_to_the_bit() {
    for refresh in [Refresh::Keep, Refresh::Rotate, Refresh::Reset] {
        let tall = parameters(7, 4, wave(7, 4, 0.0));
        let wide = parameters(4, 7, transposed(&wave(7, 4, 0.0), 7, 4));
        let (mut a, mut b) = (galore(refresh, 2, 3), galore(refresh, 2, 3));
        for l in 1..6 {
            let gradient = wave(7, 4, f64::from(l));
            step(&mut b, &wide, transposed(&gradient, 7, 4));
            step(&mut a, &tall, gradient);
        }
        assert_eq!(transposed(&values(&tall), 7, 4), values(&wide), "{refresh:?}");
    }
}

#[test]
fn full_rank_without_rotation_is_independent_of_the_refresh_rule_until_the_first_one() {
    let run = |refresh, steps: usize| {
        let p = parameters(5, 3, wave(5, 3, 0.0));
        let mut optimizer = galore(refresh, 3, 3);
        (1..=steps).for_each(|l| step(&mut optimizer, &p, wave(5, 3, l as f64)));
        values(&p)
    };
    assert_eq!(run(Refresh::Keep, 3), run(Refresh::Reset, 3));
    assert_ne!(run(Refresh::Keep, 4), run(Refresh::Reset, 4));
    assert_ne!(run(Refresh::Keep, 4), run(Refresh::Rotate, 4));
}

#[test]
fn a_zero_gradient_changes_nothing_and_state_is_small() {
    let p = parameters(8, 6, wave(8, 6, 0.0));
    let mut optimizer = galore(Refresh::Keep, 10, 2);
    step(&mut optimizer, &p, vec![0.0; 48]);
    assert_eq!(values(&p), wave(8, 6, 0.0));
    // 2 m r + r n instead of 2 m n.
    assert_eq!(optimizer.state_len(), 2 * 8 * 2 + 2 * 6);
    optimizer.forget(0);
    assert_eq!(optimizer.state_len(), 0);
}

#[test]
fn gradients_that_are_not_finite_are_refused() {
    let p = parameters(2, 2, vec![1.0; 4]);
    let mut gradients = Gradients::new(1);
    let bad = Tensor::new(&[[f32::NAN, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
    gradients.add(0, bad).unwrap();
    let error = galore(Refresh::Keep, 10, 2).step(&p, gradients, &[1.0]).unwrap_err();
    assert!(error.to_string().contains("w.weight"), "{error}");
}

#[test]
fn initial_values_depend_on_the_name_alone() {
    let mut a = Parameters::default();
    a.init("x", ParameterKind::Weight, &[3, 5], Init::KaimingNormal, Seed::new(3)).unwrap();
    let mut b = Parameters::default();
    b.init("other", ParameterKind::Weight, &[2], Init::Normal(1.0), Seed::new(3)).unwrap();
    b.init("x", ParameterKind::Weight, &[3, 5], Init::KaimingNormal, Seed::new(3)).unwrap();
    let of = |p: &Parameters| p.get("x").unwrap().var().flatten_all().unwrap().to_vec1::<f32>();
    assert_eq!(of(&a).unwrap(), of(&b).unwrap());
}
