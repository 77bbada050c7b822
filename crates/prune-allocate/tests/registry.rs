//! What holds for every allocator that can be chosen by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{AllocatorEntry, ErrorCurve, Measured, ScoreKind, allocator, allocators};
use prune_core::{Allocation, Budget, Error, LayerId, LayerInfo, LayerKind, Result};

fn layers(shapes: &[&[usize]]) -> Vec<LayerInfo> {
    let info = |(i, shape): (usize, &&[usize])| {
        let kind = if shape.len() == 4 { LayerKind::Conv2d } else { LayerKind::Linear };
        LayerInfo::from_name(&format!("layer{i}"), kind, shape.to_vec())
    };
    shapes.iter().enumerate().map(info).collect()
}

/// A measurement of the kind that the allocator reads, with some number for each layer.
fn measured(entry: &AllocatorEntry, layers: &[LayerInfo], budget: &Budget) -> Measured {
    let number = |l: usize| ((l * l * 7 + l * 3) % 11) as f64 + 1.0;
    match entry.score {
        ScoreKind::Unused => Measured::Nothing,
        ScoreKind::Alpha | ScoreKind::WindowedAlpha => {
            let some = |l| (l == 0 || l % 4 != 3).then(|| 1.0 + number(l) / 2.0);
            Measured::Exponents((0..layers.len()).map(some).collect())
        }
        ScoreKind::ErrorCurve => {
            let curve = |l: usize| {
                let points = [0.0, 0.3, 0.5, 0.7, 0.9, 1.0];
                ErrorCurve::new(points.map(|s| (s, number(l) * s * s)).to_vec()).unwrap()
            };
            Measured::Curves((0..layers.len()).map(curve).collect())
        }
        ScoreKind::Survivors(_) => {
            let keep = |l: &LayerInfo| (budget.density() * l.numel() as f64).floor();
            Measured::Scores(layers.iter().map(keep).collect())
        }
        _ => Measured::Scores((0..layers.len()).map(number).collect()),
    }
}

fn allocate(
    entry: &AllocatorEntry,
    layers: &[LayerInfo],
    budget: &Budget,
) -> Result<Allocation<usize>> {
    entry.allocate(layers, &measured(entry, layers, budget), budget)
}

fn keep(density: f64) -> Budget {
    Budget::sparsity(1.0 - density).unwrap()
}

#[test]
fn names_are_told_apart_and_found() {
    let names: HashSet<&str> = allocators().iter().map(|e| e.name).collect();
    assert_eq!(names.len(), allocators().len());
    for entry in allocators() {
        assert_eq!(allocator(entry.name).unwrap().summary, entry.summary);
        assert!(entry.summary.len() < 100 && !entry.summary.is_empty());
    }
    assert!(allocator("magic").is_none());
}

#[test]
fn every_layer_keeps_one_weight_and_too_many_layers_are_infeasible() {
    let tiny = layers(&[&[100, 100], &[2, 2], &[3, 1]]);
    for entry in allocators() {
        let kept = allocate(entry, &tiny, &keep(0.05)).unwrap();
        assert_eq!(kept.total(), 501, "{}", entry.name);
        assert!(kept.iter().all(|(_, k)| *k >= 1), "{}", entry.name);
    }
    let crowd = layers(&[&[2usize, 2][..]; 30]);
    for entry in allocators() {
        let got = allocate(entry, &crowd, &keep(0.1));
        assert!(matches!(got, Err(Error::Infeasible(_))), "{}: {got:?}", entry.name);
    }
}

#[test]
fn lists_that_are_no_network_are_refused() {
    let budget = keep(0.5);
    let network = layers(&[&[8, 3, 3, 3], &[8, 3, 3, 3], &[16, 8, 3, 3], &[10, 16]]);
    let twice = [network[0].clone(), network[0].clone()];
    let mut tied = network;
    tied[3].tie = Some(LayerId::new("layer0"));
    for entry in allocators() {
        let run = |l: &[LayerInfo]| allocate(entry, l, &budget);
        assert!(matches!(run(&[]), Err(Error::Infeasible(_))), "{}", entry.name);
        assert!(run(&twice).unwrap_err().to_string().contains("`layer0` twice"));
        assert!(run(&tied).unwrap_err().to_string().contains("`layer3`, which shares"));
        let huge = layers(&[&[usize::MAX, 2]]);
        let wrong = entry.allocate(&huge, &measured(entry, &tied, &budget), &budget);
        assert!(wrong.is_err(), "{}", entry.name);
    }
    // The owner of a tied weight is not in the list, so the weight is there once.
    tied.remove(0);
    for entry in allocators() {
        assert!(allocate(entry, &tied, &budget).is_ok(), "{}", entry.name);
    }
}

