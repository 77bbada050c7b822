//! LPViT's allocation against a numpy reference and against exhaustive search.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::prelude::*;
use prune_allocate::{
    BlockCurve, BlockSolver, Lpvit, ReleasedBisection, ReleasedLayer, balanced_beta,
};
use prune_core::LayerId;

/// A weight of `8 x cols` and its gradient, in 2 x 2 blocks in the order of mean `|w g|`: for each
/// block the four `(w, g)`.
fn ranked(
    cols: usize,
    weight: impl Fn(f64, f64) -> f64,
    gradient: impl Fn(f64, f64) -> f64,
) -> Vec<[(f64, f64); 4]> {
    let mut blocks: Vec<[(f64, f64); 4]> = (0..4 * cols / 2)
        .map(|b| {
            let (i, j) = (b / (cols / 2) * 2, b % (cols / 2) * 2);
            [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(r, c)| {
                let (i, j) = ((i + r) as f64, (j + c) as f64);
                (weight(i, j), gradient(i, j))
            })
        })
        .collect();
    let score = |b: &[(f64, f64); 4]| b.iter().map(|(w, g)| (w * g).abs()).sum::<f64>();
    blocks.sort_by(|a, b| score(a).total_cmp(&score(b)));
    blocks
}

/// The reference's two layers.
fn layers() -> [Vec<[(f64, f64); 4]>; 2] {
    let sine = |i: f64, j: f64| (7.0 * i + 3.0 * j).sin();
    [
        ranked(8, sine, |i, j| 0.1 * (i + 2.0 * j).cos()),
        ranked(16, |i, j| 0.5 * sine(i, j), |i, j| 0.2 * (2.0 * i + j + 1.0).sin()),
    ]
}

/// `Σ (w g)²` of the first `k` blocks, a cost of 1 a block that stays.
fn first_order(name: &str, blocks: &[[(f64, f64); 4]]) -> BlockCurve {
    let mut losses = vec![0.0];
    for block in blocks {
        let lost: f64 = block.iter().map(|(w, g)| (w * g).powi(2)).sum();
        losses.push(losses[losses.len() - 1] + lost);
    }
    let costs = (0..=blocks.len() as u64).rev().collect();
    BlockCurve::new(LayerId::new(name), losses, costs).unwrap()
}

fn allocate(solver: BlockSolver, curves: &[BlockCurve], limit: u64) -> (Vec<usize>, f64) {
    let lpvit = Lpvit::new(solver).with_min_keep(0.0).unwrap();
    let removed = lpvit.allocate(curves, limit).unwrap();
    let removed: Vec<usize> = removed.iter().map(|(_, k)| *k).collect();
    let loss = curves.iter().zip(&removed).map(|(c, &k)| c.losses()[k]).sum();
    (removed, loss)
}

#[test]
fn the_exact_allocation_matches_the_reference() {
    let [one, two] = layers();
    let curves = [first_order("one", &one), first_order("two", &two)];
    for (gone, want, loss) in
        [(12, [4, 8], 0.032689128), (24, [9, 15], 0.100921070), (36, [14, 22], 0.242447738)]
    {
        let (removed, found) = allocate(BlockSolver::Exact, &curves, 48 - gone);
        assert_eq!(removed, want);
        assert_abs_diff_eq!(found, loss, epsilon = 1e-9);
    }
    // Whole segments of the hulls go past the target: 26 blocks for 24. Filling up with single
    // blocks stays within it.
    assert_abs_diff_eq!(
        curves[0].losses()[8] + curves[1].losses()[18],
        0.116337406,
        epsilon = 1e-9
    );
    let (removed, loss) = allocate(BlockSolver::Hull, &curves, 24);
    assert_eq!(removed.iter().sum::<usize>(), 24);
    assert!((0.100921069..0.116337406).contains(&loss));
}

