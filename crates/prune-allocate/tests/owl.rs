//! OWL against reference values, and the laws of its map.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use ndarray::{Array2, array};
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{Fidelity, OutlierDistribution, Owl, owl_n_m};
use prune_core::{Allocator, Budget, ColumnStats, Error, LayerId, LayerInfo, ScoredLayer};

fn stats(inputs: &Array2<f32>) -> ColumnStats {
    let mut stats = ColumnStats::new(inputs.ncols());
    stats.update("x", inputs.view()).unwrap();
    stats
}

/// D of one block.
fn percent(multiplier: f64, block: &[(Array2<f32>, ColumnStats)]) -> f64 {
    let name = |i: usize| LayerId::new(format!("layer{i}"));
    let mut mean = OutlierDistribution::new(multiplier).unwrap();
    for (i, (weight, inputs)) in block.iter().enumerate() {
        mean.observe(&name(i), weight.view(), inputs).unwrap();
    }
    let mut count = mean.second_pass().unwrap();
    for (i, (weight, inputs)) in block.iter().enumerate() {
        count.observe(&name(i), weight.view(), inputs).unwrap();
    }
    count.percent().unwrap()
}

fn block(block: usize, size: usize, score: f64) -> ScoredLayer {
    ScoredLayer { info: LayerInfo::linear(format!("layers.{block}.fc"), size, 1), score }
}

/// The five blocks of the reference map, of 100, 100, 300, 300 and 200 weights.
fn five_blocks(scale: usize) -> Vec<ScoredLayer> {
    let sizes = [100, 100, 300, 300, 200];
    let scores = [2.0, 1.0, 0.5, 0.25, 3.0];
    (0..5).map(|b| block(b, sizes[b] * scale, scores[b])).collect()
}

fn sparsities(owl: Owl, layers: &[ScoredLayer], sparsity: f64) -> Vec<f64> {
    let budget = Budget::sparsity(sparsity).unwrap();
    owl.densities(layers, &budget).unwrap().iter().map(|d| 1.0 - d).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert_abs_diff_eq!(*g, *w, epsilon = 1e-6);
    }
}

#[test]
fn the_outliers_of_a_tiny_layer_match_the_reference() {
    let weight = array![[1.0, -2.0, 0.5], [0.25, 4.0, -1.0]];
    let inputs = stats(&array![[1.0, 0.0, 2.0], [2.0, 1.0, -1.0], [0.0, 3.0, 1.0]]);
    let mut mean = OutlierDistribution::new(1.0).unwrap();
    mean.observe(&LayerId::new("a"), weight.view(), &inputs).unwrap();
    let threshold = mean.second_pass().unwrap().threshold();
    assert_abs_diff_eq!(threshold, 4.240498, epsilon = 1e-6);
    let block = [(weight, inputs)];
    assert_abs_diff_eq!(percent(1.0, &block), 33.333333, epsilon = 1e-6);
    assert_abs_diff_eq!(percent(2.0, &block), 16.666667, epsilon = 1e-6);
}

/// Four blocks of two 6x5 layers each, over 7 tokens with an outlier channel that grows.
fn four_blocks() -> Vec<Vec<(Array2<f32>, ColumnStats)>> {
    let weight = |l: f64| {
        Array2::from_shape_fn((6, 5), |(i, j)| {
            let (i, j) = (i as f64, j as f64);
            (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2 + l).sin() as f32
        })
    };
    let inputs = |l: f64| {
        stats(&Array2::from_shape_fn((7, 5), |(t, j)| {
            let outlier = if j == 2 { 1.0 + 3.0 * (l + 1.0) } else { 1.0 };
            let (t, j) = (t as f64, j as f64);
            ((0.31 * t * t + 0.77 * t * j + 0.45 * j + l).cos() * outlier) as f32
        }))
    };
    let block = |l: usize| {
        let l = l as f64;
        vec![(weight(l), inputs(l)), (weight(l + 10.0), inputs(l + 0.5))]
    };
    (0..4).map(block).collect()
}

#[test]
fn the_outliers_of_four_blocks_and_their_sparsities_match_the_reference() {
    let cases = [
        (3.0, [8.333333, 11.666667, 10.0, 15.0], [0.77, 0.69, 0.73, 0.61]),
        (5.0, [0.0, 1.666667, 6.666667, 6.666667], [0.79, 0.75, 0.63, 0.63]),
    ];
    for (multiplier, scores, want) in cases {
        let got: Vec<f64> = four_blocks().iter().map(|b| percent(multiplier, b)).collect();
        close(&got, &scores);
        let layers: Vec<_> = (0..4).map(|b| block(b, 60, got[b])).collect();
        close(&sparsities(Owl::default(), &layers, 0.7), &want);
    }
}

#[test]
fn the_released_map_matches_the_reference_and_misses_the_budget() {
    let released = Owl::default().with_fidelity(Fidelity::Released);
    let got = sparsities(released, &five_blocks(1), 0.7);
    close(&got, &[0.662182, 0.720364, 0.749455, 0.764, 0.604]);
    let kept = released.allocate(&five_blocks(1000), &Budget::sparsity(0.7).unwrap()).unwrap();
    assert_abs_diff_eq!(1.0 - kept.total() as f64 / 1e6, 0.713091, epsilon = 1e-5);
}

