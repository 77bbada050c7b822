//! Power-law fits against reference values and against their definition.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use approx::assert_abs_diff_eq;
use inputs::{Normal, normal, pareto, waves};
use proptest::prelude::*;
use prune_spectral::{
    Cutoff, Error, Hill, KsSteps, PeakBand, PowerLaw, SmallSample, Spectrum, TailFit, TailStart,
};

fn list(values: Vec<f64>) -> Spectrum {
    Spectrum::from_eigenvalues(values).unwrap()
}

fn exponentials() -> Spectrum {
    list((0..10).map(|k| (f64::from(k) / 10.0).exp()).collect())
}

fn released_peak() -> TailFit {
    TailFit::new(TailStart::Peak(PeakBand::Released)).unwrap()
}

/// D by its definition, over every member of the tail.
fn distance(values: &[f64], start: usize, alpha: f64, steps: KsSteps) -> f64 {
    let n = (values.len() - start) as f64;
    values[start..]
        .iter()
        .enumerate()
        .map(|(t, v)| {
            let law = 1.0 - (v / values[start]).powf(1.0 - alpha);
            let below = (law - t as f64 / n).abs();
            let above = (law - (t as f64 + 1.0) / n).abs();
            if steps == KsSteps::Both { below.max(above) } else { below }
        })
        .fold(0.0, f64::max)
}

/// The goodness-of-fit start by its definition, quadratic.
fn brute_force(values: &[f64], steps: KsSteps) -> (usize, f64, f64) {
    let mut best = (0, 0.0, f64::INFINITY);
    for start in 0..values.len() - 1 {
        let n = (values.len() - start) as f64;
        let sum: f64 = values[start..].iter().map(|v| (v / values[start]).ln()).sum();
        let alpha = 1.0 + n / sum;
        if alpha.is_finite() {
            let d = distance(values, start, alpha, steps);
            if d < best.2 {
                best = (start, alpha, d);
            }
        }
    }
    best
}

#[test]
fn exponentials_have_the_reference_exponents() {
    let spectrum = exponentials();
    let mid = TailFit::median().fit(&spectrum).unwrap();
    assert_abs_diff_eq!(mid.alpha, 6.0, epsilon = 1e-9);
    assert_abs_diff_eq!(mid.distance, 0.232121, epsilon = 1e-6);
    assert_eq!((mid.start, mid.tail), (5, 5));
    let textbook = TailFit::median().hill(Hill::Textbook).fit(&spectrum).unwrap();
    assert_abs_diff_eq!(textbook.alpha, 4.333333, epsilon = 1e-6);
    // A tail of four.
    let four = TailFit::new(TailStart::Median { divisor: 10.0 / 6.0 }).unwrap();
    assert_abs_diff_eq!(
        four.hill(Hill::Textbook).fit(&spectrum).unwrap().alpha,
        5.0,
        epsilon = 1e-9
    );
    let ks = TailFit::goodness_of_fit().fit(&spectrum).unwrap();
    assert_abs_diff_eq!(ks.alpha, 3.222222, epsilon = 1e-6);
    assert_abs_diff_eq!(ks.distance, 0.188888, epsilon = 1e-6);
    assert_eq!(ks.start, 0);
}

#[test]
fn waves_have_the_reference_spectrum_and_exponents() {
    let spectrum = Spectrum::of(waves(12, 18).view()).unwrap();
    assert_abs_diff_eq!(spectrum.smallest(), 1.213477, epsilon = 1e-6);
    assert_abs_diff_eq!(spectrum.largest(), 19.537324, epsilon = 1e-6);
    assert_abs_diff_eq!(spectrum.sum(), 108.838573, epsilon = 1e-6);
    let mid = TailFit::median().fit(&spectrum).unwrap();
    assert_abs_diff_eq!(mid.alpha, 3.057662, epsilon = 1e-6);
    assert_abs_diff_eq!(mid.distance, 0.282913, epsilon = 1e-6);
    let ks = TailFit::goodness_of_fit().fit(&spectrum).unwrap();
    assert_abs_diff_eq!(ks.alpha, 4.412785, epsilon = 1e-6);
    assert_abs_diff_eq!(ks.distance, 0.211372, epsilon = 1e-6);
    assert_abs_diff_eq!(ks.xmin, 10.976398, epsilon = 1e-6);
    assert_eq!((ks.start, ks.tail), (7, 5));
    assert_abs_diff_eq!(ks.sigma, 1.526244, epsilon = 1e-6);
    let peak = released_peak().fit(&spectrum).unwrap();
    assert_abs_diff_eq!(peak.alpha, 1.571584, epsilon = 1e-6);
    assert_abs_diff_eq!(peak.distance, 0.329549, epsilon = 1e-6);
    assert_eq!(peak.start, 0);
    // Weights of f32.
    let single = Spectrum::of(waves(12, 18).mapv(|v| v as f32).view()).unwrap();
    assert_abs_diff_eq!(TailFit::median().fit(&single).unwrap().alpha, 3.057662, epsilon = 1e-5);
}

