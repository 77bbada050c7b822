//! Uniform, uniform+, ER, ERK and ERK+ against reference densities, and the laws that they obey.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{Er, Erk, ErkPlus, Fidelity, Uniform, UniformPlus};
use prune_core::{Allocator, Budget, Error, LayerInfo, LayerKind, ScoredLayer};

fn layers(shapes: &[&[usize]]) -> Vec<ScoredLayer> {
    let info = |(i, shape): (usize, &&[usize])| {
        let kind = if shape.len() == 4 { LayerKind::Conv2d } else { LayerKind::Linear };
        LayerInfo::from_name(&format!("layer{i}"), kind, shape.to_vec())
    };
    shapes.iter().enumerate().map(info).map(ScoredLayer::from).collect()
}

/// Eight convolutions and a classifier, 75 056 weights.
fn nine_layers() -> Vec<ScoredLayer> {
    layers(&[
        &[16, 3, 3, 3],
        &[16, 16, 3, 3],
        &[32, 16, 3, 3],
        &[32, 16, 1, 1],
        &[32, 32, 3, 3],
        &[64, 32, 3, 3],
        &[64, 32, 1, 1],
        &[64, 64, 3, 3],
        &[10, 64],
    ])
}

fn mlp() -> Vec<ScoredLayer> {
    layers(&[&[300, 784], &[100, 300], &[10, 100]])
}

/// The 22 weights of ResNet-20 for CIFAR-10 with 1x1 shortcuts.
fn resnet20() -> Vec<ScoredLayer> {
    let mut shapes: Vec<Vec<usize>> = vec![vec![16, 3, 3, 3]];
    let conv = |o: usize, i: usize, k: usize| vec![o, i, k, k];
    shapes.extend((0..6).map(|_| conv(16, 16, 3)));
    for (o, i) in [(32, 16), (64, 32)] {
        shapes.extend([conv(o, i, 3), conv(o, o, 3), conv(o, i, 1)]);
        shapes.extend((0..4).map(|_| conv(o, o, 3)));
    }
    shapes.push(vec![10, 64]);
    layers(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn keep(density: f64) -> Budget {
    Budget::sparsity(1.0 - density).unwrap()
}

fn close(got: &[f64], want: &[f64], epsilon: f64) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert_abs_diff_eq!(*g, *w, epsilon = epsilon);
    }
}

#[test]
fn erk_densities_of_nine_layers_match_the_reference() {
    let cases: [(f64, [f64; 9], f64); 5] = [
        (
            0.05,
            [
                0.336707, 0.095961, 0.068183, 0.568193, 0.044193, 0.032198, 0.278414, 0.021149,
                0.672740,
            ],
            5.818295,
        ),
        (
            0.1,
            [0.705730, 0.201133, 0.142910, 1.0, 0.092627, 0.067485, 0.583550, 0.044329, 1.0],
            12.195010,
        ),
        (0.2, [1.0, 0.471552, 0.335050, 1.0, 0.217162, 0.158218, 1.0, 0.103928, 1.0], 28.590955),
        (0.5, [1.0, 1.0, 1.0, 1.0, 0.669793, 0.487992, 1.0, 0.320544, 1.0], 88.183007),
        (0.9, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.796398, 1.0], 219.092537),
    ];
    for (density, want, scale) in cases {
        let got = Erk.densities(&nine_layers(), &keep(density)).unwrap();
        close(&got, &want, 1e-6);
        // The largest layer is never full: weights over the sum of its shape is the scale.
        assert_abs_diff_eq!(got[7] * 36864.0 / 134.0, scale, epsilon = 1e-6);
    }
}