#[test]
fn the_exact_map_matches_the_reference_and_meets_the_budget() {
    let got = sparsities(Owl::default(), &five_blocks(1), 0.7);
    close(&got, &[0.649091, 0.707273, 0.736364, 0.750909, 0.590909]);
    let kept = Owl::default().allocate(&five_blocks(1), &Budget::sparsity(0.7).unwrap()).unwrap();
    assert_eq!(kept.total(), 300);
}

#[test]
fn blocks_of_equal_score_are_pruned_uniformly() {
    let layers: Vec<_> = (0..3).map(|b| block(b, 10 * (b + 1), 4.0)).collect();
    close(&sparsities(Owl::default(), &layers, 0.7), &[0.7; 3]);
    close(&sparsities(Owl::default().with_fidelity(Fidelity::Released), &layers, 0.7), &[0.7; 3]);
    assert_eq!(owl_n_m(&[4.0; 3], 2, 4, 2.0).unwrap(), [2; 3]);
}

#[test]
fn densities_beyond_their_range_stay_there_and_the_others_make_up_for_it() {
    // Uncapped: 0.96 + 0.08 ± 0.16 / 2 would keep more than everything of block 1.
    let layers = [block(0, 1000, 0.0), block(1, 1000, 1.0)];
    let got = sparsities(Owl::default(), &layers, 0.04);
    close(&got, &[0.08, 0.0]);
    // And 1 % of a block is kept at the least.
    let got = sparsities(Owl::default(), &layers, 0.96);
    close(&got, &[0.99, 0.93]);
}

#[test]
fn the_released_map_turns_a_sparsity_below_zero_into_one_percent() {
    let layers = [block(0, 1000, 0.0), block(1, 1000, 1.0)];
    let got = sparsities(Owl::default().with_fidelity(Fidelity::Released), &layers, 0.04);
    close(&got, &[0.12, 0.01]);
}

#[test]
fn all_layers_of_a_block_share_its_density() {
    let layer =
        |name: &str, rows, score| ScoredLayer { info: LayerInfo::linear(name, rows, 10), score };
    let layers = [
        layer("layers.0.q", 40, 1.0),
        layer("layers.1.q", 40, 3.0),
        layer("layers.0.up", 90, 1.0),
        layer("layers.1.up", 90, 3.0),
        layer("head", 30, 2.0),
        layer("tail", 30, 1.0),
    ];
    let d = Owl::default().densities(&layers, &Budget::sparsity(0.5).unwrap()).unwrap();
    assert_eq!((d[0], d[1]), (d[2], d[3]));
    assert_abs_diff_eq!(d[1] - d[0], 0.16, epsilon = 1e-12);
    assert_abs_diff_eq!(d[4] - d[5], 0.08, epsilon = 1e-12);
}

#[test]
fn scores_that_are_no_numbers_or_differ_within_a_block_are_refused() {
    let budget = Budget::sparsity(0.5).unwrap();
    for score in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let layers = [block(0, 10, 1.0), block(1, 10, score)];
        match Owl::default().allocate(&layers, &budget).unwrap_err() {
            Error::NotFinite { what, .. } => assert_eq!(what, "score of `layers.1.fc`"),
            other => panic!("{other}"),
        }
        assert!(matches!(
            owl_n_m(&[1.0, score], 2, 4, 2.0),
            Err(Error::NotFinite { index: 1, .. })
        ));
    }
    let mut layers = [block(0, 10, 1.0), block(0, 10, 2.0)];
    layers[1].info.id = LayerId::new("layers.0.gate");
    let e = Owl::default().allocate(&layers, &budget).unwrap_err().to_string();
    assert_eq!(
        e,
        "score of `layers.0.gate` is 2; expected 1, as `layers.0.fc` of the same block has"
    );
    // The largest finite scores do not overflow.
    let layers = [block(0, 10, f64::MAX), block(1, 10, f64::MIN)];
    assert!(Owl::default().allocate(&layers, &budget).is_ok());
}

#[test]
fn options_out_of_range_are_refused() {
    assert!(Owl::new(-0.1).is_err() && Owl::new(f64::NAN).is_err() && Owl::new(0.6).is_err());
    assert!(OutlierDistribution::new(0.0).is_err());
    assert!(OutlierDistribution::new(f64::INFINITY).is_err());
    assert!(owl_n_m(&[1.0], 4, 4, 2.0).is_err() && owl_n_m(&[1.0], 0, 4, 2.0).is_err());
    assert!(owl_n_m(&[1.0], 2, 17, 2.0).is_err() && owl_n_m(&[1.0], 2, 4, -1.0).is_err());
}

#[test]
fn the_n_m_form_matches_the_reference_and_keeps_a_weight() {
    assert_eq!(owl_n_m(&[2.0, 1.0, 0.5, 0.25, 3.0], 4, 8, 2.0).unwrap(), [4, 4, 5, 5, 3]);
    assert_eq!(owl_n_m(&[0.0, 1.0], 3, 4, 10.0).unwrap(), [3, 0]);
    assert!(owl_n_m(&[], 2, 4, 2.0).unwrap().is_empty());
}

