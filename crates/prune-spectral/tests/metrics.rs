//! WeightWatcher's metrics against reference values, and their laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use inputs::{normal, normal4, waves};
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use prune_core::Seed;
use prune_spectral::{
    Bootstrap, BulkFit, Column, DiagnoseOptions, Error, Spectrum, SquareLaw, Status, TailFit,
    TempBalance, diagnose, jensen_shannon_distance, shuffled_spectrum,
};

fn spiked(strength: f64) -> Array2<f64> {
    let w = normal(1, 200, 100);
    let spike = strength / (200f64.sqrt() * 100f64.sqrt());
    w + spike
}

#[test]
fn a_layer_has_the_reference_metrics() {
    let d = diagnose("waves", waves(12, 18).view(), &DiagnoseOptions::default()).unwrap();
    assert_eq!((d.n, d.m, d.rf, d.q, d.num_evals), (18, 12, 1, 1.5, 12));
    assert_abs_diff_eq!(d.alpha.unwrap(), 4.412785, epsilon = 1e-6);
    assert_abs_diff_eq!(d.log_norm, 2.036783, epsilon = 1e-6);
    assert_abs_diff_eq!(d.log_spectral_norm, 1.290865, epsilon = 1e-6);
    assert_abs_diff_eq!(d.stable_rank, 5.570802, epsilon = 1e-6);
    assert_abs_diff_eq!(d.alpha_weighted.unwrap(), 5.696310, epsilon = 1e-6);
    assert_abs_diff_eq!(d.log_alpha_norm.unwrap(), 6.027185, epsilon = 1e-6);
    assert_abs_diff_eq!(d.sigma.unwrap(), 1.526244, epsilon = 1e-6);
    assert_eq!(d.num_pl_spikes, Some(5));
    assert_abs_diff_eq!(d.entropy, 0.916455, epsilon = 1e-6);
    assert_eq!((d.matrix_rank, d.rank_loss, d.weak_rank_loss), (12, 0, 0));
    assert_eq!((d.status, d.warning), (Status::Success, None));
    assert_relative_eq!(d.sv_max * d.sv_max, d.lambda_max, max_relative = 1e-12);
    let median = DiagnoseOptions::default().fit(TailFit::median());
    let d = diagnose("waves", waves(12, 18).view(), &median).unwrap();
    assert_abs_diff_eq!(d.alpha_weighted.unwrap(), 3.947029, epsilon = 1e-6);
}

#[test]
fn alpha_does_not_know_the_scale_and_what_weighs_it_does() {
    let of = |w: Array2<f64>| diagnose("waves", w.view(), &DiagnoseOptions::default()).unwrap();
    let (one, two) = (of(waves(12, 18)), of(waves(12, 18) * 2.0));
    let (alpha, octave) = (one.alpha.unwrap(), 4f64.log10());
    assert_relative_eq!(two.alpha.unwrap(), alpha, max_relative = 1e-9);
    assert_abs_diff_eq!(two.log_norm, one.log_norm + octave, epsilon = 1e-9);
    assert_abs_diff_eq!(two.log_spectral_norm, one.log_spectral_norm + octave, epsilon = 1e-9);
    let moved = |a: Option<f64>, b: Option<f64>| b.unwrap() - a.unwrap();
    let weighted = moved(one.alpha_weighted, two.alpha_weighted);
    assert_abs_diff_eq!(weighted, alpha * octave, epsilon = 1e-8);
    let norm = moved(one.log_alpha_norm, two.log_alpha_norm);
    assert_abs_diff_eq!(norm, alpha * octave, epsilon = 1e-8);
}