#[test]
fn er_densities_of_nine_layers_match_the_reference() {
    let cases = [
        (
            0.05,
            [
                0.401374, 0.126750, 0.095062, 0.095062, 0.063375, 0.047531, 0.047531, 0.031687,
                0.117243,
            ],
        ),
        (
            0.1,
            [
                0.802747, 0.253499, 0.190124, 0.190124, 0.126750, 0.095062, 0.095062, 0.063375,
                0.234487,
            ],
        ),
        (
            0.2,
            [1.0, 0.516261, 0.387195, 0.387195, 0.258130, 0.193598, 0.193598, 0.129065, 0.477541],
        ),
    ];
    for ((density, want), scale) in cases.into_iter().zip([1.013996, 2.027992, 4.130085]) {
        let got = Er.densities(&nine_layers(), &keep(density)).unwrap();
        close(&got, &want, 1e-6);
        // Weights over the sum of the first two dimensions, times the kernel.
        assert_abs_diff_eq!(got[7] * 36864.0 / (128.0 * 9.0), scale, epsilon = 1e-6);
    }
}

#[test]
fn erk_counts_of_nine_layers_match_the_reference() {
    let counts = |sparsity| -> Vec<usize> {
        let budget = Budget::sparsity(sparsity).unwrap();
        let kept = Allocator::allocate(&Erk, &nine_layers(), &budget).unwrap();
        kept.iter().map(|(_, k)| *k).collect()
    };
    assert_eq!(counts(0.9), [305, 463, 659, 512, 854, 1244, 1195, 1634, 640]);
    assert_eq!(counts(0.5), [432, 2304, 4608, 512, 6173, 8995, 2048, 11816, 640]);
}

#[test]
fn erk_densities_of_an_mlp_match_the_reference_and_er() {
    let cases = [
        (0.05, [0.038484, 0.111334, 0.918507]),
        (0.1, [0.079568, 0.230189, 1.0]),
        (0.3, [0.244915, 0.708535, 1.0]),
    ];
    for (density, want) in cases {
        let got = Erk.densities(&mlp(), &keep(density)).unwrap();
        close(&got, &want, 1e-6);
        assert_eq!(got, Er.densities(&mlp(), &keep(density)).unwrap());
    }
}

#[test]
fn erk_densities_of_resnet_20_match_the_reference() {
    let got = Erk.densities(&resnet20(), &keep(0.05)).unwrap();
    assert_eq!(got.len(), 22);
    close(&got[..2], &[0.474768, 0.135309], 1e-6);
    close(&got[7..10], &[0.096141, 0.062313, 0.801172], 1e-6);
    close(&got[14..17], &[0.045400, 0.029821, 0.392574], 1e-6);
    assert_abs_diff_eq!(got[21], 0.948587, epsilon = 1e-6);
    assert_abs_diff_eq!(got[15] * 36864.0 / 134.0, 8.203998, epsilon = 1e-6);
    let got = Erk.densities(&resnet20(), &keep(0.2)).unwrap();
    let dense: Vec<usize> = (0..22).filter(|&l| got[l] == 1.0).collect();
    assert_eq!(dense, [0, 9, 16, 21]);
    // Weights over the sum of the shape of the largest layers.
    assert_abs_diff_eq!(got[15] * 36864.0 / 134.0, 36.002279, epsilon = 1e-6);
}

#[test]
fn uniform_plus_meets_the_budget_that_the_released_code_misses() {
    let got = UniformPlus::default().densities(&nine_layers(), &keep(0.1)).unwrap();
    assert_eq!(got[0], 1.0);
    close(&got[1..8], &[0.093_879_76; 7], 1e-8);
    assert_abs_diff_eq!(got[8], 0.2, epsilon = 1e-12);
    let got = UniformPlus::default().densities(&nine_layers(), &keep(0.5)).unwrap();
    close(&got[1..], &[0.497_105_49; 8], 1e-8);
}

#[test]
fn uniform_plus_as_released_matches_the_reference_and_misses_the_budget() {
    let released = UniformPlus::default().with_fidelity(Fidelity::Released);
    for (density, others, last, total) in
        [(0.1, 0.092_538_9, 0.2, 0.098678), (0.5, 0.5, 0.5, 0.502878)]
    {
        let got = released.densities(&nine_layers(), &keep(density)).unwrap();
        assert_eq!(got[0], 1.0);
        close(&got[1..8], &[others; 7], 1e-7);
        assert_abs_diff_eq!(got[8], last, epsilon = 1e-12);
        let kept: f64 = got.iter().zip(weights(&nine_layers())).map(|(d, n)| d * n).sum();
        assert_abs_diff_eq!(kept / 75056.0, total, epsilon = 1e-6);
        let kept = released.allocate(&nine_layers(), &keep(density)).unwrap();
        assert_abs_diff_eq!(kept.total() as f64 / 75056.0, total, epsilon = 1e-4);
    }
}

