//! Scores from gradients against PyTorch and numpy values, on networks small enough to derive by
//! hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::{assert_abs_diff_eq, assert_relative_eq};
use ndarray::{Array, Array1, Array2, ArrayView2, Axis, array};
use proptest::collection::vec;
use proptest::prelude::*;
use prune_core::{Error, GlobalSelector, LayerId, LayerInfo, Mask, Seed, SeedStream};
use prune_importance::{
    FisherDiagonal, SynFlow, UnitScore, Weighing, grasp, hessian_gradient, second_order, snip,
    synflow, taylor,
};

/// `logits = W2 tanh(W1 x)`, mean cross-entropy of logits over a temperature, four samples.
struct Net {
    w1: Array2<f64>,
    w2: Array2<f64>,
    temperature: f64,
}

/// Half a unit of the sixth decimal, to which the reference values are printed, and the rounding of
/// f32.
const PRINTED: f64 = 5.5e-7;

const LABELS: [usize; 4] = [0, 1, 2, 0];

fn input(t: usize) -> Array1<f64> {
    (0..3).map(|j| ((t + 1) as f64 * (j + 1) as f64).sin()).collect()
}

impl Net {
    fn new(temperature: f64) -> Self {
        let wave = |i: usize, j: usize, p: f64| 0.5 * (7.0 * i as f64 + 3.0 * j as f64 + p).sin();
        Self {
            w1: Array2::from_shape_fn((4, 3), |(i, j)| wave(i, j, 0.0)),
            w2: Array2::from_shape_fn((3, 4), |(i, j)| wave(i, j, 1.0)),
            temperature,
        }
    }

    fn random(stream: &mut SeedStream) -> Self {
        let mut weight =
            |shape| Array2::from_shape_simple_fn(shape, || 2.0 * stream.uniform() - 1.0);
        Self { w1: weight((4, 3)), w2: weight((3, 4)), temperature: 1.0 }
    }

    fn moved(&self, d1: &Array2<f64>, d2: &Array2<f64>, step: f64) -> Self {
        Self {
            w1: &self.w1 + &(d1 * step),
            w2: &self.w2 + &(d2 * step),
            temperature: self.temperature,
        }
    }

    /// Loss and gradients of one sample.
    fn sample(&self, t: usize) -> (f64, Array2<f64>, Array2<f64>) {
        let x = input(t);
        let h = self.w1.dot(&x).mapv(f64::tanh);
        let y = self.w2.dot(&h) / self.temperature;
        let normaliser = y.mapv(f64::exp).sum().ln();
        let mut dy = y.mapv(|y| (y - normaliser).exp());
        dy[LABELS[t]] -= 1.0;
        dy /= self.temperature;
        let dh = self.w2.t().dot(&dy) * h.mapv(|h| 1.0 - h * h);
        (normaliser - y[LABELS[t]], outer(&dh, &x), outer(&dy, &h))
    }

    /// The Hessian times a direction, without differences: every step of [`Net::sample`]
    /// differentiated along the direction.
    fn hessian_times(&self, d1: &Array2<f64>, d2: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
        let mut sum = (Array2::zeros((4, 3)), Array2::zeros((3, 4)));
        for (t, &label) in LABELS.iter().enumerate() {
            let x = input(t);
            let h = self.w1.dot(&x).mapv(f64::tanh);
            let slope = h.mapv(|h| 1.0 - h * h);
            let moved_h = d1.dot(&x) * &slope;
            let y = self.w2.dot(&h) / self.temperature;
            let moved_y = (d2.dot(&h) + self.w2.dot(&moved_h)) / self.temperature;
            let p = y.mapv(f64::exp) / y.mapv(f64::exp).sum();
            let moved_p = &p * &(&moved_y - p.dot(&moved_y)) / self.temperature;
            let mut dy = p;
            dy[label] -= 1.0;
            dy /= self.temperature;
            let back = self.w2.t().dot(&dy);
            let moved_back = d2.t().dot(&dy) + self.w2.t().dot(&moved_p);
            let moved_dh = moved_back * &slope - back * 2.0 * &h * &moved_h;
            sum.0 = sum.0 + outer(&moved_dh, &x) / 4.0;
            sum.1 = sum.1 + (outer(&moved_p, &h) + outer(&dy, &moved_h)) / 4.0;
        }
        sum
    }

    /// The Hessian times a direction by central differences of the gradient.
    fn differences(
        &self,
        d1: &Array2<f64>,
        d2: &Array2<f64>,
        step: f64,
    ) -> (Array2<f64>, Array2<f64>) {
        let (_, a1, a2) = self.moved(d1, d2, step).gradients();
        let (_, b1, b2) = self.moved(d1, d2, -step).gradients();
        ((a1 - b1) / (2.0 * step), (a2 - b2) / (2.0 * step))
    }

