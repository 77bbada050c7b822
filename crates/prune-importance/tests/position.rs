//! Position weights against reference values.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use prune_core::Error;
use prune_importance::PositionWeight;

/// What the removal of each of eight blocks costs.
fn costs() -> Vec<f64> {
    (0..8).map(|i| 0.1 + (7.0 * i as f64 + 3.0).sin().abs()).collect()
}

fn order(prunability: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..prunability.len()).collect();
    order.sort_by(|&a, &b| prunability[b].total_cmp(&prunability[a]));
    order
}

fn close(got: &[f64], want: [f64; 8]) {
    got.iter().zip(want).for_each(|(g, w)| assert_abs_diff_eq!(*g, w, epsilon = 1e-6));
}

#[test]
fn prunability_matches_the_reference() {
    close(
        &costs(),
        [0.241120, 0.644021, 1.061397, 1.005578, 0.504038, 0.396369, 0.950904, 1.086628],
    );
    let printed = PositionWeight::AsPrinted.prunability(&costs()).unwrap();
    close(
        &printed,
        [-0.088703, -0.268468, -0.501369, -0.538247, -0.305714, -0.272420, -0.740564, -0.958945],
    );
    assert_eq!(order(&printed), [0, 1, 5, 4, 2, 3, 6, 7]);
    let falling = PositionWeight::Falling.prunability(&costs()).unwrap();
    close(
        &falling,
        [-0.655432, -1.544926, -2.246979, -1.878668, -0.831018, -0.576713, -1.220984, -1.231310],
    );
    assert_eq!(order(&falling), [5, 0, 4, 6, 7, 1, 3, 2]);
}

#[test]
fn blocks_of_equal_cost_go_by_position_alone() {
    let of = |w: PositionWeight| order(&w.prunability(&[0.3; 6]).unwrap());
    assert_eq!(of(PositionWeight::Falling), [5, 4, 3, 2, 1, 0]);
    assert_eq!(of(PositionWeight::AsPrinted), [0, 1, 2, 3, 4, 5]);
    assert_eq!(of(PositionWeight::None), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_removal_that_helps_costs_nothing_unless_as_printed() {
    let costs = [-2.0, 0.5];
    for w in [PositionWeight::Falling, PositionWeight::None] {
        assert_eq!(order(&w.prunability(&costs).unwrap()), [0, 1]);
    }
    assert_eq!(order(&PositionWeight::AsPrinted.prunability(&costs).unwrap()), [1, 0]);
    let e = PositionWeight::None.prunability(&[1.0, f64::NAN]);
    assert!(matches!(e, Err(Error::NotFinite { index: 1, .. })));
}
