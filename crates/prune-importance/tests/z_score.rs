//! ZD against reference values, and its laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use ndarray::{Array2, array};
use proptest::collection::vec;
use proptest::prelude::*;
use prune_core::{Error, Seed};
use prune_importance::{Deviation, Tail, ZScoreDistribution};

fn share(tail: Tail, deviation: Deviation, weights: &[Array2<f32>]) -> f64 {
    let mut moments = ZScoreDistribution::new().with_deviation(deviation);
    weights.iter().for_each(|w| moments.observe("w", w.view()).unwrap());
    let mut count = moments.second_pass(tail);
    weights.iter().for_each(|w| count.observe("w", w.view()).unwrap());
    count.share().unwrap()
}

fn upper(weights: &[Array2<f32>]) -> f64 {
    share(Tail::Upper, Deviation::Population, weights)
}

/// Odd powers of a wave.
fn weight(k: i32) -> Array2<f32> {
    Array2::from_shape_fn((4, 8), |(i, j)| {
        (7.0 * i as f64 + 3.0 * j as f64).sin().powi(2 * k + 1) as f32
    })
}

#[test]
fn shares_and_moments_match_the_reference() {
    // mean, deviation; one and two tails; the same with the sample's deviation.
    let want = [
        (0.039717, 0.694180, [0.25, 0.5], [0.25, 0.46875]),
        (0.028406, 0.549054, [0.21875, 0.40625], [0.15625, 0.34375]),
        (0.022607, 0.487279, [0.15625, 0.3125], [0.15625, 0.3125]),
        (0.019292, 0.448689, [0.15625, 0.3125], [0.15625, 0.3125]),
    ];
    for (k, (mean, deviation, population, sample)) in want.into_iter().enumerate() {
        let w = [weight(k as i32)];
        let mut moments = ZScoreDistribution::new();
        moments.observe("w", w[0].view()).unwrap();
        assert_abs_diff_eq!(moments.mean(), mean, epsilon = 1e-6);
        assert_abs_diff_eq!(moments.standard_deviation(), deviation, epsilon = 1e-6);
        for (tail, i) in [(Tail::Upper, 0), (Tail::Both, 1)] {
            assert_eq!(share(tail, Deviation::Population, &w), population[i]);
            assert_eq!(share(tail, Deviation::Sample, &w), sample[i]);
        }
    }
}

#[test]
fn normal_weights_have_the_known_share() {
    let mut stream = Seed::new(2).stream("normal");
    let mut normal = || {
        let (u, v) = (1.0 - stream.uniform(), stream.uniform());
        ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
    };
    let w = [Array2::from_shape_simple_fn((300, 300), &mut normal)];
    assert_abs_diff_eq!(upper(&w), 0.158655, epsilon = 4e-3);
    assert_abs_diff_eq!(share(Tail::Both, Deviation::Population, &w), 0.317311, epsilon = 6e-3);
}

#[test]
fn equal_weights_have_no_tail_and_nothing_is_refused() {
    assert_eq!(upper(&[Array2::from_elem((3, 3), 0.7)]), 0.0);
    assert_eq!(upper(&[array![[5.0]]]), 0.0);
    assert!(matches!(
        ZScoreDistribution::new().second_pass(Tail::Upper).share(),
        Err(Error::Shape { .. })
    ));
    let mut moments = ZScoreDistribution::new();
    let e = moments.observe("up", array![[1.0, f32::NAN]].view()).unwrap_err();
    assert!(e.to_string().contains("up"), "{e}");
    assert_eq!(moments, ZScoreDistribution::new());
    moments.observe("up", array![[1.0, 2.0]].view()).unwrap();
    let mut count = moments.second_pass(Tail::Upper);
    assert!(count.observe("up", array![[f32::NAN, 1.0]].view()).is_err());
    assert!(count.share().is_err());
}

proptest! {
    /// On a grid on which sums are exact, a scale and a constant change nothing but the order of the
    /// two tails when the scale is negative.
    #[test]
    fn a_scale_and_a_constant_do_not_change_the_share(
        values in vec(-300i32..300, 2..60), constant in -500i32..500,
        power in -3i32..4, negative in any::<bool>(),
    ) {
        let row = |f: &dyn Fn(i32) -> f64| {
            Array2::from_shape_fn((1, values.len()), |(_, j)| f(values[j]) as f32)
        };
        let sign = if negative { -1.0 } else { 1.0 };
        let scale = sign * 2f64.powi(power);
        let before = [row(&f64::from)];
        let after = [row(&|v| scale * f64::from(v) + f64::from(constant))];
        // Weights exactly at the edge fall to either side.
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let deviation =
            (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        let edge = |v: &&i32| ((f64::from(**v) - mean).abs() - deviation).abs() < 1e-9 * (1.0 + mean.abs());
        prop_assume!(values.iter().filter(edge).count() == 0 && deviation > 0.0);
        let both = |w: &[Array2<f32>]| share(Tail::Both, Deviation::Population, w);
        prop_assert_eq!(both(&before), both(&after));
        match negative {
            false => prop_assert_eq!(upper(&before), upper(&after)),
            true => prop_assert!((upper(&before) + upper(&after) - both(&before)).abs() < 1e-12),
        }
    }

    #[test]
    fn the_share_is_at_most_half_and_affine(
        values in vec(-3.0f32..3.0, 2..40), cut in 0usize..40, scale in 0.25f32..4.0,
    ) {
        let row = |v: &[f32]| Array2::from_shape_vec((1, v.len()), v.to_vec()).unwrap();
        let whole = upper(&[row(&values)]);
        prop_assert!((0.0..=0.5).contains(&whole));
        // Powers of two scale without rounding.
        let scale = 2f32.powi(scale.log2() as i32);
        let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
        prop_assert_eq!(upper(&[row(&scaled)]), whole);
        let both = share(Tail::Both, Deviation::Population, &[row(&values)]);
        let negated: Vec<f32> = values.iter().map(|v| -v).collect();
        prop_assert_eq!(share(Tail::Both, Deviation::Population, &[row(&negated)]), both);
        // Pooled over layers: one weight in two parts, up to a weight at the edge.
        let cut = cut.min(values.len());
        let parts = upper(&[row(&values[..cut]), row(&values[cut..])]);
        prop_assert!((parts - whole).abs() <= 1.0 / values.len() as f64 + 1e-12);
    }
}
