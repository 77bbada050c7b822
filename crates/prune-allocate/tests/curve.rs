//! Sensitivity curves: both solvers against brute force, and their laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{ErrorCurve, Sensitivity, Solver};
use prune_core::{Allocator, Budget, Error, LayerInfo, ScoredLayer};

fn layers(sizes: &[usize]) -> Vec<ScoredLayer> {
    let info = |(l, &n): (usize, &usize)| LayerInfo::linear(format!("fc{l}"), n, 1).into();
    sizes.iter().enumerate().map(info).collect()
}

fn curve(points: &[(f64, f64)]) -> ErrorCurve {
    ErrorCurve::new(points.to_vec()).unwrap()
}

fn counts(
    solver: Solver,
    curves: &[ErrorCurve],
    sizes: &[usize],
    budget: &Budget,
) -> prune_core::Result<Vec<usize>> {
    let kept = Sensitivity::new(curves.to_vec(), solver).allocate(&layers(sizes), budget)?;
    Ok(kept.iter().map(|(_, k)| *k).collect())
}

fn error(curves: &[ErrorCurve], sizes: &[usize], kept: &[usize]) -> f64 {
    let of = |l: usize| curves[l].error_at(1.0 - kept[l] as f64 / sizes[l] as f64);
    (0..sizes.len()).map(of).sum()
}

#[test]
fn a_curve_interpolates_and_refuses_what_is_none() {
    let c = curve(&[(0.0, 1.0), (0.5, 3.0)]);
    assert_eq!((c.error_at(-1.0), c.error_at(0.0), c.error_at(0.25)), (1.0, 1.0, 2.0));
    assert_eq!((c.error_at(0.5), c.error_at(0.9)), (3.0, 3.0));
    for bad in [
        vec![],
        vec![(0.1, 1.0)],
        vec![(0.0, 1.0), (0.0, 2.0)],
        vec![(0.0, 1.0), (1.1, 2.0)],
        vec![(0.0, 1.0), (f64::NAN, 2.0)],
    ] {
        assert!(matches!(ErrorCurve::new(bad), Err(Error::OutOfRange { .. })));
    }
    let nan = ErrorCurve::new(vec![(0.0, 0.0), (0.5, f64::NAN)]);
    assert!(matches!(nan, Err(Error::NotFinite { index: 1, .. })));
}

#[test]
fn weights_go_where_the_next_one_costs_least() {
    // The first layer loses its first half for nothing, then at 2 a weight; the second at 1.
    let curves = [curve(&[(0.0, 0.0), (0.5, 0.0), (0.9, 8.0)]), curve(&[(0.0, 0.0), (0.9, 9.0)])];
    let run = |s: f64| {
        let budget = Budget::sparsity(s).unwrap();
        counts(Solver::Lagrangian, &curves, &[10, 10], &budget).unwrap()
    };
    assert_eq!(run(0.2), [6, 10]);
    assert_eq!(run(0.5), [5, 5]);
    assert_eq!(run(0.8), [3, 1]);
}

#[test]
fn the_exact_solver_takes_a_cheap_point_above_the_hull() {
    // Half of the first layer is cheap at the end only: its hull lies below its middle point.
    let curves = [
        curve(&[(0.0, 0.0), (0.4, 5.0), (0.8, 6.0)]),
        curve(&[(0.0, 0.0), (0.4, 4.0), (0.8, 20.0)]),
    ];
    let budget = Budget::sparsity(0.4).unwrap();
    let exact = counts(Solver::Exact, &curves, &[10, 10], &budget).unwrap();
    assert_eq!(exact, [2, 10]);
    let budget = Budget::sparsity(0.2).unwrap();
    assert_eq!(counts(Solver::Exact, &curves, &[10, 10], &budget).unwrap(), [10, 6]);
    // One weight less than the points remove is given back where it saves most.
    let budget = Budget::sparsity(0.35).unwrap();
    assert_eq!(counts(Solver::Exact, &curves, &[10, 10], &budget).unwrap(), [3, 10]);
}

#[test]
fn no_layer_gets_sparser_than_it_was_measured() {
    let curves = [curve(&[(0.0, 0.0), (0.5, 0.0)]), curve(&[(0.0, 0.0), (0.8, 100.0)])];
    for solver in [Solver::Lagrangian, Solver::Exact] {
        let at = |s| counts(solver, &curves, &[100, 100], &Budget::sparsity(s).unwrap());
        assert_eq!(at(0.6).unwrap(), [50, 30]);
        let e = at(0.7).unwrap_err();
        assert!(e.to_string().contains("measure higher sparsities"), "{e}");
        let one = Sensitivity::new(curves[..1].to_vec(), solver);
        let e = one.allocate(&layers(&[5, 5]), &Budget::sparsity(0.1).unwrap()).unwrap_err();
        assert!(matches!(e, Error::Shape { .. }), "{e}");
    }
}

