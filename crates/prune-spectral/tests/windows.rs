//! FARMS against reference values, and its laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use inputs::{normal, normal4, waves};
use ndarray::{Array2, Array4, s};
use proptest::prelude::*;
use prune_core::Seed;
use prune_spectral::{
    Bootstrap, ConvAverage, Decomposition, Error, Farms, Placement, Spacing, Spectrum, TailFit,
    Weight,
};

fn farms(window: usize, aspect: f64, count: usize) -> Farms {
    let farms = Farms::new(window, aspect).unwrap().spacing(Spacing::Count(count)).unwrap();
    farms.fit(TailFit::median())
}

fn released(window: usize, aspect: f64, count: usize) -> Farms {
    farms(window, aspect, count).placement(Placement::Released).conv_average(ConvAverage::Exponents)
}

#[test]
fn the_generator_of_the_inputs_is_the_reference_one() {
    let mut numbers = inputs::Normal::new(1);
    for expected in [0.51387008, 0.1757413, 0.30865152, 0.53453389] {
        assert_abs_diff_eq!(numbers.uniform(), expected, epsilon = 1e-8);
    }
    let mut numbers = inputs::Normal::new(1);
    for expected in [0.51908165, -1.49737052, 0.15487209, 0.12406335] {
        assert_abs_diff_eq!(numbers.draw(), expected, epsilon = 1e-8);
    }
}

#[test]
fn linear_windows_have_the_reference_exponents() {
    let w = waves(12, 18);
    // Where the steps divide evenly, both placements are the same.
    for farms in [farms(6, 1.0, 3), released(6, 1.0, 3)] {
        let plan = farms.plan(w.view()).unwrap();
        let starts: Vec<_> = plan.windows().iter().map(|w| (w.row, w.col)).collect();
        let expected = [(0, 0), (0, 6), (0, 12), (3, 0), (3, 6), (3, 12), (6, 0), (6, 6), (6, 12)];
        assert_eq!(starts, expected);
        let measure = farms.measure(w.view()).unwrap();
        assert_eq!(measure.spectra.pooled().next().unwrap().len(), 54);
        assert_abs_diff_eq!(measure.norm, 160.667115, epsilon = 1e-6);
        assert_abs_diff_eq!(measure.alpha, 2.309185, epsilon = 1e-6);
        assert_abs_diff_eq!(measure.distance, 0.242492, epsilon = 1e-6);
        let ks = farms.fit(TailFit::goodness_of_fit()).measure(w.view()).unwrap();
        assert_abs_diff_eq!(ks.alpha, 11.127385, epsilon = 1e-6);
        assert_eq!(ks.fits[0].start, 45);
        // Square windows do not know the transpose.
        let transposed = farms.measure(w.t()).unwrap();
        assert_abs_diff_eq!(transposed.alpha, 2.309185, epsilon = 1e-6);
    }
    let wide = released(6, 2.0, 3).measure(w.view()).unwrap();
    assert_eq!(wide.spectra.pooled().next().unwrap().len(), 54);
    assert_abs_diff_eq!(wide.alpha, 3.837094, epsilon = 1e-6);
    let starts = |farms: Farms| {
        let plan = farms.plan(w.view()).unwrap();
        let windows = plan.windows().iter();
        windows.map(|w| (w.row, w.col, w.rows, w.cols)).collect::<Vec<_>>()
    };
    let expected: Vec<_> =
        [0, 2, 4, 6].iter().flat_map(|row| [0, 4, 8, 12].map(|col| (*row, col, 4, 4))).collect();
    assert_eq!(starts(released(4, 1.0, 4)), expected);
    assert_eq!(starts(released(20, 1.0, 3)), [0, 3, 6].map(|col| (0, col, 12, 12)));
    let small = released(4, 1.0, 4).measure(w.view()).unwrap();
    assert_eq!(small.spectra.pooled().next().unwrap().len(), 64);
    assert_abs_diff_eq!(small.alpha, 2.046452, epsilon = 1e-6);
    // Twenty rows are clamped to twelve.
    let clamped = released(20, 1.0, 3).measure(w.view()).unwrap();
    assert_eq!(clamped.spectra.pooled().next().unwrap().len(), 36);
    assert_abs_diff_eq!(clamped.alpha, 3.200210, epsilon = 1e-6);
}

