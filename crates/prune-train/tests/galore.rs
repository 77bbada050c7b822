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
