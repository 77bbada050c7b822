//! Shares of any kind under any cost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{
    Choice, CostAllocator, Er, Erk, Owl, ShareGroup, Solver, Uniform, within_cost,
};
use prune_core::{Allocator, Error, LayerId, LayerInfo, ScoredLayer};

fn group(name: &str, choices: &[(u32, u64, f64)]) -> ShareGroup<u32> {
    let choices = choices.iter().map(|&(share, cost, loss)| Choice { share, cost, loss });
    ShareGroup::new(LayerId::new(name), choices).unwrap()
}

const SOLVERS: [Solver; 2] = [Solver::Lagrangian, Solver::Exact];

#[test]
fn fused_and_tied_layers_take_one_value() {
    let qkv = ["q", "k", "v"]
        .map(|n| group(n, &[(2, 20, 4.0), (4, 40, 1.0), (8, 80, 0.0)]))
        .into_iter()
        .reduce(|a, b| a.fuse(b).unwrap())
        .unwrap();
    let up = group("up", &[(2, 60, 9.0), (4, 120, 2.0), (8, 240, 0.0)]).tie(LayerId::new("down"));
    for solver in SOLVERS {
        let chosen = CostAllocator::new(solver).allocate(&[qkv.clone(), up.clone()], 240).unwrap();
        let bits: Vec<_> = chosen.iter().map(|(id, b)| (id.as_str(), *b)).collect();
        assert_eq!(bits, [("q", 4), ("k", 4), ("v", 4), ("up", 4), ("down", 4)]);
    }
}

#[test]
fn limits_that_nothing_fits_and_empty_groups_are_refused() {
    let a = group("a", &[(2, 20, 1.0), (4, 40, 0.0)]);
    for solver in SOLVERS {
        let allocator = CostAllocator::new(solver);
        let e = allocator.allocate(&[a.clone(), a.clone().tie(LayerId::new("b"))], 39);
        assert!(e.unwrap_err().to_string().contains("cost 40, the limit is 39"));
        assert!(allocator.allocate(&[a.clone(), a.clone()], 100).is_err());
        assert!(allocator.allocate::<u32>(&[], 0).unwrap().is_empty());
        let huge = [group("x", &[(1, u64::MAX, 0.0)]), group("y", &[(1, 1, 0.0)])];
        assert!(matches!(allocator.allocate(&huge, u64::MAX), Err(Error::Infeasible(_))));
    }
    assert!(a.clone().retain(|bits| bits % 3 == 0).unwrap_err().to_string().contains("`a`"));
    let odd = group("odd", &[(3, 30, 0.5)]);
    assert!(odd.fuse(a).unwrap_err().to_string().contains("`odd`, `a`"));
    let nan = ShareGroup::new(LayerId::new("n"), [Choice { share: 1, cost: 1, loss: f64::NAN }]);
    assert!(matches!(nan, Err(Error::NotFinite { .. })));
    let none = ShareGroup::<u32>::new(LayerId::new("n"), []);
    assert!(matches!(none, Err(Error::Infeasible(_))));
}

#[test]
fn a_network_of_many_groups_is_solved_exactly() {
    // 210 layers of 15 choices: 15^210 combinations.
    let groups: Vec<ShareGroup<u32>> = (0..210)
        .map(|l| {
            let size = 300 + 37 * (l * l % 19);
            let noise = |b: u64| ((l * 31 + b * 17) % 13) as f64 / 130.0;
            let choices: Vec<_> = (2..17)
                .map(|b| (b as u32, b * size, 100.0 * (0.25f64).powi(b as i32) * (1.0 + noise(b))))
                .collect();
            group(&format!("l{l}"), &choices)
        })
        .collect();
    let loss = |solver| {
        let chosen = CostAllocator::new(solver).allocate(&groups, 4 * 210 * 640).unwrap();
        let of = |g: &ShareGroup<u32>| {
            let share = chosen.get(&g.layers()[0]).unwrap();
            let choice = g.choices().iter().find(|c| c.share == *share).unwrap();
            (choice.cost, choice.loss)
        };
        let cost: u64 = groups.iter().map(|g| of(g).0).sum();
        assert!(cost <= 4 * 210 * 640);
        groups.iter().map(|g| of(g).1).sum::<f64>()
    };
    let (lagrangian, exact) = (loss(Solver::Lagrangian), loss(Solver::Exact));
    assert!(exact <= lagrangian && lagrangian < 1.005 * exact, "{exact} {lagrangian}");
}