#[test]
fn weights_and_statistics_that_do_not_fit_are_refused_and_leave_no_trace() {
    let layer = LayerId::new("layers.0.fc");
    let inputs = stats(&array![[1.0, 2.0]]);
    let fresh = OutlierDistribution::new(5.0).unwrap();
    let mut mean = fresh.clone();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        match mean.observe(&layer, array![[1.0, 2.0], [bad, 1.0]].view(), &inputs).unwrap_err() {
            Error::NotFinite { what, index, .. } => {
                assert_eq!((what.as_str(), index), ("layers.0.fc.weight", 2));
            }
            other => panic!("{other}"),
        }
    }
    let wide = array![[1.0, 2.0, 3.0]];
    assert!(matches!(mean.observe(&layer, wide.view(), &inputs), Err(Error::Shape { .. })));
    let none = ColumnStats::new(3);
    assert!(matches!(mean.observe(&layer, wide.view(), &none), Err(Error::NoStatistics { .. })));
    assert_eq!(mean, fresh);
    assert!(fresh.second_pass().is_err());

    mean.observe(&layer, array![[1.0, 2.0]].view(), &inputs).unwrap();
    let mut count = mean.second_pass().unwrap();
    assert!(count.observe(&layer, array![[1.0, f32::NAN]].view(), &inputs).is_err());
    assert!(matches!(count.percent(), Err(Error::Shape { .. })));
}

#[test]
fn a_block_of_zeros_has_no_outliers() {
    assert_eq!(percent(5.0, &[(Array2::zeros((4, 2)), stats(&array![[1.0, 2.0]]))]), 0.0);
}

#[test]
fn scaling_all_inputs_changes_nothing_and_scaling_one_layer_does() {
    let blocks = four_blocks();
    let scaled = |factors: [f32; 2]| -> Vec<(Array2<f32>, ColumnStats)> {
        let parts = blocks[1].iter().zip(factors);
        parts.map(|((w, x), f)| (w.mapv(|v| v * f), x.clone())).collect()
    };
    let plain = percent(3.0, &scaled([1.0, 1.0]));
    assert_eq!(percent(3.0, &scaled([4.0, 4.0])), plain);
    assert_ne!(percent(3.0, &scaled([16.0, 1.0])), plain);
}

#[test]
fn a_transposed_view_counts_the_same() {
    let (weight, inputs) = four_blocks().remove(2).remove(0);
    let stored = weight.t().as_standard_layout().into_owned();
    let layer = LayerId::new("a");
    let mut mean = OutlierDistribution::new(3.0).unwrap();
    mean.observe(&layer, stored.t(), &inputs).unwrap();
    let mut count = mean.second_pass().unwrap();
    count.observe(&layer, stored.t(), &inputs).unwrap();
    assert_eq!(count.percent().unwrap(), percent(3.0, &[(weight, inputs)]));
}

proptest! {
    #[test]
    fn the_map_meets_the_budget_spans_two_lambda_and_follows_the_scores(
        blocks in vec((1usize..500, 0.0f64..20.0), 2..12),
        sparsity in 0.0f64..0.98,
        lambda in 0.0f64..0.3,
    ) {
        let layers: Vec<_> =
            blocks.iter().enumerate().map(|(b, &(n, d))| block(b, n, d)).collect();
        let budget = Budget::sparsity(sparsity).unwrap();
        let d = Owl::new(lambda).unwrap().densities(&layers, &budget).unwrap();
        let total: f64 = blocks.iter().map(|b| b.0 as f64).sum();
        let kept: f64 = blocks.iter().zip(&d).map(|(b, d)| b.0 as f64 * d).sum();
        prop_assert!((kept - budget.density() * total).abs() < 1e-9 * total);
        for a in 0..d.len() {
            prop_assert!((0.01 - 1e-12..=1.0).contains(&d[a]));
            for b in 0..d.len() {
                prop_assert!(blocks[a].1 <= blocks[b].1 || d[a] >= d[b] - 1e-12);
            }
        }
        let least = d.iter().copied().fold(f64::INFINITY, f64::min);
        let most = d.iter().copied().fold(0.0, f64::max);
        let span = if blocks.iter().all(|b| b.1 == blocks[0].1) { 0.0 } else { 2.0 * lambda };
        prop_assert!(most - least <= span + 1e-9);
        if least > 0.01 + 1e-9 && most < 1.0 - 1e-9 {
            prop_assert!((most - least - span).abs() < 1e-9);
        }
    }

    #[test]
    fn n_m_counts_stay_within_the_group(
        scores in vec(0.0f64..20.0, 1..12), m in 2usize..17, lambda in 0.0f64..20.0,
    ) {
        let remove = m / 2;
        let removed = owl_n_m(&scores, remove, m, lambda).unwrap();
        prop_assert!(removed.iter().all(|r| *r < m));
        for a in 0..scores.len() {
            for b in 0..scores.len() {
                prop_assert!(scores[a] <= scores[b] || removed[a] <= removed[b]);
            }
        }
    }
}