#[test]
fn equal_convex_curves_share_evenly_in_price_and_the_budget_is_met() {
    let convex = |scale: f64| {
        curve(&(0..=9).map(|i| f64::from(i) / 10.0).map(|s| (s, scale * s * s)).collect::<Vec<_>>())
    };
    let curves = [convex(1.0), convex(2.0), convex(4.0)];
    let budget = Budget::sparsity(0.5).unwrap();
    let kept = counts(Solver::Lagrangian, &curves, &[1000; 3], &budget).unwrap();
    assert_eq!(kept.iter().sum::<usize>(), 1500);
    assert!(kept[0] < kept[1] && kept[1] < kept[2]);
}

/// Curves over a grid of sparsities with errors that need not be convex.
fn arb_curves(layers: usize) -> impl Strategy<Value = Vec<ErrorCurve>> {
    vec(vec(0.0f64..5.0, 4), layers).prop_map(|all| {
        all.iter()
            .map(|steps| {
                let mut points = vec![(0.0, 0.0)];
                for (i, step) in steps.iter().enumerate() {
                    let last = points[i].1;
                    points.push(((i + 1) as f64 / 5.0, last + step));
                }
                curve(&points)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn the_exact_solver_finds_what_trying_everything_finds(
        curves in arb_curves(4),
        sizes in vec(1usize..8, 4),
        sparsity in 0.0f64..0.79,
    ) {
        // Sizes in which every point is a whole number of weights.
        let sizes: Vec<usize> = sizes.iter().map(|n| 5 * n).collect();
        let budget = Budget::sparsity(sparsity).unwrap().with_min_keep(0);
        let keep = budget.keep_total(sizes.iter().sum());
        let kept = counts(Solver::Exact, &curves, &sizes, &budget).unwrap();
        prop_assert_eq!(kept.iter().sum::<usize>(), keep);
        let mut best = f64::INFINITY;
        for code in 0..5usize.pow(4) {
            let at = |l: u32| code / 5usize.pow(l) % 5;
            let left: usize = (0..4).map(|l| sizes[l] - sizes[l] / 5 * at(l as u32)).sum();
            if left <= keep {
                let e: f64 = (0..4).map(|l| curves[l].points()[at(l as u32)].1).sum();
                best = best.min(e);
            }
        }
        // Weights given back never raise the error, as these curves rise.
        prop_assert!(error(&curves, &sizes, &kept) <= best + 1e-9);
    }

    #[test]
    fn on_convex_curves_no_exchange_of_a_weight_helps(
        slopes in vec(vec(0.01f64..3.0, 4), 2..6),
        sparsity in 0.0f64..0.79,
    ) {
        let sizes = vec![100usize; slopes.len()];
        let curves: Vec<ErrorCurve> = slopes
            .iter()
            .map(|s| {
                let mut s = s.clone();
                s.sort_by(f64::total_cmp);
                let mut points = vec![(0.0, 0.0)];
                for (i, slope) in s.iter().enumerate() {
                    points.push(((i + 1) as f64 / 5.0, points[i].1 + slope));
                }
                curve(&points)
            })
            .collect();
        let budget = Budget::sparsity(sparsity).unwrap();
        let kept = counts(Solver::Lagrangian, &curves, &sizes, &budget).unwrap();
        prop_assert_eq!(kept.iter().sum::<usize>(), budget.keep_total(100 * sizes.len()));
        let now = error(&curves, &sizes, &kept);
        for a in 0..sizes.len() {
            for b in 0..sizes.len() {
                // 20 kept is the last point.
                if a != b && kept[a] > 20 && kept[b] < 100 {
                    let mut other = kept.clone();
                    other[a] -= 1;
                    other[b] += 1;
                    prop_assert!(error(&curves, &sizes, &other) >= now - 1e-9);
                }
            }
        }
        let uniform = vec![((1.0 - sparsity) * 100.0) as usize; sizes.len()];
        if uniform.iter().sum::<usize>() == kept.iter().sum::<usize>() {
            prop_assert!(now <= error(&curves, &sizes, &uniform) + 1e-9);
        }
    }
}