#[test]
fn the_released_bisection_ends_where_the_reference_does() {
    let layers = layers().map(|blocks| {
        // The mean of (w g)² and the second-order sum, at every twentieth.
        let weights = (4 * blocks.len()) as f64;
        let curve = (0..=20).map(|d| {
            let fraction = f64::from(d) / 20.0;
            let kept = ((1.0 - fraction) * blocks.len() as f64) as usize;
            let gone = blocks[..blocks.len() - kept].as_flattened();
            let first: f64 = gone.iter().map(|(w, g)| (w * g).powi(2)).sum();
            let signed: f64 = gone.iter().map(|(w, g)| w * g).sum();
            let norm: f64 = gone.iter().map(|(w, _)| w * w).sum();
            (fraction, first / weights + 0.5 * signed * signed + 0.5e-7 * norm)
        });
        // Weights that are not zero: one of each layer is.
        let left = (0..=blocks.len())
            .map(|k| blocks[k..].as_flattened().iter().filter(|(w, _)| *w != 0.0).count() as u64);
        ReleasedLayer { curve: curve.collect(), left: left.collect() }
    });
    let total = 64 + 128;
    let half = ReleasedBisection::default().solve(&layers, total, 0.5).unwrap();
    assert_eq!(half.iterations, 40);
    assert_abs_diff_eq!(half.reached, 0.3125, epsilon = 1e-12);
    let more = ReleasedBisection::default().solve(&layers, total, 0.7).unwrap();
    assert_eq!(more.iterations, 40);
    assert_abs_diff_eq!(more.reached, 2.0 / 192.0, epsilon = 1e-12);
}

#[test]
fn power_makes_the_layer_that_draws_more_lose_more() {
    let curve = |name: &str| {
        let losses = (0..=8).map(|k| f64::from(k * k)).collect();
        BlockCurve::new(LayerId::new(name), losses, (0..=8).rev().collect()).unwrap()
    };
    let curves = [curve("thrifty"), curve("hungry")];
    let power = |p: f64| (0..=8).rev().map(|kept| p * f64::from(kept)).collect::<Vec<_>>();
    let power = [power(1.0), power(4.0)];
    assert_eq!(allocate(BlockSolver::Exact, &curves, 8).0, [4, 4]);
    let beta = balanced_beta(&curves, &power).unwrap();
    assert!(beta > 0.0);
    let with: Vec<BlockCurve> =
        curves.iter().zip(&power).map(|(c, p)| c.clone().with_power(p, beta).unwrap()).collect();
    let (removed, _) = allocate(BlockSolver::Exact, &with, 8);
    assert!(removed[1] > removed[0], "{removed:?}");
}

#[test]
fn every_layer_keeps_its_minimum_and_what_cannot_be_is_refused() {
    let curves: Vec<BlockCurve> = [3, 40]
        .iter()
        .map(|n| {
            let losses = (0..=*n).map(|k| if *n == 3 { 0.0 } else { f64::from(k) }).collect();
            let costs = (0..=*n as u64).rev().collect();
            BlockCurve::new(LayerId::new(format!("of {n}")), losses, costs).unwrap()
        })
        .collect();
    for solver in [BlockSolver::Exact, BlockSolver::Hull, BlockSolver::Uniform] {
        let removed = Lpvit::new(solver).allocate(&curves, 3).unwrap();
        assert_eq!(removed.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [2, 38]);
        let error = Lpvit::new(solver).allocate(&curves, 2).unwrap_err().to_string();
        assert!(error.contains("infeasible"), "{error}");
        assert!(Lpvit::new(solver).allocate(&[], 0).unwrap().is_empty());
    }
    let text = |losses: Vec<f64>, costs: Vec<u64>| {
        BlockCurve::new(LayerId::new("fc"), losses, costs).unwrap_err().to_string()
    };
    assert!(text(vec![0.0], vec![1, 0]).contains("found shape [2], expected [1]"));
    assert!(text(vec![], vec![]).contains("expected [1]"));
    assert!(text(vec![0.0, f64::NAN], vec![1, 0]).contains("element 1 is NaN"));
    assert!(text(vec![0.0, 1.0], vec![1, 2]).contains("at most 1"));
    let curve = BlockCurve::new(LayerId::new("fc"), vec![0.0, 1.0], vec![1, 0]).unwrap();
    let text = |power: &[f64], beta| curve.clone().with_power(power, beta).unwrap_err().to_string();
    assert!(text(&[1.0], 1.0).contains("found shape [1], expected [2]"));
    assert!(text(&[1.0, 2.0], 1.0).contains("at most 1"));
    assert!(text(&[1.0, 0.0], -1.0).contains("finite and at least 0"));
    assert!(Lpvit::default().with_min_keep(1.5).is_err());
    let bad = ReleasedLayer { curve: vec![(0.5, 0.0)], left: vec![1, 0] };
    assert!(ReleasedBisection::default().solve(&[bad], 1, 0.5).is_err());
    let nan = ReleasedLayer { curve: vec![(0.0, f64::NAN)], left: vec![1, 0] };
    assert!(ReleasedBisection::default().solve(&[nan], 1, 0.5).is_err());
    assert!(ReleasedBisection::default().solve(&[], 1, 1.5).is_err());
}