    fn gradients(&self) -> (f64, Array2<f64>, Array2<f64>) {
        let mut sum = (0.0, Array2::zeros((4, 3)), Array2::zeros((3, 4)));
        for t in 0..4 {
            let (loss, g1, g2) = self.sample(t);
            sum.0 += loss / 4.0;
            sum.1 = sum.1 + g1 / 4.0;
            sum.2 = sum.2 + g2 / 4.0;
        }
        sum
    }
}

fn outer(a: &Array1<f64>, b: &Array1<f64>) -> Array2<f64> {
    a.view().insert_axis(Axis(1)).dot(&b.view().insert_axis(Axis(0)))
}

fn f32s(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|x| x as f32)
}

fn row(got: ArrayView2<'_, f32>, i: usize, want: &[f64], epsilon: f64) {
    assert_eq!(got.ncols(), want.len());
    for (g, w) in got.row(i).iter().zip(want) {
        assert_abs_diff_eq!(f64::from(*g), *w, epsilon = epsilon);
    }
}

fn sum(a: &Array2<f32>) -> f64 {
    a.iter().map(|x| f64::from(*x)).sum()
}

#[test]
fn the_network_has_the_loss_and_gradients_of_the_reference() {
    let (loss, g1, g2) = Net::new(1.0).gradients();
    assert_abs_diff_eq!(loss, 1.1197512708, epsilon = 1e-10);
    let first = [
        [-0.015895, 0.006318, 0.015224],
        [0.011320, -0.026286, -0.006437],
        [-0.000430, 0.037807, 0.001969],
        [-0.002154, -0.057177, 0.003310],
    ];
    for (i, want) in first.iter().enumerate() {
        row(f32s(&g1).view(), i, want, PRINTED);
    }
    let second = [
        [-0.039805, 0.139349, 0.212465, 0.207211],
        [0.012471, -0.098092, -0.136754, -0.126755],
        [0.027334, -0.041257, -0.075711, -0.080456],
    ];
    for (i, want) in second.iter().enumerate() {
        row(f32s(&g2).view(), i, want, PRINTED);
    }
}

#[test]
fn snip_matches_the_reference_and_sums_to_one_when_normalised() {
    let net = Net::new(1.0);
    let (_, g1, g2) = net.gradients();
    let s1 = snip("w1", f32s(&net.w1).view(), f32s(&g1).view()).unwrap();
    let s2 = snip("w2", f32s(&net.w2).view(), f32s(&g2).view()).unwrap();
    let all = sum(&s1) + sum(&s2);
    assert_relative_eq!(all, 0.5344474542, max_relative = 1e-7);
    let exact = (&net.w1 * &g1).mapv(f64::abs).sum() + (&net.w2 * &g2).mapv(f64::abs).sum();
    assert_abs_diff_eq!(exact, 0.5344474542, epsilon = 1e-10);
    let (n1, n2) = (s1.mapv(|x| x / all as f32), s2.mapv(|x| x / all as f32));
    row(n1.view(), 3, &[0.001686, 0.048441, 0.002961], PRINTED);
    row(n2.view(), 0, &[0.031336, 0.098662, 0.130590, 0.105461], PRINTED);
    assert_abs_diff_eq!(sum(&n1) + sum(&n2), 1.0, epsilon = 1e-6);
}

#[test]
fn grasp_matches_the_reference_with_the_exact_hessian() {
    for (temperature, norm, row1, row2) in [
        (
            1.0,
            0.1236254345,
            [0.044965, -0.330440, -0.009323],
            [0.030857, 0.128374, -0.100876, 0.136605],
        ),
        (
            200.0,
            2.7065918878e-6,
            [0.038997, -0.378148, -0.014387],
            [0.008963, 0.030540, 0.029835, 0.041198],
        ),
    ] {
        let net = Net::new(temperature);
        let (_, g1, g2) = net.gradients();
        let (h1, h2) = net.hessian_times(&g1, &g2);
        let exact = (&net.w1 * &h1).sum() + (&net.w2 * &h2).sum();
        // The reference's norm is guarded by 1e-10.
        assert_relative_eq!(exact.abs() + 1e-10, norm, max_relative = 5e-10);
        let s1 = grasp("w1", f32s(&net.w1).view(), f32s(&h1).view()).unwrap();
        let s2 = grasp("w2", f32s(&net.w2).view(), f32s(&h2).view()).unwrap();
        assert_relative_eq!((sum(&s1) + sum(&s2)).abs(), exact.abs(), max_relative = 1e-6);
        // The reference prunes the highest of -w · Hg.
        row(s1.mapv(|x| -x / norm as f32).view(), 2, &row1, PRINTED);
        row(s2.mapv(|x| -x / norm as f32).view(), 0, &row2, PRINTED);
    }
}

