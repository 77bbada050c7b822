//! Budgets: published roundings, and sums that are exact whatever comes in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_core::{Allocation, Budget, Error, LayerId, LayerInfo, round_to_budget, scale_with_cap};

/// Weights of the nine layers of a small convolutional network.
const SIZES: [usize; 9] = [432, 2304, 4608, 512, 9216, 18432, 2048, 36864, 640];

/// Their ERK densities at 10 % and 50 %: `scale · Σ shape / Π shape`, at most 1.
fn erk_targets(density: f64) -> Vec<f64> {
    let shape_sums = [25.0, 38.0, 54.0, 50.0, 70.0, 102.0, 98.0, 134.0, 74.0];
    let scale: f64 = if density == 0.1 { 12.195010 } else { 88.183007 };
    SIZES.iter().zip(shape_sums).map(|(&n, s)| (scale * s).min(n as f64)).collect()
}

#[test]
fn rounding_gives_the_reference_counts_of_nine_layers() {
    let sparse = Budget::sparsity(0.9).unwrap();
    assert_eq!(sparse.keep_total(75056), 7506);
    assert_eq!(
        sparse.round(&erk_targets(0.1), &SIZES).unwrap(),
        [305, 463, 659, 512, 854, 1244, 1195, 1634, 640]
    );
    let half = Budget::sparsity(0.5).unwrap();
    assert_eq!(half.keep_total(75056), 37528);
    assert_eq!(
        half.round(&erk_targets(0.5), &SIZES).unwrap(),
        [432, 2304, 4608, 512, 6173, 8995, 2048, 11816, 640]
    );
}

#[test]
fn a_fraction_a_hair_below_a_whole_number_counts_as_it() {
    let density = 1.0 - 0.9;
    assert_eq!((1000.0 * density) as usize, 99);
    assert_eq!(Budget::sparsity(0.9).unwrap().keep_total(1000), 100);
    assert_eq!(round_to_budget(&[1000.0 * density], &[1000], 100, &[1]).unwrap(), [100]);
}

#[test]
fn ratios_above_the_cap_stay_at_it_and_the_others_take_the_rest() {
    let base = [0.7, 0.7, 0.7, 1.3];
    let capped = scale_with_cap(&base, &[10; 4], 0.8, 1.0).unwrap();
    for (got, want) in capped.iter().zip([0.733333, 0.733333, 0.733333, 1.0]) {
        assert_abs_diff_eq!(*got, want, epsilon = 1e-6);
    }
    // Spectral exponents 2, 3, 4, 6 mapped to 1 ± 0.2, then 1 ± 0.3; no cap binds.
    let cases = [
        ([0.8, 0.9, 1.0, 1.2], 0.5, [0.384615, 0.432692, 0.480769, 0.576923]),
        ([0.7, 0.85, 1.0, 1.3], 0.7, [0.462264, 0.561321, 0.660377, 0.858491]),
        ([0.7, 0.85, 1.0, 1.3], 0.8, [0.528302, 0.641509, 0.754717, 0.981132]),
    ];
    // Sizes in the ratio 1 : 2 : 3 : 4.
    for (base, sparsity, want) in cases {
        let got = scale_with_cap(&base, &[100, 200, 300, 400], sparsity, 1.0).unwrap();
        for (got, want) in got.iter().zip(want) {
            assert_abs_diff_eq!(*got, want, epsilon = 1e-6);
        }
    }
}

#[test]
fn what_cannot_be_met_is_an_error() {
    let infeasible = |r: Result<_, Error>| matches!(r, Err(Error::Infeasible(_)));
    assert!(infeasible(round_to_budget(&[1.0, 1.0], &[4, 4], 1, &[1, 1]).map(|_| ())));
    assert!(infeasible(round_to_budget(&[1.0, 1.0], &[4, 4], 9, &[1, 1]).map(|_| ())));
    assert!(infeasible(scale_with_cap(&[1.0, 1.0], &[4, 4], 0.9, 0.8).map(|_| ())));
    assert!(infeasible(scale_with_cap(&[0.0, 1.0], &[4, 4], 0.8, 1.0).map(|_| ())));
    assert!(infeasible(Budget::sparsity(0.99).unwrap().round(&[0.1; 9], &[9; 9]).map(|_| ())));
}

#[test]
fn nonsense_is_refused_with_its_place() {
    assert!(matches!(
        round_to_budget(&[1.0, f64::NAN], &[4, 4], 2, &[0, 0]),
        Err(Error::NotFinite { index: 1, .. })
    ));
    assert!(matches!(round_to_budget(&[1.0], &[4, 4], 2, &[0, 0]), Err(Error::Shape { .. })));
    assert!(matches!(
        round_to_budget(&[1.0, 1.0], &[usize::MAX, 4], 2, &[0, 0]),
        Err(Error::OutOfRange { .. })
    ));
    assert!(matches!(round_to_budget(&[1.0], &[4], 2, &[5]), Err(Error::OutOfRange { .. })));
    assert!(scale_with_cap(&[-1.0], &[4], 0.5, 1.0).is_err());
    assert!(scale_with_cap(&[f64::INFINITY], &[4], 0.5, 1.0).is_err());
    assert!(Budget::sparsity(1.0).is_err());
    assert!(Budget::sparsity(f64::NAN).is_err());
    assert!(Budget::sparsity(0.5).unwrap().with_max_layer_sparsity(0.4).is_err());
}

