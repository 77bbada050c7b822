//! OWL against reference values, and the laws of its map.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{Fidelity, Owl, owl_n_m};
use prune_core::{Allocator, Budget, Error, LayerId, LayerInfo, ScoredLayer};

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
fn the_sparsities_of_measured_blocks_match_the_reference() {
    let cases = [
        ([100.0 / 12.0, 70.0 / 6.0, 10.0, 15.0], [0.77, 0.69, 0.73, 0.61]),
        ([0.0, 10.0 / 6.0, 40.0 / 6.0, 40.0 / 6.0], [0.79, 0.75, 0.63, 0.63]),
    ];
    for (scores, want) in cases {
        let layers: Vec<_> = (0..4).map(|b| block(b, 60, scores[b])).collect();
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
    assert!(owl_n_m(&[1.0], 4, 4, 2.0).is_err() && owl_n_m(&[1.0], 0, 4, 2.0).is_err());
    assert!(owl_n_m(&[1.0], 2, 17, 2.0).is_err() && owl_n_m(&[1.0], 2, 4, -1.0).is_err());
}

#[test]
fn the_n_m_form_matches_the_reference_and_keeps_a_weight() {
    assert_eq!(owl_n_m(&[2.0, 1.0, 0.5, 0.25, 3.0], 4, 8, 2.0).unwrap(), [4, 4, 5, 5, 3]);
    assert_eq!(owl_n_m(&[0.0, 1.0], 3, 4, 10.0).unwrap(), [3, 0]);
    // A half goes to the even number: ±0.5 to 0, ±1.5 to ±2.
    assert_eq!(owl_n_m(&[0.0, 1.0], 2, 4, 1.0).unwrap(), [2, 2]);
    assert_eq!(owl_n_m(&[0.0, 1.0], 4, 8, 3.0).unwrap(), [6, 2]);
    assert!(owl_n_m(&[], 2, 4, 2.0).unwrap().is_empty());
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