#[test]
fn central_differences_of_the_gradient_give_the_hessian_gradient() {
    let net = Net::new(1.0);
    let (_, g1, g2) = net.gradients();
    let (h1, h2) = net.hessian_times(&g1, &g2);
    let (d1, d2) = net.differences(&g1, &g2, 1e-4);
    for (d, h) in d1.iter().zip(&h1).chain(d2.iter().zip(&h2)) {
        assert_abs_diff_eq!(*d, *h, epsilon = 1e-11);
    }
    let at = |step: f64| f32s(&net.moved(&g1, &g2, step).gradients().1);
    let got = hessian_gradient("w1", at(0.05).view(), at(-0.05).view(), 0.05).unwrap();
    for (g, e) in got.iter().zip(&h1) {
        assert_abs_diff_eq!(f64::from(*g), *e, epsilon = 1e-5);
    }
    for bad in [0.0, f64::NAN] {
        assert!(hessian_gradient("w1", got.view(), got.view(), bad).is_err());
    }
}

#[test]
fn synflow_of_the_network_matches_the_reference_and_is_conserved() {
    let net = Net::new(1.0);
    let (a1, a2) = (net.w1.mapv(f64::abs), net.w2.mapv(f64::abs));
    // Activations left out: R = 1ᵀ |W2| |W1| 1.
    let left = a2.sum_axis(Axis(0));
    let right = a1.sum_axis(Axis(1));
    let g1 = Array2::from_shape_fn((4, 3), |(i, _)| left[i]);
    let g2 = Array2::from_shape_fn((3, 4), |(_, j)| right[j]);
    let s1 = synflow("w1", f32s(&net.w1).view(), f32s(&g1).view()).unwrap();
    let s2 = synflow("w2", f32s(&net.w2).view(), f32s(&g2).view()).unwrap();
    row(s1.view(), 1, &[0.411894, 0.341071, 0.263422], PRINTED);
    row(s2.view(), 2, &[0.068367, 0.304370, 0.599244, 0.610951], PRINTED);
    let flow = a2.dot(&a1).sum();
    assert_abs_diff_eq!(flow, 4.6831347024, epsilon = 1e-10);
    assert_relative_eq!(sum(&s1), flow, max_relative = 1e-6);
    assert_relative_eq!(sum(&s2), flow, max_relative = 1e-6);
}

/// The mean of squared gradients of single samples.
fn fisher(net: &Net) -> (Array2<f32>, Array2<f32>) {
    let mut f1 = FisherDiagonal::new((4, 3));
    let mut f2 = FisherDiagonal::new((3, 4));
    for t in 0..4 {
        let (_, g1, g2) = net.sample(t);
        f1.observe("w1", f32s(&g1).view()).unwrap();
        f2.observe("w2", f32s(&g2).view()).unwrap();
    }
    (f1.diagonal("w1").unwrap(), f2.diagonal("w2").unwrap())
}

#[test]
fn fisher_and_unit_importances_match_the_reference() {
    let net = Net::new(1.0);
    let (_, g1, _) = net.gradients();
    let (f1, f2) = fisher(&net);
    row(f1.view(), 3, &[0.004122, 0.004735, 0.000451], PRINTED);
    row(f2.view(), 0, &[0.002817, 0.043295, 0.089477, 0.081638], PRINTED);
    let (w1, g1) = (f32s(&net.w1), f32s(&g1));
    for (score, want) in [
        (UnitScore::Squares, [0.000005, 0.000067, 0.000331, 0.000674]),
        (UnitScore::SquaredChange, [0.000003, 0.000091, 0.000306, 0.000706]),
        (UnitScore::Magnitude, [0.002573, 0.012221, 0.019285, 0.028373]),
        (UnitScore::Change, [0.001681, 0.009516, 0.017488, 0.026571]),
        (UnitScore::Fisher, [0.000015, 0.000249, 0.001035, 0.001795]),
        (UnitScore::Mixed, [0.002574, 0.012106, 0.019768, 0.028197]),
    ] {
        let got = score.rows("w1", w1.view(), g1.view(), Some(f1.view())).unwrap();
        for (g, w) in got.iter().zip(want) {
            assert_abs_diff_eq!(*g, w, epsilon = PRINTED);
        }
        let none = score.rows("w1", w1.view(), g1.view(), None);
        let needs = matches!(score, UnitScore::Fisher | UnitScore::Mixed);
        assert_eq!(none.is_err(), needs);
    }
    // The squares of the whole are the sum over weights of the Taylor importance.
    let weights = taylor("w1", w1.view(), g1.view()).unwrap();
    let rows = UnitScore::Squares.rows("w1", w1.view(), g1.view(), None).unwrap();
    for (r, got) in rows.iter().enumerate() {
        assert_abs_diff_eq!(weights.row(r).sum(), *got as f32, epsilon = 1e-8);
    }
}