#[test]
fn layers_without_weights_keep_none() {
    let layers = layers(&[&[4, 4], &[0, 7]]);
    for entry in allocators() {
        let kept = allocate(entry, &layers, &keep(0.5)).unwrap();
        assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [8, 0], "{}", entry.name);
    }
}

#[test]
fn another_measurement_than_asked_for_is_refused_by_name() {
    let layers = layers(&[&[8, 8], &[4, 4]]);
    let all = [
        Measured::Nothing,
        Measured::Scores(vec![1.0; 2]),
        Measured::Exponents(vec![Some(2.0); 2]),
        Measured::Curves(vec![ErrorCurve::new(vec![(0.0, 0.0), (0.9, 1.0)]).unwrap(); 2]),
    ];
    for entry in allocators() {
        let right = measured(entry, &layers, &keep(0.5));
        for other in &all {
            let got = entry.allocate(&layers, other, &keep(0.5));
            let same = std::mem::discriminant(other) == std::mem::discriminant(&right);
            assert_eq!(got.is_ok(), same, "{}: {got:?}", entry.name);
            if !same {
                let text = got.unwrap_err().to_string();
                assert!(text.contains(&format!("`{}`", entry.name)), "{text}");
            }
        }
        // One layer less than was measured.
        if entry.score != ScoreKind::Unused {
            let got = entry.allocate(&layers[..1], &right, &keep(0.5));
            assert!(matches!(got, Err(Error::Shape { .. })), "{}: {got:?}", entry.name);
        }
    }
}

#[test]
fn parameters_change_the_allocation_and_are_checked() {
    let names = ["layers.0.fc", "layers.1.fc", "layers.2.fc"];
    let layers = names.map(|n| LayerInfo::linear(n, 20, 20));
    for entry in allocators() {
        let m = measured(entry, &layers, &keep(0.5));
        let plain = entry.allocate(&layers, &m, &keep(0.5)).unwrap();
        match entry.parameter {
            Some(p) => {
                let same = entry.with_parameter(p.default).allocate(&layers, &m, &keep(0.5));
                assert_eq!(same.unwrap(), plain);
                let other = entry.with_parameter(p.default / 4.0);
                assert_ne!(
                    other.allocate(&layers, &m, &keep(0.5)).unwrap(),
                    plain,
                    "{}",
                    entry.name
                );
                for bad in [f64::NAN, -0.1, 1.5] {
                    let got = entry.with_parameter(bad).allocate(&layers, &m, &keep(0.5));
                    assert!(matches!(got, Err(Error::OutOfRange { .. })), "{}", entry.name);
                }
            }
            None => {
                let same = entry.with_parameter(0.3).allocate(&layers, &m, &keep(0.5)).unwrap();
                assert_eq!(same, plain);
            }
        }
    }
}

fn arb_network() -> impl Strategy<Value = Vec<LayerInfo>> {
    let linear = (1usize..40, 1usize..40).prop_map(|(o, i)| vec![o, i]);
    let conv = (1usize..20, 1usize..20, 1usize..4).prop_map(|(o, i, k)| vec![o, i, k, k]);
    vec(prop_oneof![linear, conv], 1..12)
        .prop_map(|shapes| layers(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>()))
}

proptest! {
    #[test]
    fn counts_meet_the_budget_exactly_within_every_layer(
        network in arb_network(), sparsity in 0.0f64..0.999,
    ) {
        let budget = Budget::sparsity(sparsity).unwrap();
        let sizes: Vec<usize> = network.iter().map(LayerInfo::numel).collect();
        let total: usize = sizes.iter().sum();
        let least: usize = sizes.iter().map(|&n| budget.min_keep(n)).sum();
        for entry in allocators() {
            match allocate(entry, &network, &budget) {
                Ok(kept) => {
                    prop_assert_eq!(kept.total(), budget.keep_total(total), "{}", entry.name);
                    for ((_, &k), &n) in kept.iter().zip(&sizes) {
                        prop_assert!(budget.min_keep(n) <= k && k <= n, "{}", entry.name);
                    }
                }
                Err(Error::Infeasible(_)) => prop_assert!(
                    least > budget.keep_total(total) || entry.name.ends_with('+'),
                    "{}", entry.name
                ),
                Err(other) => panic!("{}: {other}", entry.name),
            }
        }
    }
}