#[test]
fn the_released_peak_band_depends_on_the_scale_and_the_correct_one_does_not() {
    let mut values: Vec<f64> = (0..40)
        .map(|k| 0.1 * (1.0 - (f64::from(k) + 0.5) / 40.0).powf(-1.0 / 0.9))
        .chain((0..12).map(|k| 3.0 + 0.001 * f64::from(k)))
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |fit: TailFit, c: f64| fit.fit(&list(values.iter().map(|v| v * c).collect())).unwrap();
    for (c, alpha, start) in [(1.0, 3.341319, 48), (10.0, 1.606554, 11), (100.0, 1.617797, 0)] {
        let released = at(released_peak(), c);
        assert_abs_diff_eq!(released.alpha, alpha, epsilon = 1e-6);
        assert_eq!(released.start, start);
        assert_abs_diff_eq!(at(TailFit::peak(), c).alpha, 3.341319, epsilon = 1e-6);
    }
}

#[test]
fn pareto_quantiles_give_back_their_exponent() {
    for (alpha, mid, ks) in
        [(2.0, 2.001696, 2.000847), (2.5, 2.502545, 2.501271), (3.5, 3.504241, 3.502118)]
    {
        let spectrum = list(pareto(1000, alpha));
        let found = |fit: TailFit| fit.fit(&spectrum).unwrap().alpha;
        assert_abs_diff_eq!(found(TailFit::median()), mid, epsilon = 1e-6);
        assert_abs_diff_eq!(found(TailFit::goodness_of_fit()), ks, epsilon = 1e-6);
        assert_abs_diff_eq!(found(TailFit::peak()), alpha, epsilon = 0.01);
    }
}

#[test]
fn noise_of_other_shapes_has_other_exponents() {
    for (shape, alpha) in [
        ((32, 32), 2.518729),
        ((32, 64), 2.820095),
        ((32, 128), 4.115129),
        ((32, 256), 4.688960),
        ((256, 32), 4.768536),
    ] {
        let spectrum = Spectrum::of(normal(1, shape.0, shape.1).view()).unwrap();
        assert_abs_diff_eq!(TailFit::median().fit(&spectrum).unwrap().alpha, alpha, epsilon = 1e-6);
    }
}

#[test]
fn zeros_are_left_out() {
    let mut values = pareto(100, 3.0);
    let expected = TailFit::median().fit(&list(values.clone())).unwrap();
    values.extend([0.0; 150]);
    values.extend([1e-17; 20]);
    let found = TailFit::median().fit(&list(values.clone())).unwrap();
    assert_eq!((found.alpha, found.start), (expected.alpha, expected.start + 170));
    // Kept, the median is zero and has no logarithm.
    let kept = TailFit::median().keep_all().fit(&list(values.clone()));
    assert!(matches!(kept, Err(Error::DegenerateSpectrum { .. })));
    // But zeros are no reason to fail for the fits that choose a start.
    let kept = TailFit::goodness_of_fit().keep_all().fit(&list(values.clone())).unwrap();
    assert!(kept.start >= 170 && (kept.alpha - 3.0).abs() < 0.1);
    let kept = TailFit::peak().keep_all().fit(&list(values)).unwrap();
    assert!(kept.alpha > 1.0);
}