#[test]
fn optimal_brain_damage_matches_the_reference_and_may_be_negative() {
    let net = Net::new(1.0);
    let diagonal = Array2::from_shape_fn((4, 3), |(i, j)| {
        let mut d = Array2::zeros((4, 3));
        d[[i, j]] = 1.0;
        net.hessian_times(&d, &Array2::zeros((3, 4))).0[[i, j]]
    });
    row(f32s(&diagonal).view(), 1, &[-0.014256, -0.013322, -0.002402], PRINTED);
    row(f32s(&diagonal).view(), 2, &[0.020527, 0.021622, 0.005293], PRINTED);
    let obd = second_order("w1", f32s(&net.w1).view(), f32s(&diagonal).view()).unwrap();
    row(obd.view(), 2, &[0.002518, 0.002498, 0.000551], PRINTED);
    assert!(obd.row(1).iter().all(|x| *x < 0.0));
}

/// Weights of a linear network of 3, 4, 4 and 2 neurons.
fn linear_net() -> [Array2<f64>; 3] {
    let wsin = |l: f64, rows: usize, cols: usize| {
        Array2::from_shape_fn((rows, cols), |(i, j)| {
            let (i, j) = (i as f64, j as f64);
            (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2 + l).sin()
        })
    };
    [wsin(1.0, 4, 3), wsin(2.0, 4, 4), wsin(3.0, 2, 4)]
}

/// The gradients of `left · W3 W2 W1 · right` by each weight.
fn chain_gradients(
    w: &[Array2<f64>; 3],
    left: &Array1<f64>,
    right: &Array1<f64>,
) -> Vec<Array2<f64>> {
    let x1 = w[0].dot(right);
    let x2 = w[1].dot(&x1);
    let y3 = left.clone();
    let y2 = w[2].t().dot(&y3);
    let y1 = w[1].t().dot(&y2);
    vec![outer(&y1, right), outer(&y2, &x1), outer(&y3, &x2)]
}

fn layers_of(net: &[Array2<f64>; 3]) -> Vec<LayerInfo> {
    let info = |(name, w): (&str, &Array2<f64>)| LayerInfo::linear(name, w.nrows(), w.ncols());
    ["a", "b", "c"].into_iter().zip(net).map(info).collect()
}

/// SynFlow's saliencies of a linear network under masks.
fn saliencies(net: &[Array2<f64>; 3], masks: &[Mask]) -> Vec<Array2<f32>> {
    let masked = [0, 1, 2].map(|l| {
        Array2::from_shape_fn(net[l].dim(), |(i, j)| {
            if masks[l].is_kept(i, j) { net[l][[i, j]].abs() } else { 0.0 }
        })
    });
    let (outputs, inputs) = (net[2].nrows(), net[0].ncols());
    let g = chain_gradients(&masked, &Array1::ones(outputs), &Array1::ones(inputs));
    let score = |(w, g)| synflow("w", f32s(w).view(), f32s(g).view()).unwrap();
    masked.iter().zip(&g).map(score).collect()
}

/// How many weights each layer keeps.
fn synflow_kept(net: &[Array2<f64>; 3], keep: f64, rounds: usize) -> Vec<usize> {
    let mut synflow = SynFlow::new(&layers_of(net), keep).unwrap().with_rounds(rounds).unwrap();
    while !synflow.is_done() {
        let saliency = saliencies(net, synflow.masks());
        // Conserved: the flow through every layer is the same.
        let sums: Vec<f64> = saliency.iter().map(sum).collect();
        sums.iter().for_each(|s| assert_relative_eq!(*s, sums[0], max_relative = 1e-5));
        let views: Vec<_> = saliency.iter().map(|s| s.view().into_dyn()).collect();
        synflow.step(&views).unwrap();
    }
    synflow.kept()
}