#[test]
fn windows_take_the_bias_of_the_shape_away() {
    let (mut alphas, mut reference, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for (rows, cols, expected) in [
        (32, 32, 2.307840),
        (32, 64, 2.044992),
        (32, 128, 2.122163),
        (32, 256, 2.155372),
        (256, 32, 2.120448),
    ] {
        let w = normal(1, rows, cols);
        let found = released(24, 1.0, 3).measure(w.view()).unwrap();
        assert_eq!(found.spectra.pooled().map(Spectrum::len).collect::<Vec<_>>(), [216]);
        assert_abs_diff_eq!(found.alpha, expected, epsilon = 1e-6);
        reference.push(found.alpha);
        whole.push(TailFit::median().fit(&Spectrum::of(w.view()).unwrap()).unwrap().alpha);
        // Placing the windows over all of the weight changes little.
        let covering = farms(24, 1.0, 3).measure(w.view()).unwrap().alpha;
        assert_abs_diff_eq!(covering, expected, epsilon = 0.3);
        alphas.push(covering);
    }
    let spread = |alphas: &[f64]| {
        alphas.iter().copied().fold(0.0, f64::max)
            - alphas.iter().copied().fold(f64::INFINITY, f64::min)
    };
    assert_abs_diff_eq!(spread(&whole), 2.249807, epsilon = 1e-6);
    assert_abs_diff_eq!(spread(&reference), 0.262848, epsilon = 1e-6);
    assert!(spread(&alphas) < 0.5, "{alphas:?}");
}

#[test]
fn convolutions_have_the_reference_exponents() {
    let w = normal4(3, (8, 4, 3, 3));
    let one = released(9, 1.0, 1).measure(w.view()).unwrap();
    let alphas: Vec<f64> = one.fits.iter().map(|f| f.alpha).collect();
    assert_eq!(alphas.len(), 2);
    assert_abs_diff_eq!(alphas[0], 2.470696, epsilon = 1e-6);
    assert_abs_diff_eq!(alphas[1], 2.816885, epsilon = 1e-6);
    assert_eq!(one.spectra.pooled().map(Spectrum::len).collect::<Vec<_>>(), [36, 36]);
    for (aspect, shape, alpha) in [
        (1.0, (4, 4), 2.643790),
        (0.5, (4, 2), 3.022054),
        (0.75, (4, 3), 2.265949),
        (1.25, (3, 4), 2.274710),
        (2.0, (2, 4), 2.509052),
    ] {
        let farms = released(9, aspect, 1);
        let plan = farms.plan(w.view()).unwrap();
        assert!(plan.windows().iter().all(|w| (w.rows, w.cols) == shape), "{aspect}");
        assert_eq!(plan.windows().len(), 2);
        let found = farms.measure(w.view()).unwrap().alpha;
        assert_abs_diff_eq!(found, alpha, epsilon = 1e-6);
    }
    let plain = Spectrum::of(w.view()).unwrap();
    assert_eq!(plain.len(), 36);
    assert_abs_diff_eq!(TailFit::median().fit(&plain).unwrap().alpha, 3.382139, epsilon = 1e-6);
    // By default the spectra are pooled: one fit.
    let pooled = farms(9, 1.0, 1).measure(w.view()).unwrap();
    assert_eq!((pooled.fits.len(), pooled.spectra.windows()), (1, 18));
}

#[test]
fn odd_shapes_are_windowed() {
    // One window at the origin where the released code divides by zero.
    let w = waves(12, 18);
    assert_eq!(released(6, 1.0, 1).plan(w.view()).unwrap().windows().len(), 1);
    // A window wider than the weight keeps its aspect.
    let plan = farms(100, 2.0, 10).plan(normal(1, 100, 10).view()).unwrap();
    assert_eq!((plan.windows()[0].rows, plan.windows()[0].cols), (5, 10));
    // Depth-wise: all channels in one fit.
    let depthwise = normal4(1, (16, 1, 3, 3));
    let measure = farms(1, 1.0, 1).measure(depthwise.view()).unwrap();
    assert_eq!(measure.spectra.pooled().next().unwrap().len(), 144);
    // Rows that the released code never sees: six channels, bands of four.
    let conv = normal4(2, (6, 4, 3, 3));
    assert_eq!(released(1, 1.0, 1).plan(conv.view()).unwrap().windows().len(), 1);
    let covering = farms(1, 1.0, 1).plan(conv.view()).unwrap();
    assert_eq!(covering.windows().iter().map(|w| w.row).collect::<Vec<_>>(), [0, 2]);
    // More input channels than output channels.
    let wide = normal4(2, (4, 6, 3, 3));
    assert_eq!(farms(1, 1.0, 1).plan(wide.view()).unwrap().windows().len(), 2);
    farms(1, 1.0, 1).measure(wide.view()).unwrap();
}

#[test]
fn bad_weights_and_options_are_refused() {
    assert!(matches!(Farms::new(0, 1.0), Err(Error::OutOfRange { .. })));
    for aspect in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(Farms::new(4, aspect), Err(Error::OutOfRange { .. })));
    }
    assert!(Farms::default().spacing(Spacing::Count(0)).is_err());
    assert!(Farms::default().spacing(Spacing::Stride(0)).is_err());
    let farms = Farms::default();
    assert!(matches!(farms.measure(Array2::<f32>::zeros((0, 3)).view()), Err(Error::Empty { .. })));
    assert!(matches!(
        farms.measure(Array4::<f32>::zeros((2, 3, 0, 1)).view()),
        Err(Error::Empty { .. })
    ));
    assert!(matches!(
        farms.measure(Array2::<f32>::ones((1, 1)).view()),
        Err(Error::TooFewEigenvalues { .. })
    ));
    assert!(matches!(
        farms.measure(Array2::<f32>::zeros((50, 50)).view()),
        Err(Error::TooFewEigenvalues { .. })
    ));
    let mut nan = normal(1, 20, 20);
    nan[[3, 4]] = f64::NAN;
    assert!(matches!(farms.measure(nan.view()), Err(Error::Linalg(_))));
}

