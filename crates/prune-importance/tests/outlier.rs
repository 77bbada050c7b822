//! The outlier distribution of OWL against reference values, and its laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use ndarray::{Array2, array};
use prune_core::{ColumnStats, Error, LayerId};
use prune_importance::OutlierDistribution;

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

#[test]
fn the_outliers_of_a_tiny_layer_match_the_reference() {
    let weight = array![[1.0, -2.0, 0.5], [0.25, 4.0, -1.0]];
    let inputs = stats(&array![[1.0, 0.0, 2.0], [2.0, 1.0, -1.0], [0.0, 3.0, 1.0]]);
    for (norm, expected) in inputs.squared_norm().iter().zip([2.236068, 3.162278, 2.449490]) {
        assert_abs_diff_eq!(norm.sqrt(), expected, epsilon = 1e-6);
    }
    let mut mean = OutlierDistribution::new(1.0).unwrap();
    mean.observe(&LayerId::new("a"), weight.view(), &inputs).unwrap();
    let threshold = mean.second_pass().unwrap().threshold();
    assert_abs_diff_eq!(threshold, 4.240498, epsilon = 1e-6);
    let block = [(weight, inputs)];
    assert_abs_diff_eq!(percent(1.0, &block), 33.333333, epsilon = 1e-6);
    assert_abs_diff_eq!(percent(2.0, &block), 16.666667, epsilon = 1e-6);
}

#[test]
fn rows_of_zeros_and_dead_channels_lower_the_threshold() {
    let inputs = array![[1.0, 0.0, 2.0], [2.0, 1.0, -1.0], [0.0, 3.0, 1.0]];
    let weight = array![[1.0, -2.0, 0.5], [0.25, 4.0, -1.0]];
    // Two rows of zeros halve the mean: what was above once it is above twice it, of as many again.
    let padded = array![[1.0, -2.0, 0.5], [0.25, 4.0, -1.0], [0.0; 3], [0.0; 3]];
    let padded = [(padded, stats(&inputs))];
    assert_abs_diff_eq!(percent(2.0, &padded), 16.666667, epsilon = 1e-6);
    let mut dead = inputs.clone();
    dead.column_mut(2).fill(0.0);
    assert_eq!(percent(3.0, &[(weight.clone(), stats(&inputs))]), 0.0);
    assert_abs_diff_eq!(percent(3.0, &[(weight, stats(&dead))]), 16.666667, epsilon = 1e-6);
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
fn the_outliers_of_four_blocks_match_the_reference() {
    let cases =
        [(3.0, [8.333333, 11.666667, 10.0, 15.0]), (5.0, [0.0, 1.666667, 6.666667, 6.666667])];
    for (multiplier, want) in cases {
        for (block, want) in four_blocks().iter().zip(want) {
            assert_abs_diff_eq!(percent(multiplier, block), want, epsilon = 1e-6);
        }
    }
}

#[test]
fn multipliers_out_of_range_are_refused() {
    assert!(OutlierDistribution::new(0.0).is_err());
    assert!(OutlierDistribution::new(f64::INFINITY).is_err());
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