fn synflow_densities(keep: f64, rounds: usize) -> Vec<f64> {
    let sizes = [12.0, 16.0, 8.0];
    synflow_kept(&linear_net(), keep, rounds)
        .iter()
        .zip(sizes)
        .map(|(&k, n)| k as f64 / n)
        .collect()
}

#[test]
fn synflow_of_a_linear_network_matches_the_reference() {
    let net = linear_net();
    let all: Vec<Mask> = net.iter().map(|w| Mask::all_kept(w.nrows(), w.ncols())).collect();
    let saliency = saliencies(&net, &all);
    saliency.iter().for_each(|s| assert_relative_eq!(sum(s), 23.770062, max_relative = 1e-6));
    row(saliency[0].view(), 0, &[2.982768, 2.746200, 3.174238], 1e-6);
}

#[test]
fn synflow_rounds_match_the_reference() {
    for (keep, rounds, want) in [
        (0.5, 1, [0.583333, 0.3125, 0.75]),
        (0.5, 100, [0.5, 0.375, 0.75]),
        (0.25, 1, [0.166667, 0.125, 0.625]),
        (0.25, 100, [0.25, 0.1875, 0.375]),
    ] {
        let got = synflow_densities(keep, rounds);
        for (g, w) in got.iter().zip(want) {
            assert_abs_diff_eq!(*g, w, epsilon = 1e-6);
        }
    }
}

#[test]
fn a_hundred_rounds_empty_no_layer_where_one_round_does() {
    // Three of 36 weights: one path.
    assert!(synflow_densities(3.0 / 36.0, 100).iter().all(|d| *d > 0.0));
    assert!(synflow_densities(3.0 / 36.0, 1).contains(&0.0));
}

/// A network whose middle layer has nine tenths of the weights, none of them small or negative.
fn wide_net(seed: u64) -> [Array2<f64>; 3] {
    let mut stream = Seed::new(seed).stream("net");
    [(60, 4), (60, 60), (2, 60)].map(|shape: (usize, usize)| {
        Array2::from_shape_simple_fn(shape, || (0.5 + 0.5 * stream.uniform()) / shape.1 as f64)
    })
}

/// How many of the scores each layer loses when `remove` of all go.
fn removed_globally(scores: &[Array2<f32>], remove: usize) -> Vec<usize> {
    let size = |(l, s): (usize, &Array2<f32>)| (LayerId::new(format!("{l}")), s.len());
    let mut selector =
        GlobalSelector::new(scores.iter().enumerate().map(size).collect(), remove).unwrap();
    while !selector.is_done() {
        for (l, s) in scores.iter().enumerate() {
            selector.feed(l, s.as_slice().unwrap()).unwrap();
        }
        selector.end_pass().unwrap();
    }
    selector.finish().unwrap().removed
}

#[test]
fn at_99_percent_snip_empties_a_layer_and_a_hundred_rounds_of_synflow_none() {
    for seed in 0..3 {
        let net = wide_net(seed);
        let total: usize = net.iter().map(Array2::len).sum();
        let mut stream = Seed::new(seed).stream("data");
        let mut data = |n| Array1::from_shape_simple_fn(n, || 0.5 + stream.uniform());
        let (x, y) = (data(4), data(2));
        let error = net[2].dot(&net[1].dot(&net[0].dot(&x))) - y;
        let g = chain_gradients(&net, &error, &x);
        let score = |(w, g)| snip("w", f32s(w).view(), f32s(g).view()).unwrap();
        let scores: Vec<Array2<f32>> = net.iter().zip(&g).map(score).collect();
        let removed = removed_globally(&scores, total - total / 100);
        assert!(scores.iter().zip(&removed).any(|(s, r)| s.len() == *r), "{removed:?}");
        let kept = synflow_kept(&net, 0.01, 100);
        assert!(kept.iter().all(|k| *k > 0), "{kept:?}");
    }
}

