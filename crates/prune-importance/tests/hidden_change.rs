//! Block influence and LIM against reference values, and their laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use ndarray::Array2;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_core::Error;
use prune_importance::{HiddenChange, LimOver};

fn change(before: &Array2<f32>, after: &Array2<f32>) -> HiddenChange {
    let mut change = HiddenChange::new();
    change.update("block", before.view(), after.view()).unwrap();
    change
}

#[test]
fn block_influence_matches_the_reference() {
    let before = Array2::from_shape_fn((5, 4), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin());
    let after = Array2::from_shape_fn((5, 4), |(i, j)| {
        before[[i, j]] + 0.5 * (5.0 * i as f64 + 2.0 * j as f64).cos()
    });
    let change = change(&before.mapv(|x| x as f32), &after.mapv(|x| x as f32));
    assert_abs_diff_eq!(change.block_influence().unwrap(), 0.121288, epsilon = 1e-6);
    assert_abs_diff_eq!(change.total_influence(), 0.606440, epsilon = 1e-6);
    assert_abs_diff_eq!(change.angular_distance().unwrap(), 0.153780, epsilon = 1e-6);
    assert_eq!(change.tokens(), 5);
}

/// Five hidden states of three tokens and four channels.
fn hidden(l: usize) -> Array2<f32> {
    Array2::from_shape_fn((3, 4), |(t, d)| {
        let shift = if d == 0 { 0.3 * l as f64 } else { 0.0 };
        ((0.5 * l as f64 + 1.3 * t as f64 + 0.7 * d as f64).sin() + shift) as f32
    })
}

#[test]
fn lim_matches_the_reference_and_its_two_forms_rank_differently() {
    let tokens = [-0.877133, -0.915580, -0.932496, -0.912842];
    let everything = [-0.874659, -0.909991, -0.926797, -0.931549];
    for l in 0..4 {
        let change = change(&hidden(l), &hidden(l + 1));
        assert_abs_diff_eq!(change.lim(LimOver::Tokens).unwrap(), tokens[l], epsilon = 1e-6);
        let got = change.lim(LimOver::Everything).unwrap();
        assert_abs_diff_eq!(got, everything[l], epsilon = 1e-6);
    }
    // The most important first: what changes its input most.
    let order = |over| {
        let scores: Vec<f64> =
            (0..4).map(|l| change(&hidden(l), &hidden(l + 1)).lim(over).unwrap()).collect();
        let mut order = [0, 1, 2, 3];
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order
    };
    assert_eq!(order(LimOver::Tokens), [0, 3, 1, 2]);
    assert_eq!(order(LimOver::Everything), [0, 1, 2, 3]);
}

#[test]
fn adaptive_similarity_of_blocks_matches_the_reference() {
    // The same accumulator gives Adapt-Pruner's mean cosine.
    let wave = |i: usize, j: usize| (7.0 * i as f64 + 3.0 * j as f64).sin();
    let mut x = Array2::from_shape_fn((5, 4), |(i, j)| wave(i, j));
    for (l, (a, want)) in
        [(0.9, 0.720898), (0.1, 0.997451), (0.3, 0.973273), (0.6, 0.900613)].into_iter().enumerate()
    {
        let next = Array2::from_shape_fn((5, 4), |(i, j)| {
            x[[i, j]] + a * (5.0 * i as f64 + 2.0 * j as f64 + l as f64).cos()
        });
        let got = change(&x.mapv(|v| v as f32), &next.mapv(|v| v as f32));
        assert_abs_diff_eq!(got.mean_cosine().unwrap(), want, epsilon = 1e-6);
        x = next;
    }
}

#[test]
fn identity_negation_and_nothing_are_the_ends() {
    let h = hidden(2);
    let same = change(&h, &h);
    assert_abs_diff_eq!(same.block_influence().unwrap(), 0.0, epsilon = 1e-12);
    let negated = change(&h, &h.mapv(|x| -x));
    for over in [LimOver::Tokens, LimOver::Everything] {
        assert_abs_diff_eq!(same.lim(over).unwrap(), -1.0, epsilon = 1e-12);
        assert_abs_diff_eq!(negated.lim(over).unwrap(), 1.0, epsilon = 1e-12);
        let zero = change(&Array2::zeros((2, 3)), &Array2::ones((2, 3)));
        assert_eq!(zero.lim(over).unwrap(), 0.0);
        assert!(matches!(HiddenChange::new().lim(over), Err(Error::NoStatistics { .. })));
    }
    // The arc cosine is steep there.
    assert_abs_diff_eq!(negated.angular_distance().unwrap(), 1.0, epsilon = 1e-7);
}

#[test]
fn hidden_states_that_do_not_fit_are_refused_and_leave_no_trace() {
    let mut change = HiddenChange::new();
    let e = change.update("block 3", hidden(0).view(), Array2::zeros((3, 5)).view());
    assert!(e.unwrap_err().to_string().contains("block 3"));
    let mut bad = hidden(1);
    bad[[1, 2]] = f32::INFINITY;
    let e = change.update("block 3", hidden(0).view(), bad.view()).unwrap_err();
    assert!(matches!(e, Error::NotFinite { index: 6, .. }), "{e}");
    assert_eq!(change, HiddenChange::new());
}

proptest! {
    #[test]
    fn influence_ignores_scale_and_splits_by_tokens(
        values in vec(-3.0f32..3.0, 24), cut in 0usize..5, scale in 0.1f32..8.0,
    ) {
        let before = Array2::from_shape_vec((4, 3), values[..12].to_vec()).unwrap();
        let after = Array2::from_shape_vec((4, 3), values[12..].to_vec()).unwrap();
        let whole = change(&before, &after);
        let influence = whole.block_influence().unwrap();
        prop_assert!((-1e-12..=2.0 + 1e-12).contains(&influence));
        prop_assert!((0.0..=1.0).contains(&whole.angular_distance().unwrap()));
        let scaled = change(&before.mapv(|x| x * scale), &after);
        prop_assert!((scaled.block_influence().unwrap() - influence).abs() < 1e-5);
        let louder = change(&before, &after.mapv(|x| x * scale));
        let negated = change(&before, &after.mapv(|x| -x));
        for over in [LimOver::Tokens, LimOver::Everything] {
            let lim = whole.lim(over).unwrap();
            prop_assert!((scaled.lim(over).unwrap() - lim).abs() < 1e-5);
            prop_assert!((louder.lim(over).unwrap() - lim).abs() < 1e-5);
            prop_assert!((negated.lim(over).unwrap() + lim).abs() < 1e-12);
            prop_assert!((-1.0..=1.0).contains(&lim));
        }
        let part = |r: std::ops::Range<usize>| change(
            &before.slice(ndarray::s![r.clone(), ..]).to_owned(),
            &after.slice(ndarray::s![r, ..]).to_owned(),
        );
        let mut merged = part(0..cut.min(4));
        merged.merge(&part(cut.min(4)..4));
        prop_assert!((merged.block_influence().unwrap() - influence).abs() < 1e-12);
    }
}