#[test]
fn noise_has_the_reference_bulk_and_no_spikes() {
    let spectrum = Spectrum::of(spiked(0.0).view()).unwrap();
    let bulk = BulkFit::default().fit(&spectrum).unwrap();
    let (unit, start) = (bulk.scale * bulk.scale, 0.971437);
    assert_abs_diff_eq!(bulk.sigma, 0.981151, epsilon = 0.01 * start);
    assert_abs_diff_eq!(bulk.min * unit, 0.082583, epsilon = 0.02 * 0.082583);
    assert_abs_diff_eq!(bulk.max * unit, 2.805390, epsilon = 0.02 * 2.805390);
    assert_abs_diff_eq!(bulk.spike_edge * unit, 3.060899, epsilon = 0.02 * 3.060899);
    assert_abs_diff_eq!(spectrum.largest() * unit, 2.750112, epsilon = 1e-6);
    assert_eq!(bulk.num_spikes, 0);
    assert_abs_diff_eq!(bulk.softrank, 1.0201, epsilon = 0.02);
}

#[test]
fn a_spike_stands_out_of_the_reference_bulk() {
    let spectrum = Spectrum::of(spiked(60.0).view()).unwrap();
    let bulk = BulkFit::default().fit(&spectrum).unwrap();
    let unit = bulk.scale * bulk.scale;
    assert_abs_diff_eq!(bulk.sigma, 0.952048, epsilon = 0.01 * 2.322069);
    assert_abs_diff_eq!(bulk.min * unit, 0.077757, epsilon = 0.05 * 0.077757);
    assert_abs_diff_eq!(bulk.max * unit, 2.641432, epsilon = 0.05 * 2.641432);
    assert_abs_diff_eq!(bulk.spike_edge * unit, 2.891864, epsilon = 0.05 * 2.891864);
    assert_abs_diff_eq!(spectrum.largest() * unit, 15.713459, epsilon = 1e-6);
    assert_eq!(bulk.num_spikes, 1);
    assert_abs_diff_eq!(bulk.softrank, 0.168100, epsilon = 0.01);
}

/// weightwatcher 0.7.7, `mp_fit` of the spectrum of normal numbers of seed 1.
#[test]
fn bulks_agree_with_weightwatcher() {
    for (rows, cols, spike, sigma, spikes, softrank) in BULKS {
        let w = normal(1, rows, cols) + spike / ((rows * cols) as f64).sqrt();
        let fit = BulkFit::default().square(SquareLaw::Released);
        let bulk = fit.fit(&Spectrum::of(w.view()).unwrap()).unwrap();
        assert_relative_eq!(bulk.sigma, sigma, max_relative = 1e-6);
        assert_eq!(bulk.num_spikes, spikes);
        assert_relative_eq!(bulk.softrank, softrank, max_relative = 1e-6);
    }
}

/// Rows, columns, strength of the spike, sigma, spikes, soft rank.
const BULKS: [(usize, usize, f64, f64, usize, f64); 4] = [
    (200, 100, 0.0, 0.986651540000, 0, 1.031569582411),
    (200, 100, 60.0, 0.949073323664, 1, 0.167051016602),
    (100, 100, 0.0, 1.007611377670, 0, 1.096908474827),
    (64, 300, 40.0, 0.975573364502, 1, 0.360070315933),
];

#[test]
fn square_noise_has_a_bulk_of_unit_variance() {
    let bulk = BulkFit::default().fit(&Spectrum::of(normal(1, 150, 150).view()).unwrap()).unwrap();
    assert_abs_diff_eq!(bulk.sigma, 1.0, epsilon = 0.03);
    assert_eq!(bulk.num_spikes, 0);
}

#[test]
fn convolutions_pool_their_slices() {
    let w = normal4(3, (8, 4, 3, 3));
    let d = diagnose("conv", w.view(), &DiagnoseOptions::default()).unwrap();
    assert_eq!((d.n, d.m, d.rf, d.num_evals), (8, 4, 9, 36));
    // Half of the squared norm of the tensor.
    assert_relative_eq!(d.norm, 0.5 * w.iter().map(|v| v * v).sum::<f64>(), max_relative = 1e-12);
}