#[test]
fn snip_of_a_linear_network_matches_the_reference() {
    let net = linear_net();
    let (x, y) = (array![1.0, -0.5, 0.25], array![0.3, -0.2]);
    let out = net[2].dot(&net[1].dot(&net[0].dot(&x)));
    let error = &out - &y;
    assert_abs_diff_eq!(error.mapv(|e| e * e).sum() / 2.0, 5.324907, epsilon = 1e-6);
    let g = chain_gradients(&net, &error, &x);
    for (w, g) in net.iter().zip(&g) {
        assert_abs_diff_eq!((w * g).sum(), 10.150565, epsilon = 1e-6);
    }
    let saliency: Vec<Array2<f32>> = net
        .iter()
        .zip(&g)
        .map(|(w, g)| snip("w", f32s(w).view(), f32s(g).view()).unwrap())
        .collect();
    let sizes = layers_of(&net).iter().map(|l| (l.id.clone(), l.numel())).collect();
    let mut selector = GlobalSelector::new(sizes, 18).unwrap();
    while !selector.is_done() {
        for (l, s) in saliency.iter().enumerate() {
            selector.feed(l, s.as_slice().unwrap()).unwrap();
        }
        selector.end_pass().unwrap();
    }
    let selection = selector.finish().unwrap();
    let density = |l: usize, n: f64| 1.0 - selection.removed[l] as f64 / n;
    assert_eq!([density(0, 12.0), density(1, 16.0), density(2, 8.0)], [0.5, 0.375, 0.75]);
    // The least that stays is the threshold of the reference.
    let cut = selection.threshold.unwrap();
    let least = saliency.iter().flatten().filter(|s| **s > cut).fold(f32::MAX, |m, s| m.min(*s));
    assert_abs_diff_eq!(f64::from(least), 1.169102, epsilon = 2e-6);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (w, bad, long) = (array![[1.0, 2.0]], array![[1.0, f32::NAN]], array![[1.0, 2.0, 3.0]]);
    type Score =
        fn(&str, ArrayView2<'_, f32>, ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>>;
    let scores: [Score; 5] = [snip, grasp, synflow, taylor, second_order];
    for score in scores {
        let e = score("up", w.view(), bad.view()).unwrap_err();
        assert!(matches!(&e, Error::NotFinite { index: 1, .. }), "{e}");
        assert!(e.to_string().contains("gradient of `up`"), "{e}");
        assert!(score("up", bad.view(), w.view()).unwrap_err().to_string().contains("weight"));
        assert!(matches!(score("up", w.view(), long.view()), Err(Error::Shape { .. })));
        let huge = array![[f32::MAX, 1.0]];
        let e = score("up", huge.view(), huge.view()).unwrap_err();
        assert!(e.to_string().contains("score of `up`"), "{e}");
    }
    assert!(Weighing::Magnitude.score("up", w.view(), bad.view()).is_err());
    assert!(Weighing::Magnitude.score("up", w.view(), long.view()).is_err());
    let mut fisher = FisherDiagonal::new((1, 2));
    assert!(matches!(fisher.diagonal("up"), Err(Error::NoStatistics { .. })));
    assert!(fisher.observe("up", long.view()).is_err());
    assert!(fisher.observe("up", bad.view()).is_err());
    assert_eq!(fisher, FisherDiagonal::new((1, 2)));

    let layers = layers_of(&linear_net());
    for density in [0.0, -0.1, 1.1, f64::NAN] {
        assert!(SynFlow::new(&layers, density).is_err());
    }
    let mut rounds = SynFlow::new(&layers[..1], 0.5).unwrap().with_rounds(1).unwrap();
    assert!(SynFlow::new(&layers, 0.5).unwrap().with_rounds(0).is_err());
    let short = Array2::<f32>::zeros((3, 4)).into_dyn();
    assert!(matches!(rounds.step(&[short.view()]), Err(Error::Shape { .. })));
    assert!(matches!(rounds.step(&[]), Err(Error::Shape { .. })));
    let negative = Array2::<f32>::from_elem((4, 3), -1.0).into_dyn();
    assert!(matches!(rounds.step(&[negative.view()]), Err(Error::OutOfRange { .. })));
    let fine = Array2::<f32>::ones((4, 3)).into_dyn();
    rounds.step(&[fine.view()]).unwrap();
    assert!(matches!(rounds.step(&[fine.view()]), Err(Error::OutOfRange { .. })));
    assert_eq!(rounds.masks()[0].kept(), 6);
}

#[test]
fn scores_take_any_shape() {
    let conv = Array::from_shape_fn((2, 3, 2, 2), |(a, b, c, d)| (a + b + c + d) as f32);
    let s = snip("conv", conv.view(), conv.view()).unwrap();
    assert_eq!(s[[1, 2, 1, 1]], 25.0);
    let linear = conv.clone().into_dyn();
    assert_eq!(taylor("conv", linear.view(), linear.view()).unwrap()[[1, 2, 1, 1]], 625.0);
    assert_eq!(Weighing::Gradient.score("conv", conv.view(), conv.view()).unwrap(), 60.0);
    let layer = LayerInfo::from_name("conv", prune_core::LayerKind::Conv2d, conv.shape().to_vec());
    let mut rounds = SynFlow::new(&[layer], 0.25).unwrap().with_rounds(2).unwrap();
    rounds.step(&[linear.view()]).unwrap();
    assert_eq!(rounds.kept(), [12]);
    assert_eq!(rounds.masks()[0].cols(), 12);
    assert_eq!(LayerId::new("conv").as_str(), "conv");
}

proptest! {
    #[test]
    fn unit_and_weight_scores_obey_their_laws(
        w in vec(-2.0f32..2.0, 12), g in vec(-2.0f32..2.0, 12), at in 0usize..3,
    ) {
        let w = Array2::from_shape_vec((3, 4), w).unwrap();
        let g = Array2::from_shape_vec((3, 4), g).unwrap();
        let rows = |s: UnitScore| s.rows("w", w.view(), g.view(), Some(g.mapv(f32::abs).view())).unwrap();
        // Cauchy and Schwarz: the square of a sum is at most the number times the sum of squares.
        for (square, squares) in rows(UnitScore::SquaredChange).iter().zip(rows(UnitScore::Squares)) {
            prop_assert!(*square <= 4.0 * squares + 1e-9);
        }
        for (change, magnitude) in rows(UnitScore::Change).iter().zip(rows(UnitScore::Magnitude)) {
            prop_assert!(*change <= magnitude + 1e-9);
        }
        prop_assert!(rows(UnitScore::Fisher).iter().all(|f| *f >= 0.0));
        // A removed weight has no saliency.
        let mut masked = w.clone();
        masked[[at, 1]] = 0.0;
        prop_assert_eq!(snip("w", masked.view(), g.view()).unwrap()[[at, 1]], 0.0);
        prop_assert_eq!(synflow("w", masked.view(), g.view()).unwrap()[[at, 1]], 0.0);
        prop_assert_eq!(grasp("w", masked.view(), g.view()).unwrap()[[at, 1]], 0.0);
        prop_assert_eq!(taylor("w", masked.view(), g.view()).unwrap()[[at, 1]], 0.0);
        prop_assert_eq!(second_order("w", masked.view(), g.view()).unwrap()[[at, 1]], 0.0);
        let total: f32 = snip("w", w.view(), g.view()).unwrap().sum();
        let score = Weighing::Magnitude.score("w", w.view(), g.view()).unwrap();
        prop_assert!((f64::from(total) - score).abs() < 1e-4);
        // Over their sum they sum to 1.
        if total > 0.0 {
            let shares = snip("w", w.view(), g.view()).unwrap() / total;
            prop_assert!((shares.sum() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn the_order_of_the_parameters_changes_no_score(
        w in vec(-2.0f32..2.0, 12), g in vec(-2.0f32..2.0, 12),
        rows in Just((0..3).collect::<Vec<usize>>()).prop_shuffle(),
        cols in Just((0..4).collect::<Vec<usize>>()).prop_shuffle(),
        remove in 0usize..=24,
    ) {
        let w = Array2::from_shape_vec((3, 4), w).unwrap();
        let g = Array2::from_shape_vec((3, 4), g).unwrap();
        let shuffled = |a: &Array2<f32>| {
            Array2::from_shape_fn((3, 4), |(i, j)| a[[rows[i], cols[j]]])
        };
        let (v, h) = (shuffled(&w), shuffled(&g));
        type Score =
            fn(&str, ArrayView2<'_, f32>, ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>>;
        let scores: [Score; 5] = [snip, grasp, synflow, taylor, second_order];
        for score in scores {
            let plain = score("w", w.view(), g.view()).unwrap();
            prop_assert_eq!(score("w", v.view(), h.view()).unwrap(), shuffled(&plain));
        }
        let fisher = |g: &Array2<f32>| {
            let mut fisher = FisherDiagonal::new((3, 4));
            fisher.observe("w", g.view()).unwrap();
            fisher.diagonal("w").unwrap()
        };
        let (f, e) = (fisher(&g), fisher(&h));
        prop_assert_eq!(&e, &shuffled(&f));
        for score in [
            UnitScore::Magnitude, UnitScore::Change, UnitScore::SquaredChange, UnitScore::Squares,
            UnitScore::Fisher, UnitScore::Mixed,
        ] {
            let plain = score.rows("w", w.view(), g.view(), Some(f.view())).unwrap();
            let other = score.rows("w", v.view(), h.view(), Some(e.view())).unwrap();
            for (unit, other) in other.iter().enumerate() {
                prop_assert!((plain[rows[unit]] - other).abs() < 1e-9);
            }
        }
        // Nor does the order of the layers, where no two scores are equal.
        let one = snip("w", w.view(), g.view()).unwrap();
        let two = snip("w", g.view(), g.view()).unwrap();
        let mut all: Vec<f32> = one.iter().chain(&two).copied().collect();
        all.sort_by(f32::total_cmp);
        if all.windows(2).all(|pair| pair[0] < pair[1]) {
            let forth = removed_globally(&[one.clone(), two.clone()], remove);
            let back = removed_globally(&[two, one], remove);
            prop_assert_eq!([forth[0], forth[1]], [back[1], back[0]]);
        }
    }

    #[test]
    fn fisher_information_is_never_negative_and_never_below_the_square_of_the_mean(
        samples in vec(vec(-2.0f32..2.0, 12), 1..6),
    ) {
        let mut fisher = FisherDiagonal::new((3, 4));
        let mut mean = Array2::<f64>::zeros((3, 4));
        for sample in &samples {
            let g = Array2::from_shape_vec((3, 4), sample.clone()).unwrap();
            fisher.observe("w", g.view()).unwrap();
            mean += &(g.mapv(f64::from) / samples.len() as f64);
        }
        for (f, m) in fisher.diagonal("w").unwrap().iter().zip(&mean) {
            prop_assert!(*f >= 0.0 && f64::from(*f) >= m * m * (1.0 - 1e-6) - 1e-12);
        }
    }

    #[test]
    fn hessian_gradients_are_the_central_differences_of_the_gradient(seed in any::<u64>()) {
        let net = Net::random(&mut Seed::new(seed).stream("net"));
        let (_, g1, g2) = net.gradients();
        let (h1, h2) = net.hessian_times(&g1, &g2);
        let (d1, d2) = net.differences(&g1, &g2, 1e-4);
        for (d, h) in d1.iter().zip(&h1).chain(d2.iter().zip(&h2)) {
            prop_assert!((d - h).abs() < 1e-8, "{d} {h}");
        }
        let at = |step: f64| f32s(&net.moved(&g1, &g2, step).gradients().2);
        let found = hessian_gradient("w2", at(0.02).view(), at(-0.02).view(), 0.02).unwrap();
        for (d, h) in found.iter().zip(&h2) {
            prop_assert!((f64::from(*d) - h).abs() < 2e-4, "{d} {h}");
        }
    }

    #[test]
    fn the_flow_through_every_layer_is_the_same(
        seed in any::<u64>(), widths in (1usize..6, 1usize..6, 1usize..6, 1usize..6),
        part in 0.2f64..1.0,
    ) {
        let mut stream = Seed::new(seed).stream("net");
        let (n0, n1, n2, n3) = widths;
        let net = [(n1, n0), (n2, n1), (n3, n2)]
            .map(|shape| Array2::from_shape_simple_fn(shape, || 2.0 * stream.uniform() - 1.0));
        let masks: Vec<Mask> = net
            .iter()
            .map(|w| Mask::from_fn(w.nrows(), w.ncols(), |_, _| stream.uniform() < part))
            .collect();
        let masked = [0, 1, 2].map(|l| {
            Array2::from_shape_fn(net[l].dim(), |(i, j)| {
                if masks[l].is_kept(i, j) { net[l][[i, j]].abs() } else { 0.0 }
            })
        });
        let flow = masked[2].dot(&masked[1].dot(&masked[0])).sum();
        for saliency in saliencies(&net, &masks) {
            prop_assert!((sum(&saliency) - flow).abs() <= 1e-5 * flow);
        }
    }

    #[test]
    fn rounds_remove_what_they_should_and_nothing_comes_back(
        a in vec(0.0f32..4.0, 20), b in vec(0.0f32..4.0, 12), density in 0.05f64..1.0, rounds in 1usize..6,
    ) {
        let layers = [LayerInfo::linear("a", 5, 4), LayerInfo::linear("b", 3, 4)];
        let mut synflow = SynFlow::new(&layers, density).unwrap().with_rounds(rounds).unwrap();
        let (a, b) = (
            Array2::from_shape_vec((5, 4), a).unwrap().into_dyn(),
            Array2::from_shape_vec((3, 4), b).unwrap().into_dyn(),
        );
        for t in 1..=rounds {
            let before = synflow.masks().to_vec();
            synflow.step(&[a.view(), b.view()]).unwrap();
            let keep = density.powf(t as f64 / rounds as f64);
            let kept: usize = synflow.kept().iter().sum();
            prop_assert_eq!(kept, 32 - ((1.0 - keep) * 32.0 + 1e-9) as usize);
            for (now, before) in synflow.masks().iter().zip(&before) {
                prop_assert_eq!(now.and(before).unwrap(), now.clone());
            }
        }
    }
}