/// The spectrum through Gram matrices, where it is taken, gives the exponent of singular values.
#[test]
fn gram_matrices_are_accurate_enough_for_the_tail() {
    let decades = |n: usize, decades: f64| {
        let (left, right) = (normal(5, n, n), normal(6, n, n));
        let scale = |k: usize| 10f64.powf(-decades * k as f64 / n as f64);
        let scaled = Array2::from_shape_fn((n, n), |(i, k)| left[[i, k]] * scale(k));
        scaled.dot(&right)
    };
    for w in [
        normal(1, 64, 64),
        normal(2, 64, 256),
        decades(64, 2.0),
        decades(64, 5.0),
        decades(64, 9.0),
        waves(64, 64),
    ] {
        for fit in [TailFit::median(), TailFit::goodness_of_fit(), TailFit::peak()] {
            let exact = {
                let spectrum =
                    Spectrum::with(Weight::from(w.view()), Decomposition::SingularValues);
                fit.fit(&spectrum.unwrap()).unwrap()
            };
            // One window, the whole weight.
            let whole = Spectrum::of(w.view()).unwrap();
            assert_relative_eq!(fit.fit(&whole).unwrap().alpha, exact.alpha, max_relative = 1e-6);
            if w.nrows() == w.ncols() {
                let farms = Farms::new(64, 1.0).unwrap().spacing(Spacing::Count(1)).unwrap();
                let measure = farms.fit(fit).measure(w.view()).unwrap();
                assert_relative_eq!(measure.alpha, exact.alpha, max_relative = 1e-7);
            }
        }
    }
}