#[test]
fn erk_plus_has_a_dense_last_layer_and_erk_densities_elsewhere() {
    // At 0.1 the last layer is full in ERK too.
    let (erk, plus) = (
        Erk.densities(&nine_layers(), &keep(0.1)).unwrap(),
        ErkPlus::default().densities(&nine_layers(), &keep(0.1)).unwrap(),
    );
    close(&plus, &erk, 1e-12);
    // At 0.05 the others are what ERK gives them at (0.05 N − n) / (N − n).
    let plus = ErkPlus::default().densities(&nine_layers(), &keep(0.05)).unwrap();
    let others = &nine_layers()[..8];
    let rest = (0.05 * 75056.0 - 640.0) / (75056.0 - 640.0);
    close(&plus[..8], &Erk.densities(others, &keep(rest)).unwrap(), 1e-12);
    assert_eq!(plus[8], 1.0);
    let tenth = ErkPlus::new(0.1).unwrap().densities(&nine_layers(), &keep(0.05)).unwrap();
    assert_abs_diff_eq!(tenth[8], 0.1, epsilon = 1e-12);
    assert!(ErkPlus::new(1.1).is_err());
    let tight = ErkPlus::default().allocate(&nine_layers(), &keep(0.005));
    assert!(matches!(tight, Err(Error::Infeasible(_))));
    // The reference's density of the others at 0.1.
    let rest: f64 = (0.1 * 75056.0 - 640.0) / (75056.0 - 640.0);
    assert_abs_diff_eq!(rest, 0.0922597, epsilon = 1e-7);
}

#[test]
fn a_density_of_one_keeps_everything() {
    let budget = keep(1.0);
    for network in [nine_layers(), mlp(), resnet20()] {
        let whole = vec![1.0; network.len()];
        assert_eq!(Er.densities(&network, &budget).unwrap(), whole);
        assert_eq!(Erk.densities(&network, &budget).unwrap(), whole);
        assert_eq!(Uniform.densities(&network, &budget).unwrap(), whole);
        let kept = Allocator::allocate(&Erk, &network, &budget).unwrap();
        assert_eq!(kept.total(), network.iter().map(|l| l.info.numel()).sum::<usize>());
    }
}

#[test]
fn a_depthwise_convolution_is_denser_by_its_shape_and_full_early() {
    // (16 + 1 + 3 + 3) / 144 against (16 + 16 + 3 + 3) / 2304.
    let network = layers(&[&[16, 1, 3, 3], &[16, 16, 3, 3]]);
    let got = Erk.densities(&network, &keep(0.05)).unwrap();
    assert_abs_diff_eq!(got[0] / got[1], (23.0 / 144.0) / (38.0 / 2304.0), epsilon = 1e-9);
    let got = Erk.densities(&network, &keep(0.2)).unwrap();
    assert_eq!(got[0], 1.0);
    assert_abs_diff_eq!(got[1], (0.2 * 2448.0 - 144.0) / 2304.0, epsilon = 1e-12);
}

#[test]
fn er_and_erk_need_two_dimensions() {
    let flat = layers(&[&[4, 4], &[4]]);
    assert!(Erk.densities(&flat, &keep(0.5)).unwrap_err().to_string().contains("`layer1`"));
    assert!(Er.densities(&flat, &keep(0.5)).is_err());
}

#[test]
fn uniform_plus_says_when_the_dense_ends_alone_exceed_the_budget() {
    let e = UniformPlus::default().densities(&nine_layers(), &keep(0.005)).unwrap_err();
    assert!(matches!(e, Error::Infeasible(_)), "{e}");
}

