//! The map of AlphaPruning and FARMS against reference values, and its laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{AlphaPruning, Fidelity, Granularity};
use prune_core::{Allocator, Budget, Error, LayerInfo, ScoredLayer};

fn layer(name: String, size: usize, score: f64) -> ScoredLayer {
    ScoredLayer { info: LayerInfo::linear(name, size, 1), score }
}

/// Layers in no block, so that each stands for itself.
fn separate(sizes: &[usize], alphas: &[f64]) -> Vec<ScoredLayer> {
    let parts = sizes.iter().zip(alphas).enumerate();
    parts.map(|(l, (&n, &a))| layer(format!("fc{l}"), n, a)).collect()
}

fn sparsities(map: AlphaPruning, layers: &[ScoredLayer], sparsity: f64) -> Vec<f64> {
    let budget = Budget::sparsity(sparsity).unwrap();
    map.densities(layers, &budget).unwrap().iter().map(|d| 1.0 - d).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert_abs_diff_eq!(*g, *w, epsilon = 1e-6);
    }
}

fn map(epsilon: f64) -> AlphaPruning {
    AlphaPruning::new(epsilon).unwrap()
}

#[test]
fn sparsities_of_four_layers_match_the_reference() {
    let sizes = [100, 200, 300, 400];
    let layers = separate(&sizes, &[2.0, 3.0, 4.0, 6.0]);
    for (sparsity, epsilon, want) in [
        (0.5, 0.2, [0.384615, 0.432692, 0.480769, 0.576923]),
        (0.7, 0.3, [0.462264, 0.561321, 0.660377, 0.858491]),
        (0.8, 0.3, [0.528302, 0.641509, 0.754717, 0.981132]),
    ] {
        let got = sparsities(map(epsilon), &layers, sparsity);
        close(&got, &want);
        let removed: f64 = got.iter().zip(sizes).map(|(s, n)| s * n as f64).sum();
        assert_abs_diff_eq!(removed, 1000.0 * sparsity, epsilon = 1e-9);
    }
}

/// Three blocks of four layers each, the last larger than the others.
fn three_blocks() -> Vec<ScoredLayer> {
    let alphas = [[3.10, 2.70, 4.00, 3.20], [2.40, 2.60, 3.00, 2.80], [4.60, 4.10, 5.20, 4.50]];
    let sizes = [4096, 4096, 4096, 11008];
    let of_block =
        |b: usize| (0..4).map(move |l| layer(format!("layers.{b}.fc{l}"), sizes[l], alphas[b][l]));
    (0..3).flat_map(of_block).collect()
}

#[test]
fn sparsities_by_block_and_by_layer_match_the_reference() {
    let by_block = sparsities(map(0.3), &three_blocks(), 0.7);
    for (b, want) in [0.638462, 0.511538, 0.95].into_iter().enumerate() {
        close(&by_block[4 * b..4 * b + 4], &[want; 4]);
    }
    let by_layer = map(0.3).with_granularity(Granularity::Layer);
    close(
        &sparsities(by_layer, &three_blocks(), 0.7),
        &[
            0.634176, 0.570225, 0.778064, 0.650163, 0.522262, 0.554237, 0.618188, 0.586213,
            0.873990, 0.794052, 0.969916, 0.858002,
        ],
    );
}

#[test]
fn sparsities_beyond_one_saturate_and_the_budget_holds() {
    let layers = separate(&[1000; 4], &[2.0, 2.0, 2.0, 6.0]);
    let budget = Budget::sparsity(0.8).unwrap().with_max_layer_sparsity(1.0).unwrap();
    let got = map(0.3).densities(&layers, &budget).unwrap();
    close(&got, &[1.0 - 0.733333, 1.0 - 0.733333, 1.0 - 0.733333, 0.0]);
    // A layer loses 99 % at most unless the budget says otherwise.
    close(&sparsities(map(0.3), &layers, 0.8), &[2.21 / 3.0, 2.21 / 3.0, 2.21 / 3.0, 0.99]);
}

#[test]
fn the_released_codes_miss_the_budget_where_a_sparsity_exceeds_one() {
    let layers = separate(&[1_000_000; 4], &[2.0, 2.0, 2.0, 6.0]);
    let released = map(0.3).with_fidelity(Fidelity::Released);
    close(&sparsities(released, &layers, 0.8), &[0.658824, 0.658824, 0.658824, 1.0]);
    let farms = released.farms();
    let got = sparsities(farms, &layers, 0.8);
    close(&got, &[0.658824, 0.658824, 0.658824, 0.998]);
    assert_abs_diff_eq!(got.iter().sum::<f64>() / 4.0, 0.743618, epsilon = 1e-6);
    let kept = farms.allocate(&layers, &Budget::sparsity(0.8).unwrap()).unwrap();
    assert_abs_diff_eq!(1.0 - kept.total() as f64 / 4e6, 0.743618, epsilon = 1e-6);
    // At 0.7 the clamp is another.
    let steep = separate(&[1000; 4], &[2.0, 2.0, 2.0, 9.0]);
    let farms = map(0.6).farms().with_fidelity(Fidelity::Released);
    assert_abs_diff_eq!(sparsities(farms, &steep, 0.7)[3], 0.99999, epsilon = 1e-12);
}