#[test]
fn intervals_hold_the_exponent_and_do_not_depend_on_threads() {
    let w = normal(4, 120, 160);
    let farms = farms(40, 1.0, 6);
    let measure = farms.measure(w.view()).unwrap();
    let bootstrap = Bootstrap::new(100, 0.95, Seed::new(3)).unwrap();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let again = farms.measure(w.view()).unwrap();
            assert_eq!(again, measure);
            bootstrap.over_windows("a", &again.spectra, &TailFit::median()).unwrap()
        })
    };
    let interval = run(1);
    assert_eq!(interval, run(4));
    assert!(interval.low <= measure.alpha && measure.alpha <= interval.high);
    assert!(interval.standard_error > 0.0 && interval.high - interval.low < 1.0);
    // Other layers draw other numbers.
    let other = bootstrap.over_windows("b", &measure.spectra, &TailFit::median()).unwrap();
    assert_ne!(other, interval);
    // A whole matrix has one window only: its eigenvalues are drawn.
    let whole = Spectrum::of(w.view()).unwrap();
    let interval = bootstrap.over_eigenvalues("a", &whole, &TailFit::median()).unwrap();
    let alpha = TailFit::median().fit(&whole).unwrap().alpha;
    assert!(interval.low < alpha && alpha < interval.high);
    let single = Farms::new(40, 1.0).unwrap().measure(normal(1, 40, 40).view()).unwrap();
    assert!(bootstrap.over_windows("a", &single.spectra, &TailFit::median()).is_err());
    assert!(Bootstrap::new(1, 0.9, Seed::new(1)).is_err());
    assert!(Bootstrap::new(10, 1.0, Seed::new(1)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pooled_eigenvalues_are_as_many_as_the_windows_have(
        rows in 2usize..40, cols in 2usize..40, window in 1usize..50, count in 1usize..6,
        aspect in 0.3f64..3.0,
    ) {
        let w = normal(9, rows, cols);
        let farms = farms(window, aspect, count);
        let Ok(plan) = farms.plan(w.view()) else { return Ok(()) };
        let shape = (plan.windows()[0].rows, plan.windows()[0].cols);
        let expected = plan.windows().len() * shape.0.min(shape.1);
        prop_assert_eq!(plan.eigenvalues(), expected);
        prop_assert!(plan.windows().iter().all(|w| (w.rows, w.cols) == shape));
        let spectra = farms.spectra(w.view()).unwrap();
        prop_assert_eq!(spectra.pooled().map(Spectrum::len).sum::<usize>(), expected);
        // Every element is in some window.
        let mut seen = Array2::<u8>::zeros((rows, cols));
        for w in plan.windows() {
            seen.slice_mut(s![w.row..w.row + w.rows, w.col..w.col + w.cols]).fill(1);
        }
        prop_assert!(seen.iter().all(|v| *v == 1));
    }

    #[test]
    fn released_windows_stay_within_the_weight(
        rows in 2usize..40, cols in 2usize..40, window in 1usize..50, n in 1usize..6,
        aspect in 0.3f64..4.0, stride in any::<bool>(),
    ) {
        let w = normal(9, rows, cols);
        let spacing = if stride { Spacing::Stride(n) } else { Spacing::Count(n) };
        let farms = released(window, aspect, 1).spacing(spacing).unwrap();
        if let Ok(plan) = farms.plan(w.view()) {
            for w in plan.windows() {
                prop_assert!(w.row + w.rows <= rows && w.col + w.cols <= cols);
            }
            farms.spectra(w.view()).unwrap();
        }
    }

    #[test]
    fn scale_leaves_exponents_alone(c in prop_oneof![0.01f64..100.0, -100.0f64..-0.01]) {
        let w = waves(20, 30);
        let farms = farms(8, 1.0, 4);
        let scaled = farms.measure((&w * c).view()).unwrap();
        let plain = farms.measure(w.view()).unwrap();
        prop_assert!((scaled.alpha / plain.alpha - 1.0).abs() < 1e-9);
        for fit in [TailFit::median(), TailFit::goodness_of_fit(), TailFit::peak()] {
            let of = |w: &Array2<f64>| {
                fit.fit(&Spectrum::of(w.view()).unwrap()).unwrap().alpha
            };
            prop_assert!((of(&(&w * c)) / of(&w) - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn square_windows_do_not_know_the_transpose(rows in 8usize..30, cols in 8usize..30) {
        let w = normal(rows as u64, rows, cols);
        let farms = farms(8, 1.0, 3);
        let (a, b) = (farms.measure(w.view()).unwrap(), farms.measure(w.t()).unwrap());
        prop_assert!((a.alpha / b.alpha - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_window_over_a_square_weight_is_the_plain_fit(n in 6usize..30) {
        let w = normal(n as u64, n, n);
        let farms = farms(n, 1.0, 5);
        let plain = TailFit::median().fit(&Spectrum::of(w.view()).unwrap()).unwrap();
        prop_assert!((farms.measure(w.view()).unwrap().alpha / plain.alpha - 1.0).abs() < 1e-9);
    }
}

#[test]
fn rotations_leave_the_spectrum_alone_but_not_its_windows() {
    let w = normal(11, 40, 40);
    let v = ndarray::Array1::from_shape_fn(40, |i| (i as f64 + 0.3).sin());
    let norm = v.dot(&v);
    let reflection = Array2::from_shape_fn((40, 40), |(i, j)| {
        f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / norm
    });
    let rotated = reflection.dot(&w);
    let plain = |w: &Array2<f64>| TailFit::median().fit(&Spectrum::of(w.view()).unwrap()).unwrap();
    assert_relative_eq!(plain(&rotated).alpha, plain(&w).alpha, max_relative = 1e-9);
    for turned in [w.dot(&reflection), rotated.dot(&reflection)] {
        assert_relative_eq!(plain(&turned).alpha, plain(&w).alpha, max_relative = 1e-9);
    }
    let windows = |w: &Array2<f64>| farms(10, 1.0, 4).measure(w.view()).unwrap().alpha;
    assert!((windows(&rotated) - windows(&w)).abs() > 1e-4);
}