/// Curves of a few blocks; losses rise, or not, as the second order of a Taylor series may.
fn any_curves() -> impl Strategy<Value = Vec<BlockCurve>> {
    let curve = (1usize..7, 1u64..5, any::<bool>()).prop_flat_map(|(n, cost, sorted)| {
        proptest::collection::vec(0.0..1.0f64, n).prop_map(move |mut losses| {
            if sorted {
                losses.sort_by(f64::total_cmp);
            }
            losses.insert(0, 0.0);
            (losses, (0..=n as u64).rev().map(|kept| kept * cost).collect::<Vec<_>>())
        })
    });
    proptest::collection::vec(curve, 1..5).prop_map(|curves| {
        let curve = |(l, (losses, costs)): (usize, (Vec<f64>, Vec<u64>))| {
            BlockCurve::new(LayerId::new(format!("{l}")), losses, costs).unwrap()
        };
        curves.into_iter().enumerate().map(curve).collect()
    })
}

/// The least loss within the limit, by trying everything.
fn least(curves: &[BlockCurve], limit: u64) -> f64 {
    let Some((first, rest)) = curves.split_first() else { return 0.0 };
    let fits = (0..=first.blocks()).filter(|&k| first.costs()[k] <= limit);
    fits.map(|k| first.losses()[k] + least(rest, limit - first.costs()[k]))
        .fold(f64::INFINITY, f64::min)
}

proptest! {
    #[test]
    fn exact_is_least_and_never_worse_than_hull_or_uniform(
        curves in any_curves(), part in 0.0..=1.0,
    ) {
        let dense: u64 = curves.iter().map(|c| c.costs()[0]).sum();
        let limit = (part * dense as f64) as u64;
        let cost = |removed: &[usize]| -> u64 {
            curves.iter().zip(removed).map(|(c, &k)| c.costs()[k]).sum()
        };
        let (removed, exact) = allocate(BlockSolver::Exact, &curves, limit);
        prop_assert!(cost(&removed) <= limit);
        prop_assert!((exact - least(&curves, limit)).abs() < 1e-12);
        for solver in [BlockSolver::Hull, BlockSolver::Uniform] {
            let (removed, loss) = allocate(solver, &curves, limit);
            prop_assert!(cost(&removed) <= limit);
            prop_assert!(exact <= loss + 1e-12, "{solver:?}: {exact} > {loss}");
        }
    }

    #[test]
    fn the_hull_is_never_worse_than_uniform(curves in any_curves(), part in 0.0..=1.0) {
        let dense: u64 = curves.iter().map(|c| c.costs()[0]).sum();
        let limit = (part * dense as f64) as u64;
        let (_, hull) = allocate(BlockSolver::Hull, &curves, limit);
        let (_, uniform) = allocate(BlockSolver::Uniform, &curves, limit);
        prop_assert!(hull <= uniform + 1e-12, "{hull} > {uniform}");
    }

    #[test]
    fn uniform_removes_one_part_of_every_layer(
        curves in any_curves(), part in 0.0..=1.0,
    ) {
        let dense: u64 = curves.iter().map(|c| c.costs()[0]).sum();
        let limit = (part * dense as f64) as u64;
        let (removed, _) = allocate(BlockSolver::Uniform, &curves, limit);
        let shares: Vec<f64> =
            curves.iter().zip(&removed).map(|(c, &k)| k as f64 / c.blocks() as f64).collect();
        // One t explains all: shares are t rounded up to a whole block.
        let low = curves.iter().zip(&removed).map(|(c, &k)| (k as f64 - 1.0) / c.blocks() as f64);
        let low = low.fold(f64::NEG_INFINITY, f64::max);
        prop_assert!(shares.iter().all(|s| *s > low - 1e-12));
    }
}