#[test]
fn a_layer_without_a_tail_still_has_norms() {
    let d = diagnose("eye", Array2::<f32>::eye(30).view(), &DiagnoseOptions::default()).unwrap();
    assert_eq!((d.status, d.alpha, d.alpha_weighted), (Status::Failed, None, None));
    assert_eq!((d.norm, d.stable_rank, d.matrix_rank), (30.0, 30.0, 30));
    assert!((d.entropy - 1.0).abs() < 1e-6);
    assert!(d.columns().contains(&("alpha", Column::Missing)));
    let zero = diagnose("zero", Array2::<f32>::zeros((30, 30)).view(), &DiagnoseOptions::default());
    assert!(matches!(zero, Err(Error::DegenerateSpectrum { .. })));
    let empty =
        diagnose("empty", Array2::<f32>::zeros((30, 0)).view(), &DiagnoseOptions::default());
    assert!(matches!(empty, Err(Error::Empty { .. })));
    let mut nan = Array2::<f32>::eye(30);
    nan[[2, 3]] = f32::NAN;
    assert!(diagnose("nan", nan.view(), &DiagnoseOptions::default()).is_err());
}

#[test]
fn weightwatcher_skips_what_it_skips() {
    let options = DiagnoseOptions::weightwatcher();
    let small = diagnose("small", normal(1, 7, 300).view(), &options).unwrap_err();
    assert!(matches!(small, Error::Skipped { found: 7, limit: 8, .. }), "{small}");
    let long = diagnose("long", Array2::<f32>::zeros((50_001, 9)).view(), &options).unwrap_err();
    assert!(matches!(long, Error::Skipped { found: 50_001, .. }), "{long}");
    assert!(diagnose("fits", normal(1, 8, 300).view(), &options).is_ok());
}

#[test]
fn shuffling_takes_correlations_away() {
    // Correlated rows: one direction holds most of the norm.
    let w = normal(2, 120, 80) + &Array1::from_shape_fn(80, |j| (j as f64).sin() * 2.0);
    let options = DiagnoseOptions::default().randomise(Seed::new(1));
    let d = diagnose("a", w.view(), &options).unwrap();
    let random = d.random.unwrap();
    assert!(random.ww_softrank < 0.5 && random.ww_maxdist > 0.0);
    assert!((0.0..=2f64.ln().sqrt()).contains(&random.rand_distance));
    assert_eq!(random.rand_num_spikes, Some(0));
    assert_eq!(d, diagnose("a", w.view(), &options).unwrap());
    assert_ne!(d.random, diagnose("b", w.view(), &options).unwrap().random);
    // Noise stays noise.
    let noise = diagnose("a", normal(2, 120, 80).view(), &options).unwrap().random.unwrap();
    assert!(noise.rand_distance < 0.1 * random.rand_distance + 0.05);
    let small = diagnose("s", normal(2, 12, 8).view(), &options).unwrap().random.unwrap();
    assert!(small.max_rand_eval > 0.0);
    let mut stream = Seed::new(1).stream("conv");
    let conv = shuffled_spectrum(normal4(1, (8, 4, 3, 3)).view(), 5, &mut stream).unwrap();
    assert_eq!(conv.len(), 5 * 36);
}

#[test]
fn an_interval_of_alpha_can_be_asked_for() {
    let bootstrap = Bootstrap::new(50, 0.9, Seed::new(2)).unwrap();
    let options = DiagnoseOptions::default().fit(TailFit::median()).interval(bootstrap);
    let d = diagnose("a", normal(3, 100, 60).view(), &options).unwrap();
    let (alpha, interval) = (d.alpha.unwrap(), d.interval.unwrap());
    assert!(interval.low < alpha && alpha < interval.high);
}

#[test]
fn distances_have_the_reference_value() {
    let d = jensen_shannon_distance(&[1.0, 2.0, 3.0, 4.0], &[1.0, 1.0, 4.0, 4.0]).unwrap();
    assert_abs_diff_eq!(d, 0.109903, epsilon = 1e-6);
    let apart = jensen_shannon_distance(&[1.0, 0.0], &[0.0, 3.0]).unwrap();
    assert_relative_eq!(apart, 2f64.ln().sqrt());
    assert!(jensen_shannon_distance(&[1.0], &[1.0, 2.0]).is_err());
    assert!(jensen_shannon_distance(&[0.0], &[1.0]).is_err());
    assert!(jensen_shannon_distance(&[f64::NAN], &[1.0]).is_err());
}

