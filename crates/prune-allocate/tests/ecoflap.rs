//! ECoFLaP's water-fill against reference values, and its laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{Aggregate, Ecoflap, Fidelity, Granularity};
use prune_core::{Allocator, Budget, Error, LayerInfo, ScoredLayer};

fn block(b: usize, size: usize, score: f64) -> ScoredLayer {
    ScoredLayer { info: LayerInfo::linear(format!("layers.{b}.fc"), size, 1), score }
}

fn blocks(sizes: &[usize], scores: &[f64]) -> Vec<ScoredLayer> {
    sizes.iter().zip(scores).enumerate().map(|(b, (&n, &s))| block(b, n, s)).collect()
}

fn counts(ecoflap: Ecoflap, layers: &[ScoredLayer], budget: &Budget) -> Vec<usize> {
    ecoflap.allocate(layers, budget).unwrap().iter().map(|(_, k)| *k).collect()
}

/// Scores, sizes, budget, largest sparsity, counts of the released code and exact ones.
type Case = (Vec<f64>, Vec<usize>, usize, f64, Vec<usize>, Vec<usize>);

#[test]
fn counts_match_the_reference_in_both_modes() {
    let cases: [Case; 6] = [
        (
            vec![4.0, 3.0, 2.0, 1.0],
            vec![1000; 4],
            2000,
            0.6,
            vec![560, 520, 480, 440],
            vec![560, 520, 480, 440],
        ),
        (
            vec![10.0, 1.0, 1.0, 1.0],
            vec![1000; 4],
            2000,
            0.6,
            vec![709, 431, 431, 431],
            vec![707, 431, 431, 431],
        ),
        (
            vec![10.0, 1.0, 1.0, 1.0],
            vec![1000, 2000, 3000, 4000],
            5000,
            0.6,
            vec![1000, 934, 1334, 1736],
            vec![1000, 934, 1333, 1733],
        ),
        (vec![5.0, 3.0, 1.0], vec![100; 3], 150, 0.6, vec![58, 50, 44], vec![57, 50, 43]),
        (vec![1.0; 3], vec![7, 11, 13], 15, 0.6, vec![4, 6, 9], vec![4, 5, 6]),
        (vec![0.9, 0.05, 0.05], vec![100; 3], 210, 0.4, vec![88, 62, 62], vec![87, 62, 61]),
    ];
    for (scores, sizes, keep, most, released, exact) in cases {
        let layers = blocks(&sizes, &scores);
        let total: usize = sizes.iter().sum();
        let budget = Budget::sparsity((total - keep) as f64 / total as f64).unwrap();
        let ecoflap = Ecoflap::default().with_max_sparsity(most).unwrap();
        assert_eq!(counts(ecoflap.with_fidelity(Fidelity::Released), &layers, &budget), released);
        assert_eq!(counts(ecoflap, &layers, &budget), exact);
    }
}

#[test]
fn the_layers_of_a_block_share_its_density() {
    let layer =
        |name: &str, size, score| ScoredLayer { info: LayerInfo::linear(name, size, 1), score };
    let layers = [
        layer("layers.0.q", 1000, 1.0),
        layer("layers.1.q", 1000, 2.0),
        layer("layers.0.up", 3000, 5.0),
        layer("layers.1.up", 3000, 2.0),
    ];
    let budget = Budget::sparsity(0.5).unwrap();
    let sum = counts(Ecoflap::default(), &layers, &budget);
    // Floors of 1600 a block; 800 above them are shared 6 to 4.
    assert_eq!(sum, [520, 480, 1560, 1440]);
    let average = Ecoflap::default().with_aggregate(Aggregate::Average);
    assert_eq!(counts(average, &layers, &budget), sum);
    let by_layer = Ecoflap::default().with_granularity(Granularity::Layer);
    assert_eq!(counts(by_layer, &layers, &budget), [480, 560, 1600, 1360]);
    // By layer the average differs from the sum: 1 : 2 : 5/3 : 2/3.
    let d = by_layer.with_aggregate(Aggregate::Average).densities(&layers, &budget).unwrap();
    let above: Vec<f64> =
        d.iter().zip([1000.0, 1000.0, 3000.0, 3000.0]).map(|(d, n)| d * n - 0.4 * n).collect();
    for (a, share) in above.iter().zip([1.0, 2.0, 5.0 / 3.0, 2.0 / 3.0]) {
        assert_abs_diff_eq!(*a, 800.0 * share / (16.0 / 3.0), epsilon = 1e-9);
    }
}