#[test]
fn any_allocator_goes_under_a_cost_in_flops() {
    let shapes: [&[usize]; 4] = [&[16, 3, 3, 3], &[32, 16, 3, 3], &[64, 32, 3, 3], &[10, 64]];
    let layers: Vec<ScoredLayer> = shapes
        .iter()
        .enumerate()
        .map(|(l, s)| LayerInfo::from_name(&format!("l{l}"), kind(s), s.to_vec()).into())
        .collect();
    let positions = [1024, 256, 64, 1];
    let dense: u64 = layers.iter().zip(positions).map(|(l, p)| l.info.numel() as u64 * p).sum();
    let allocators: [&dyn Allocator<Share = usize>; 4] = [&Uniform, &Er, &Erk, &Owl::default()];
    for allocator in allocators {
        for limit in [dense / 10, dense / 3, dense - 1, dense, 2 * dense] {
            let kept = within_cost(allocator, &layers, &positions, limit).unwrap();
            let cost: u64 = kept.iter().zip(positions).map(|((_, &k), p)| k as u64 * p).sum();
            assert!(cost <= limit, "{}", allocator.name());
            // One more weight costs at most the dearest weight and what rounding moves with it.
            assert!(limit >= dense || limit - cost <= 2 * 1024, "{}", allocator.name());
        }
        let e = within_cost(allocator, &layers, &positions, 10).unwrap_err();
        assert!(e.to_string().contains(allocator.name()), "{e}");
        assert!(matches!(
            within_cost(allocator, &layers, &positions[1..], 10),
            Err(Error::Shape { .. })
        ));
    }
}

fn kind(shape: &[usize]) -> prune_core::LayerKind {
    match shape.len() {
        4 => prune_core::LayerKind::Conv2d,
        _ => prune_core::LayerKind::Linear,
    }
}

proptest! {
    #[test]
    fn the_exact_solver_finds_what_trying_everything_finds(
        all in vec(vec((0u64..30, -5.0f64..5.0), 1..5), 1..6),
        limit in 0u64..90,
    ) {
        let groups: Vec<ShareGroup<u32>> = all
            .iter()
            .enumerate()
            .map(|(g, options)| {
                let share = |(i, &(c, l)): (usize, &(u64, f64))| (i as u32, c, l);
                let options: Vec<_> = options.iter().enumerate().map(share).collect();
                group(&format!("g{g}"), &options)
            })
            .collect();
        let mut best: Option<f64> = None;
        let combinations: usize = all.iter().map(Vec::len).product();
        for mut code in 0..combinations {
            let (mut cost, mut loss) = (0, 0.0);
            for options in &all {
                let (c, l) = options[code % options.len()];
                code /= options.len();
                cost += c;
                loss += l;
            }
            if cost <= limit {
                best = Some(best.map_or(loss, |b| b.min(loss)));
            }
        }
        for solver in SOLVERS {
            match (CostAllocator::new(solver).allocate(&groups, limit), best) {
                (Err(Error::Infeasible(_)), None) => {}
                (Ok(chosen), Some(best)) => {
                    let taken = |g: usize| {
                        all[g][*chosen.get(&groups[g].layers()[0]).unwrap() as usize]
                    };
                    let cost: u64 = (0..all.len()).map(|g| taken(g).0).sum();
                    let loss: f64 = (0..all.len()).map(|g| taken(g).1).sum();
                    prop_assert!(cost <= limit);
                    prop_assert!(loss >= best - 1e-9);
                    prop_assert!(solver == Solver::Lagrangian || loss <= best + 1e-9);
                    // No single change within the limit helps.
                    for (g, options) in all.iter().enumerate() {
                        for &(c, l) in options {
                            let fits = cost - taken(g).0 + c <= limit;
                            prop_assert!(!fits || l >= taken(g).1 - 1e-9);
                        }
                    }
                }
                (got, best) => panic!("{got:?} {best:?}"),
            }
        }
    }
}