#[test]
fn equal_exponents_are_uniform_in_both_modes() {
    let layers = separate(&[10, 20, 30], &[3.3; 3]);
    for map in [map(0.3), map(0.3).with_fidelity(Fidelity::Released)] {
        close(&sparsities(map, &layers, 0.7), &[0.7; 3]);
    }
}

#[test]
fn bad_options_and_exponents_are_refused() {
    for epsilon in [-0.1, 1.0, f64::NAN] {
        assert!(matches!(AlphaPruning::new(epsilon), Err(Error::OutOfRange { .. })));
    }
    let budget = Budget::sparsity(0.5).unwrap();
    for alpha in [f64::NAN, f64::INFINITY] {
        let layers = separate(&[10, 10], &[2.0, alpha]);
        let e = map(0.3).allocate(&layers, &budget).unwrap_err();
        assert!(e.to_string().contains("`fc1`"), "{e}");
    }
}

#[test]
fn a_layer_without_an_exponent_gets_its_blocks_or_the_budgets_sparsity() {
    let blocks = three_blocks();
    let mut infos: Vec<LayerInfo> = blocks.iter().map(|l| l.info.clone()).collect();
    infos.push(LayerInfo::linear("head", 5000, 1));
    let mut alphas: Vec<Option<f64>> = blocks.iter().map(|l| Some(l.score)).collect();
    alphas[1] = None;
    alphas.push(None);
    for granularity in [Granularity::Block, Granularity::Layer] {
        let map = map(0.3).with_granularity(granularity);
        let all = map.complete(&infos, &alphas).unwrap();
        assert_abs_diff_eq!(all[1], (3.1 + 4.0 + 3.2) / 3.0, epsilon = 1e-12);
        let scored: Vec<ScoredLayer> = infos
            .iter()
            .zip(&all)
            .map(|(info, &score)| ScoredLayer { info: info.clone(), score })
            .collect();
        assert_abs_diff_eq!(sparsities(map, &scored, 0.7)[12], 0.7, epsilon = 1e-9);
    }
    let none = map(0.3).complete(&infos[..2], &[None, None]);
    assert!(matches!(none, Err(Error::Infeasible(_))));
    let short = map(0.3).complete(&infos, &[None]);
    assert!(matches!(short, Err(Error::Shape { .. })));
    let nan = map(0.3).complete(&infos[..1], &[Some(f64::NAN)]);
    assert!(matches!(nan, Err(Error::NotFinite { .. })));
}

proptest! {
    #[test]
    fn the_map_meets_the_budget_follows_the_exponents_and_is_affine(
        parts in vec((1usize..500, 1.5f64..9.0), 2..12),
        sparsity in 0.0f64..0.98,
        epsilon in 0.0f64..0.9,
        scale in 0.1f64..10.0,
        shift in -5.0f64..5.0,
    ) {
        let (sizes, alphas): (Vec<usize>, Vec<f64>) = parts.into_iter().unzip();
        let layers = separate(&sizes, &alphas);
        let got = sparsities(map(epsilon), &layers, sparsity);
        let total: f64 = sizes.iter().map(|&n| n as f64).sum();
        let removed: f64 = got.iter().zip(&sizes).map(|(s, &n)| s * n as f64).sum();
        prop_assert!((removed - sparsity * total).abs() < 1e-9 * total);
        for a in 0..got.len() {
            prop_assert!((-1e-12..=0.99 + 1e-12).contains(&got[a]));
            for b in 0..got.len() {
                prop_assert!(alphas[a] < alphas[b] || got[a] >= got[b] - 1e-12);
            }
        }
        let moved: Vec<f64> = alphas.iter().map(|a| scale * a + shift).collect();
        for (a, b) in got.iter().zip(sparsities(map(epsilon), &separate(&sizes, &moved), sparsity)) {
            prop_assert!((a - b).abs() < 1e-9);
        }
        let least = got.iter().copied().fold(f64::INFINITY, f64::min);
        let most = got.iter().copied().fold(0.0, f64::max);
        let differ = alphas.iter().any(|a| *a != alphas[0]);
        if most < 0.99 - 1e-9 && least > 0.0 && differ {
            prop_assert!((most / least - (1.0 + epsilon) / (1.0 - epsilon)).abs() < 1e-6);
        }
        for s in sparsities(map(0.0), &layers, sparsity) {
            prop_assert!((s - sparsity).abs() < 1e-12);
        }
    }
}