#[test]
fn learning_rates_have_the_reference_values() {
    let alphas = [2.0, 3.0, 4.0, 6.0];
    let check = |map: TempBalance, alphas: &[f64], expected: &[f64]| {
        let rates = map.learning_rates(alphas, 0.1).unwrap();
        for (r, e) in rates.iter().zip(expected) {
            assert_abs_diff_eq!(r, e, epsilon = 1e-6);
        }
    };
    let linear = TempBalance::linear(0.5, 1.5).unwrap();
    check(linear, &alphas, &[0.05, 0.075, 0.1, 0.15]);
    check(TempBalance::sqrt(), &alphas, &[0.074474, 0.091212, 0.105322, 0.128993]);
    check(TempBalance::log2(), &alphas, &[0.055789, 0.088423, 0.111577, 0.144211]);
    let step = TempBalance::step(0.5, 1.5).unwrap();
    check(step, &[4.0, 3.0, 5.0], &[0.083333, 0.05, 0.116667]);
    let sigmoid = TempBalance::sigmoid(1.0, 10.0).unwrap();
    check(sigmoid, &alphas, &[0.031623, 0.031663, 0.265547, 0.316228]);
    check(linear, &[3.0, 3.0], &[0.1, 0.1]);
    assert!(linear.learning_rates(&[], 0.1).unwrap().is_empty());
    assert!(linear.learning_rates(&[2.0, f64::NAN], 0.1).is_err());
    assert!(linear.learning_rates(&[2.0, 3.0], -0.1).is_err());
    assert!(TempBalance::linear(1.5, 0.5).is_err());
    assert!(TempBalance::sigmoid(f64::NAN, 1.0).is_err());
}

proptest! {
    #[test]
    fn metrics_stay_within_their_bounds(rows in 2usize..30, cols in 2usize..30, seed in 0u64..999) {
        let w = normal(seed, rows, cols);
        let spectrum = Spectrum::of(w.view()).unwrap();
        let rank = spectrum.rank();
        prop_assert!(rank <= rows.min(cols));
        prop_assert!((1.0..=rank as f64 + 1e-9).contains(&spectrum.stable_rank()));
        prop_assert!((0.0..=1.0 + 1e-6).contains(&spectrum.entropy()));
        let (count, value) = spectrum.unit_determinant_tail().unwrap();
        prop_assert!((1..=spectrum.len()).contains(&count));
        prop_assert!(spectrum.eigenvalues().contains(&value));
    }

    #[test]
    fn distances_are_symmetric_and_bounded(
        pairs in proptest::collection::vec((0.0f64..9.0, 0.0f64..9.0), 1..20),
    ) {
        let (p, q): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        if let Ok(d) = jensen_shannon_distance(&p, &q) {
            prop_assert!((0.0..=2f64.ln().sqrt() + 1e-12).contains(&d));
            prop_assert!((d - jensen_shannon_distance(&q, &p).unwrap()).abs() < 1e-12);
            prop_assert!(jensen_shannon_distance(&p, &p).unwrap() < 1e-7);
        }
    }

    #[test]
    fn rates_follow_exponents(alphas in proptest::collection::vec(1.1f64..9.0, 2..12)) {
        for map in [
            TempBalance::linear(0.2, 1.8).unwrap(),
            TempBalance::step(0.2, 1.8).unwrap(),
            TempBalance::sqrt(),
            TempBalance::log2(),
            TempBalance::sigmoid(1.0, 10.0).unwrap(),
        ] {
            let rates = map.learning_rates(&alphas, 0.1).unwrap();
            for i in 0..alphas.len() {
                for j in 0..alphas.len() {
                    if alphas[i] < alphas[j] {
                        prop_assert!(rates[i] <= rates[j]);
                    }
                }
            }
        }
    }
}