#[test]
fn rank_two_leaves_too_few_eigenvalues() {
    // sin(7 i + 3 j) has rank 2 by the addition formula.
    let flat =
        ndarray::Array2::from_shape_fn((12, 18), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin());
    let spectrum = Spectrum::of(flat.view()).unwrap();
    assert_eq!(spectrum.rank(), 2);
    assert_abs_diff_eq!(spectrum.eigenvalues()[10], 44.122673, epsilon = 1e-6);
    assert_abs_diff_eq!(spectrum.largest(), 62.346390, epsilon = 1e-6);
    let e = TailFit::median().fit(&spectrum).unwrap_err();
    assert!(matches!(e, Error::TooFewEigenvalues { found: 2, dropped: 10, needed: 5 }), "{e}");
}

#[test]
fn equal_eigenvalues_are_refused() {
    for fit in [TailFit::median(), TailFit::goodness_of_fit(), TailFit::peak(), TailFit::clipped()]
    {
        let e = fit.fit(&list(vec![3.0; 40])).unwrap_err();
        assert!(matches!(e, Error::DegenerateSpectrum { .. }), "{e}");
        assert!(fit.fit(&list(vec![])).is_err());
        assert!(fit.fit(&list(vec![0.0; 9])).is_err());
    }
    assert!(Spectrum::from_eigenvalues(vec![1.0, f64::NAN]).is_err());
    assert!(Spectrum::from_eigenvalues(vec![1.0, -1.0]).is_err());
    assert!(Spectrum::from_eigenvalues(vec![1.0, f64::INFINITY]).is_err());
}

#[test]
fn options_are_checked() {
    assert!(TailFit::new(TailStart::Median { divisor: 1.0 }).is_err());
    assert!(TailFit::new(TailStart::Median { divisor: f64::NAN }).is_err());
    assert!(TailFit::new(TailStart::Clipped { max_fingers: 2, threshold: 1.0 }).is_err());
    assert!(TailFit::new(TailStart::Clipped { max_fingers: 9, threshold: 0.0 }).is_err());
    assert!(TailFit::default().cutoff(Cutoff::Absolute(-1.0)).is_err());
}

/// weightwatcher 0.7.7, `WWFit` and `fit_clipped_powerlaw` on `waves` and on a spectrum with
/// fingers.
#[test]
fn small_samples_and_clipped_tails_agree_with_weightwatcher() {
    let small = TailFit::goodness_of_fit().small_sample(SmallSample::BiasCorrected);
    for (rows, cols, alpha, xmin, d) in SMALL {
        let fit = small.fit(&Spectrum::of(waves(rows, cols).view()).unwrap()).unwrap();
        assert_abs_diff_eq!(fit.alpha, alpha, epsilon = 1e-9);
        assert_abs_diff_eq!(fit.xmin, xmin, epsilon = 1e-9);
        assert_abs_diff_eq!(fit.distance, d, epsilon = 1e-9);
    }
    let mut values: Vec<f64> = pareto(60, 2.5).iter().map(|v| 0.1 * v).collect();
    values.extend((0..12).map(|k| 1.0 + 0.05 * f64::from(k)));
    let fit = TailFit::clipped().fit(&list(values)).unwrap();
    assert_abs_diff_eq!(fit.alpha, 2.095788035776934, epsilon = 1e-9);
    assert_abs_diff_eq!(fit.raw_alpha, 6.550560441732316, epsilon = 1e-9);
    assert_eq!(fit.clipped, 2);
}

/// Rows, columns, alpha, xmin, D.
const SMALL: [(usize, usize, f64, f64, f64); 3] = [
    (12, 18, 2.088419976428, 4.026815572834, 0.188052059695),
    (8, 30, 2.222009534710, 6.199849730425, 0.260524418174),
    (19, 19, 1.877944504941, 3.832136758115, 0.178651573879),
];

fn spectrum() -> impl Strategy<Value = Vec<f64>> {
    // Repeated values, ties and wide ranges.
    proptest::collection::vec(prop_oneof![0.01f64..100.0, (1u8..9).prop_map(f64::from)], 6..120)
        .prop_filter("all equal", |v| v.iter().any(|x| *x != v[0]))
}