#[test]
fn a_budget_at_its_own_cap_is_feasible() {
    let sizes = [150; 7];
    let budget = Budget::sparsity(0.99).unwrap();
    let kept = budget.round(&[1.5; 7], &sizes).unwrap();
    assert_eq!(kept.iter().sum::<usize>(), budget.keep_total(1050));
}

#[test]
fn a_budget_above_99_percent_has_no_cap_of_its_own() {
    let budget = Budget::sparsity(0.995).unwrap();
    assert_eq!(budget.max_layer_sparsity(), 1.0);
    assert_eq!(budget.min_keep(10_000), 1);
}

#[test]
fn a_layer_stands_in_an_allocation_once() {
    let twice = vec![(LayerId::new("a"), 1), (LayerId::new("a"), 2)];
    assert!(Allocation::new(twice).unwrap_err().to_string().contains("`a` twice"));
}

#[test]
fn sparsities_refuse_layers_that_do_not_fit() {
    let layers = [LayerInfo::linear("a", 2, 5)];
    let unknown = Allocation::new(vec![(LayerId::new("b"), 1)]).unwrap();
    assert!(unknown.sparsities(&layers).unwrap_err().to_string().contains("`b`"));
    let large = Allocation::new(vec![(LayerId::new("a"), 11)]).unwrap();
    assert!(large.sparsities(&layers).unwrap_err().to_string().contains("`a`"));
}

#[test]
fn allocations_map_and_iterate_in_the_order_of_the_layers() {
    let bits = Allocation::new(vec![(LayerId::new("b"), 8u8), (LayerId::new("a"), 4)]).unwrap();
    let bytes = bits.map(|_, b| f64::from(*b) / 8.0);
    assert_eq!(bytes.total(), 1.5);
    assert_eq!((bits.len(), bits.is_empty()), (2, false));
    let names: Vec<_> = bytes.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    assert_eq!(bits.into_iter().map(|(_, b)| b).collect::<Vec<_>>(), [8, 4]);
}

/// Layers as (size, wish, minimum within the size).
fn arb_layers() -> impl Strategy<Value = (Vec<usize>, Vec<f64>, Vec<usize>)> {
    vec((0usize..400, 0.0f64..1.2, 0.0f64..1.0), 1..20).prop_map(|layers| {
        let sizes: Vec<usize> = layers.iter().map(|l| l.0).collect();
        let targets = layers.iter().map(|l| l.1 * l.0 as f64).collect();
        let floors = layers.iter().map(|l| (l.2 * 0.3 * l.0 as f64) as usize).collect();
        (sizes, targets, floors)
    })
}

proptest! {
    #[test]
    fn counts_sum_exactly_and_stay_within_bounds(
        (sizes, targets, floors) in arb_layers(), at in 0.0f64..1.0,
    ) {
        let (least, most) = (floors.iter().sum::<usize>(), sizes.iter().sum::<usize>());
        let total = least + ((most - least) as f64 * at) as usize;
        let kept = round_to_budget(&targets, &sizes, total, &floors).unwrap();
        prop_assert_eq!(kept.iter().sum::<usize>(), total);
        for l in 0..sizes.len() {
            prop_assert!((floors[l]..=sizes[l]).contains(&kept[l]));
        }
    }

    #[test]
    fn counts_are_within_one_of_targets_that_meet_the_budget(
        layers in vec((1usize..400, 0.0f64..1.0), 1..20),
    ) {
        let sizes: Vec<usize> = layers.iter().map(|l| l.0).collect();
        let mut targets: Vec<f64> = layers.iter().map(|l| l.1 * l.0 as f64).collect();
        // Shrink the largest target so that the sum is whole.
        let largest = (0..sizes.len()).max_by(|&a, &b| targets[a].total_cmp(&targets[b])).unwrap();
        let sum: f64 = targets.iter().sum();
        targets[largest] -= sum.fract();
        prop_assume!(targets[largest] >= 0.0);
        let total = sum.floor() as usize;
        let kept = round_to_budget(&targets, &sizes, total, &vec![0; sizes.len()]).unwrap();
        for l in 0..sizes.len() {
            prop_assert!((kept[l] as f64 - targets[l]).abs() < 1.0 + 1e-6);
        }
    }

    #[test]
    fn capped_ratios_meet_the_sparsity_and_keep_the_order(
        layers in vec((1usize..400, 0.01f64..3.0), 1..20), cap in 0.3f64..1.0, at in 0.0f64..1.0,
    ) {
        let sizes: Vec<usize> = layers.iter().map(|l| l.0).collect();
        let base: Vec<f64> = layers.iter().map(|l| l.1).collect();
        let sparsity = cap * at;
        let got = scale_with_cap(&base, &sizes, sparsity, cap).unwrap();
        let total: f64 = sizes.iter().map(|&n| n as f64).sum();
        let removed: f64 = sizes.iter().zip(&got).map(|(&n, s)| n as f64 * s).sum();
        prop_assert!((removed - sparsity * total).abs() < 1e-9 * total);
        for a in 0..got.len() {
            prop_assert!((0.0..=cap).contains(&got[a]));
            for b in 0..got.len() {
                prop_assert!(base[a] <= base[b] || got[a] >= got[b]);
            }
        }
    }

    #[test]
    fn kept_and_removed_make_the_whole(sparsity in 0.0f64..1.0, n in 0usize..1_000_000) {
        let budget = Budget::sparsity(sparsity).unwrap();
        prop_assert_eq!(budget.keep_total(n) + budget.remove_total(n), n);
        prop_assert!((budget.remove_total(n) as f64 - sparsity * n as f64).abs() < 1.0 + 1e-6);
        prop_assert!(budget.min_keep(n) <= n);
    }
}