#[test]
fn a_layer_under_the_cap_of_the_budget_is_lifted_to_it() {
    let budget = Budget::sparsity(0.95).unwrap().with_max_layer_sparsity(0.97).unwrap();
    let got = Erk.densities(&nine_layers(), &budget).unwrap();
    let kept: f64 = nine_layers().iter().zip(&got).map(|(l, d)| l.info.numel() as f64 * d).sum();
    assert_abs_diff_eq!(kept, 0.05 * 75056.0, epsilon = 1e-6);
    assert!(got.iter().all(|d| *d > 0.03 - 1e-4));
    // Those that stay above keep the proportions of ERK: sums of shapes 25 and 38.
    assert_abs_diff_eq!(got[0] * 432.0 / 25.0, got[1] * 2304.0 / 38.0, epsilon = 1e-9);
}

fn arb_network() -> impl Strategy<Value = Vec<ScoredLayer>> {
    let linear = (1usize..40, 1usize..40).prop_map(|(o, i)| vec![o, i]);
    let conv = (1usize..20, 1usize..20, 1usize..4).prop_map(|(o, i, k)| vec![o, i, k, k]);
    vec(prop_oneof![linear, conv], 1..12)
        .prop_map(|shapes| layers(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>()))
}

fn weights(layers: &[ScoredLayer]) -> Vec<f64> {
    layers.iter().map(|l| l.info.numel() as f64).collect()
}

proptest! {
    #[test]
    fn counts_are_within_one_and_a_bit_of_the_densities(
        network in arb_network(), sparsity in 0.0f64..0.9,
    ) {
        let budget = Budget::sparsity(sparsity).unwrap().with_min_keep(0);
        for (kept, densities) in [
            (Allocator::allocate(&Erk, &network, &budget), Erk.densities(&network, &budget)),
            (Allocator::allocate(&Er, &network, &budget), Er.densities(&network, &budget)),
            (
                Allocator::allocate(&Uniform, &network, &budget),
                Uniform.densities(&network, &budget),
            ),
        ] {
            let (kept, densities) = (kept.unwrap(), densities.unwrap());
            for (((_, &k), n), d) in kept.iter().zip(weights(&network)).zip(densities) {
                // The budget itself is rounded to a whole weight, hence the second weight.
                prop_assert!((k as f64 - d * n).abs() < 2.0);
            }
        }
    }

    #[test]
    fn erdos_renyi_densities_obey_their_laws(
        network in arb_network(), a in 0.02f64..1.0, b in 0.02f64..1.0,
    ) {
        let (low, high) = (keep(a.min(b)), keep(a.max(b)));
        let (low, high) = (low.with_min_keep(0), high.with_min_keep(0));
        let n = weights(&network);
        let total: f64 = n.iter().sum();
        let sparse = Erk.densities(&network, &low).unwrap();
        let dense = Erk.densities(&network, &high).unwrap();
        let kept: f64 = sparse.iter().zip(&n).map(|(d, n)| d * n).sum();
        prop_assert!((kept - low.density() * total).abs() < 1e-9 * total);
        for l in 0..n.len() {
            prop_assert!(sparse[l] > 0.0 && sparse[l] <= 1.0);
            // More budget never means less for a layer, and full layers stay full.
            prop_assert!(dense[l] >= sparse[l] - 1e-12);
            prop_assert!(sparse[l] < 1.0 || dense[l] == 1.0);
        }
        // Where no bound binds, kept weights are proportional to the sum of the shape.
        let scale: Vec<f64> = (0..n.len())
            .filter(|&l| {
                let least = low.min_keep(network[l].info.numel()) as f64;
                sparse[l] < 1.0 - 1e-9 && sparse[l] * n[l] > least + 1e-6
            })
            .map(|l| sparse[l] * n[l] / network[l].info.shape.iter().sum::<usize>() as f64)
            .collect();
        prop_assert!(scale.windows(2).all(|w| (w[0] - w[1]).abs() < 1e-9 * w[0]));
    }

    #[test]
    fn the_order_of_layers_does_not_matter_to_densities(
        network in arb_network(), density in 0.02f64..1.0,
    ) {
        let mut reversed = network.clone();
        reversed.reverse();
        let forward = Erk.densities(&network, &keep(density)).unwrap();
        let backward = Erk.densities(&reversed, &keep(density)).unwrap();
        for (f, b) in forward.iter().zip(backward.iter().rev()) {
            prop_assert!((f - b).abs() < 1e-12);
        }
    }
}