proptest! {
    #[test]
    fn the_search_finds_the_first_minimum_of_d(mut values in spectrum(), both in any::<bool>()) {
        values.sort_by(f64::total_cmp);
        let steps = if both { KsSteps::Both } else { KsSteps::Below };
        let found = TailFit::goodness_of_fit().steps(steps).fit(&list(values.clone())).unwrap();
        let (start, alpha, d) = brute_force(&values, steps);
        // Rounding may break a tie otherwise than the definition does.
        prop_assert!((found.distance - d).abs() < 1e-12);
        if found.start == start {
            prop_assert!((found.alpha / alpha - 1.0).abs() < 1e-9);
        } else {
            let at = distance(&values, found.start, found.alpha, steps);
            prop_assert!((at - d).abs() < 1e-12);
        }
    }

    #[test]
    fn scale_leaves_exponents_alone(values in spectrum(), power in -30i32..30, c in 0.5f64..2.0) {
        let scaled: Vec<f64> = values.iter().map(|v| v * c * 2f64.powi(power)).collect();
        let same = |fit: TailFit| -> bool {
            match (fit.fit(&list(values.clone())), fit.fit(&list(scaled.clone()))) {
                (Ok(PowerLaw { alpha: a, distance: d, .. }), Ok(PowerLaw { alpha: b, distance: e, .. })) => {
                    // Ties of D may fall otherwise.
                    (a / b - 1.0).abs() < 1e-9 || (d - e).abs() < 1e-12
                }
                (Err(_), Err(_)) => true,
                _ => false,
            }
        };
        prop_assert!(same(TailFit::median()));
        prop_assert!(same(TailFit::goodness_of_fit()));
    }

    #[test]
    fn a_heavier_end_lowers_alpha(values in spectrum(), factor in 1.01f64..50.0) {
        let alpha = |v: &[f64]| TailFit::median().fit(&list(v.to_vec())).ok().map(|f| f.alpha);
        let mut heavier = values.clone();
        heavier.sort_by(f64::total_cmp);
        if let Some(before) = alpha(&heavier) {
            let last = heavier.len() - 1;
            heavier[last] *= factor;
            prop_assert!(alpha(&heavier).unwrap() < before);
        }
    }

    #[test]
    fn repeating_the_spectrum_leaves_the_median_fit_alone(values in spectrum()) {
        let values = if values.len() % 2 == 1 { values[1..].to_vec() } else { values };
        let twice: Vec<f64> = values.iter().chain(&values).copied().collect();
        let fit = |v: Vec<f64>| TailFit::median().fit(&list(v)).map(|f| f.alpha);
        if let Ok(once) = fit(values) {
            prop_assert!((fit(twice).unwrap() / once - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn fits_never_panic(values in proptest::collection::vec(
        prop_oneof![Just(0.0), 0.0f64..1e300, Just(5e-324), Just(1.0)], 0..40)) {
        let spectrum = list(values);
        for start in [
            TailStart::Median { divisor: 2.0 },
            TailStart::Median { divisor: 1e9 },
            TailStart::GoodnessOfFit,
            TailStart::Peak(PeakBand::Exact),
            TailStart::Peak(PeakBand::Released),
            TailStart::Clipped { max_fingers: 30, threshold: 0.1 },
        ] {
            for hill in [Hill::Released, Hill::Textbook] {
                for small in [SmallSample::Plain, SmallSample::BiasCorrected] {
                    for cutoff in [Cutoff::Relative, Cutoff::Absolute(1e-5), Cutoff::Keep] {
                        let fit = TailFit::new(start).unwrap().hill(hill).small_sample(small);
                        if let Ok(f) = fit.cutoff(cutoff).unwrap().fit(&spectrum) {
                            prop_assert!(f.alpha.is_finite() && f.alpha > 1.0);
                            prop_assert!((0.0..=1.0).contains(&f.distance));
                            prop_assert!(f.xmin >= 0.0);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn large_spectra_are_fitted_at_once() {
    let mut normal = Normal::new(7);
    let values: Vec<f64> = (0..120_000).map(|_| normal.draw().powi(2).max(1e-9)).collect();
    let spectrum = list(values);
    let start = std::time::Instant::now();
    let peak = TailFit::peak().fit(&spectrum).unwrap();
    let ks = TailFit::goodness_of_fit().fit(&spectrum).unwrap();
    // Milliseconds; a quadratic search takes minutes.
    assert!(start.elapsed().as_secs_f64() < 5.0);
    assert!(ks.distance <= peak.distance);
    let at = distance(spectrum.eigenvalues(), ks.start, ks.alpha, KsSteps::Below);
    assert_abs_diff_eq!(at, ks.distance, epsilon = 1e-12);
}
