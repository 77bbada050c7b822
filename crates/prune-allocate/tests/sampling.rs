//! Sampling of blocks against reference probabilities, and its laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{SamplingMode, SamplingWeights};
use prune_core::{Error, Seed};

#[test]
fn inclusion_matches_the_reference_and_is_not_proportional() {
    let weights = SamplingWeights::new(&[4.0, 3.0, 2.0, 1.0], SamplingMode::Score).unwrap();
    let got = weights.inclusion(2).unwrap();
    for (g, w) in got.iter().zip([0.715873, 0.608333, 0.441270, 0.234524]) {
        assert_abs_diff_eq!(*g, w, epsilon = 1e-6);
    }
    assert_abs_diff_eq!(got.iter().sum::<f64>(), 2.0, epsilon = 1e-12);
    for (p, w) in weights.probabilities().iter().zip([0.8, 0.6, 0.4, 0.2]) {
        assert_abs_diff_eq!(2.0 * p, w, epsilon = 1e-12);
    }
    assert!((got[0] - 0.8).abs() > 0.05);
}

#[test]
fn modes_weigh_as_they_say() {
    let of = |mode| SamplingWeights::new(&[1.0, 3.0, 2.0], mode).unwrap().probabilities().to_vec();
    let close = |got: Vec<f64>, want: [f64; 3]| {
        got.iter().zip(want).for_each(|(g, w)| assert_abs_diff_eq!(*g, w, epsilon = 1e-12));
    };
    close(of(SamplingMode::Score), [1.0 / 6.0, 0.5, 1.0 / 3.0]);
    close(of(SamplingMode::Reversed), [2.0 / 3.0, 0.0, 1.0 / 3.0]);
    close(of(SamplingMode::Uniform), [1.0 / 3.0; 3]);
    close(of(SamplingMode::Decreasing), [0.5, 1.0 / 3.0, 1.0 / 6.0]);
    close(of(SamplingMode::Increasing), [1.0 / 6.0, 1.0 / 3.0, 0.5]);
}

#[test]
fn frequencies_of_draws_are_the_inclusion_probabilities() {
    let weights = SamplingWeights::new(&[4.0, 3.0, 2.0, 1.0], SamplingMode::Score).unwrap();
    let mut stream = Seed::new(3).stream("draws");
    let mut counts = [0.0; 4];
    const DRAWS: usize = 40_000;
    for _ in 0..DRAWS {
        for b in weights.draw(2, &mut stream).unwrap() {
            counts[b] += 1.0 / DRAWS as f64;
        }
    }
    for (c, p) in counts.iter().zip(weights.inclusion(2).unwrap()) {
        // Four standard deviations.
        assert_abs_diff_eq!(*c, p, epsilon = 0.01);
    }
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let of = |scores: &[f64], mode| SamplingWeights::new(scores, mode);
    assert!(matches!(of(&[], SamplingMode::Uniform), Err(Error::Infeasible(_))));
    assert!(matches!(of(&[0.0, 0.0], SamplingMode::Score), Err(Error::Infeasible(_))));
    assert!(matches!(of(&[1.0, 1.0], SamplingMode::Reversed), Err(Error::Infeasible(_))));
    assert!(matches!(of(&[1.0, f64::NAN], SamplingMode::Score), Err(Error::NotFinite { .. })));
    assert!(matches!(of(&[1.0, -1.0], SamplingMode::Score), Err(Error::OutOfRange { .. })));
    let weights = of(&[1.0, 0.0, 2.0], SamplingMode::Score).unwrap();
    let mut stream = Seed::new(0).stream("x");
    assert_eq!(weights.draw(2, &mut stream).unwrap(), [0, 2]);
    assert!(weights.draw(3, &mut stream).unwrap_err().to_string().contains("at most 2"));
    let many = of(&[1.0; 21], SamplingMode::Score).unwrap();
    assert!(many.inclusion(2).is_err() && many.draw(2, &mut stream).is_ok());
}

proptest! {
    #[test]
    fn draws_are_different_blocks_with_a_chance(
        scores in vec(0.0f64..3.0, 1..9), count in 0usize..9, seed in 0u64..1000,
    ) {
        let Ok(weights) = SamplingWeights::new(&scores, SamplingMode::Score) else { return Ok(()) };
        let possible = scores.iter().filter(|s| **s > 0.0).count();
        let drawn = weights.draw(count, &mut Seed::new(seed).stream("x"));
        prop_assert_eq!(drawn.is_ok(), count <= possible);
        if let Ok(drawn) = drawn {
            prop_assert_eq!(drawn.len(), count);
            prop_assert!(drawn.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(drawn.iter().all(|&b| scores[b] > 0.0));
            let inclusion = weights.inclusion(count).unwrap();
            prop_assert!((inclusion.iter().sum::<f64>() - count as f64).abs() < 1e-9);
        }
    }
}