#[test]
fn dead_blocks_keep_their_floor_and_take_what_others_cannot() {
    let layers = blocks(&[100, 100, 100], &[1.0, 0.0, 0.0]);
    let budget = Budget::sparsity(0.5).unwrap();
    // Floors of 40 and 30 more: the first has room for 60.
    assert_eq!(counts(Ecoflap::default(), &layers, &budget), [70, 40, 40]);
    // Floors of 10, 210 more: 90 fill the first, 120 are shared.
    let wide = Ecoflap::new(0.7).unwrap();
    let dense = Budget::sparsity(0.2).unwrap();
    assert_eq!(counts(wide, &layers, &dense), [100, 70, 70]);
    let dead = blocks(&[100, 100], &[0.0, 0.0]);
    assert_eq!(counts(wide, &dead, &dense), [80, 80]);
    // The released code divides by zero there.
    let e = wide.with_fidelity(Fidelity::Released).allocate(&layers, &dense).unwrap_err();
    assert!(matches!(e, Error::Infeasible(_)), "{e}");
}

#[test]
fn bad_options_and_scores_are_refused() {
    assert!(Ecoflap::new(-0.1).is_err() && Ecoflap::new(f64::NAN).is_err());
    assert!(Ecoflap::default().with_max_sparsity(1.1).is_err());
    let budget = Budget::sparsity(0.5).unwrap();
    for score in [f64::NAN, f64::INFINITY, -1.0] {
        let e = Ecoflap::default().allocate(&blocks(&[9, 9], &[1.0, score]), &budget).unwrap_err();
        assert!(e.to_string().contains("`layers.1.fc`"), "{e}");
    }
    let low = Ecoflap::default().with_max_sparsity(0.4).unwrap();
    let e = low.allocate(&blocks(&[9, 9], &[1.0, 1.0]), &budget).unwrap_err();
    assert!(e.to_string().contains("at least 0.5"), "{e}");
    // The largest finite scores do not overflow.
    let huge = blocks(&[100, 100], &[f64::MAX, f64::MAX]);
    assert_eq!(counts(Ecoflap::default(), &huge, &budget), [50, 50]);
}

proptest! {
    #[test]
    fn the_fill_meets_the_budget_keeps_the_cap_and_follows_the_scores(
        parts in vec((1usize..500, 0.0f64..20.0), 1..12),
        sparsity in 0.0f64..0.9,
        margin in 0.0f64..0.1,
        scale in 1e-3f64..1e3,
    ) {
        let (sizes, scores): (Vec<usize>, Vec<f64>) = parts.into_iter().unzip();
        let layers = blocks(&sizes, &scores);
        let budget = Budget::sparsity(sparsity).unwrap().with_min_keep(0);
        let ecoflap = Ecoflap::new(margin).unwrap();
        let got = counts(ecoflap, &layers, &budget);
        let total: usize = sizes.iter().sum();
        prop_assert_eq!(got.iter().sum::<usize>(), budget.keep_total(total));
        for ((&k, &n), layer) in got.iter().zip(&sizes).zip(&layers) {
            // Floors are rounded up, and all floors together may be a few weights too many.
            let floor = (n as f64 * (1.0 - sparsity - margin)).floor();
            prop_assert!(k as f64 >= floor - 1.0, "{k} of {n}, {}", layer.score);
        }
        let scaled: Vec<f64> = scores.iter().map(|s| s * scale).collect();
        let a = ecoflap.densities(&layers, &budget).unwrap();
        let b = ecoflap.densities(&blocks(&sizes, &scaled), &budget).unwrap();
        for (a, b) in a.iter().zip(&b) {
            prop_assert!((a - b).abs() < 1e-9);
        }
        let equal = vec![200usize; sizes.len()];
        let d = ecoflap.densities(&blocks(&equal, &scores), &budget).unwrap();
        for a in 0..d.len() {
            for b in 0..d.len() {
                prop_assert!(scores[a] < scores[b] || d[a] >= d[b] - 1e-9);
            }
        }
    }

    #[test]
    fn no_margin_is_uniform_and_full_margin_is_proportional(
        scores in vec(0.1f64..1.0, 2..8), sparsity in 0.3f64..0.9,
    ) {
        let sizes = vec![10_000usize; scores.len()];
        let layers = blocks(&sizes, &scores);
        let budget = Budget::sparsity(sparsity).unwrap().with_max_layer_sparsity(1.0).unwrap();
        for d in Ecoflap::new(0.0).unwrap().densities(&layers, &budget).unwrap() {
            // Floors are whole weights.
            prop_assert!((1.0 - d - sparsity).abs() < 2e-4);
        }
        let all = Ecoflap::default().with_max_sparsity(1.0).unwrap();
        let d = all.densities(&layers, &budget).unwrap();
        if d.iter().all(|d| *d < 1.0) {
            for (d, s) in d.iter().zip(&scores) {
                let share = s / scores.iter().sum::<f64>() * scores.len() as f64;
                prop_assert!((d - (1.0 - sparsity) * share).abs() < 1e-9);
            }
        }
    }
}
