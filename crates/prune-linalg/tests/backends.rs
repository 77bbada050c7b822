//! The same tests over every backend. Expected values are closed forms.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::f64::consts::PI;

use approx::assert_relative_eq;
use ndarray::{Array1, Array2, ArrayView2, array, s};
use proptest::prelude::*;
use prune_linalg::{Backend, Error, Real, Triangle, Workspace};

/// Eigenvalues 2 - 2 cos(k π / (n + 1)).
fn second_difference<T: Real>(n: usize) -> Array2<T> {
    Array2::from_shape_fn((n, n), |(i, j)| match i.abs_diff(j) {
        0 => T::one() + T::one(),
        1 => -T::one(),
        _ => T::zero(),
    })
}

fn second_difference_spectrum(n: usize) -> Vec<f64> {
    (1..=n).map(|k| 2.0 - 2.0 * (k as f64 * PI / (n as f64 + 1.0)).cos()).collect()
}

/// Singular values 1 / (2 sin((2k - 1) π / (4n + 2))).
fn lower_ones<T: Real>(n: usize) -> Array2<T> {
    Array2::from_shape_fn((n, n), |(i, j)| if j <= i { T::one() } else { T::zero() })
}

fn lower_ones_spectrum(n: usize) -> Vec<f64> {
    (1..=n).map(|k| 0.5 / ((2 * k - 1) as f64 * PI / (4 * n + 2) as f64).sin()).collect()
}

/// `H diag(values) H` with the Householder reflection of a vector without zeros.
fn reflected(values: &[f64]) -> Array2<f64> {
    let n = values.len();
    let v = Array1::from_shape_fn(n, |i| ((i * i + 1) as f64).sin() + 1.5);
    let norm = v.dot(&v);
    let h = Array2::from_shape_fn((n, n), |(i, j)| {
        f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / norm
    });
    h.dot(&Array2::from_diag(&Array1::from(values.to_vec()))).dot(&h)
}

/// Deterministic, well conditioned, without structure.
fn waves(rows: usize, cols: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(i, j)| {
        let (i, j) = (i as f64, j as f64);
        (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2).sin()
    })
}

fn positive_definite(n: usize) -> Array2<f64> {
    let w = waves(n + 7, n);
    w.t().dot(&w) / n as f64 + Array2::<f64>::eye(n) * 0.1
}

fn worst(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let top = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max) / top
}

/// The error of f32 that the documentation promises, relative to the largest value.
fn f32_bound(n: usize) -> f64 {
    1e-5 + 1.2e-7 * n as f64
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn off(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    (a - b).iter().fold(0.0f64, |m, d| m.max(d.abs()))
}

fn eigenvalues_match_known_spectra<B: Backend>() {
    for n in [1, 2, 3, 17, 64, 300] {
        let expected = second_difference_spectrum(n);
        let found = B::eigenvalues_symmetric(second_difference::<f64>(n).view()).unwrap();
        assert!(worst(&found, &expected) < 1e-13, "{n}");
        let found = B::eigenvalues_symmetric(second_difference::<f32>(n).view()).unwrap();
        assert!(worst(&wide(&found), &expected) < f32_bound(n), "{n}");
    }
    // Twelve decades, repeated values and zeros.
    let mut values: Vec<f64> = (0..120).map(|k| 10f64.powf(-f64::from(k / 10))).collect();
    values.extend([0.0; 20]);
    let found = B::eigenvalues_symmetric(reflected(&values).view()).unwrap();
    values.reverse();
    assert!(worst(&found, &values) < 1e-13);
    assert!(found.windows(2).all(|w| w[0] <= w[1]));
}

fn eigenvectors_diagonalise<B: Backend>() {
    for n in [1, 5, 80] {
        let a = &waves(n, n) + &waves(n, n).t();
        let (values, vectors) = B::eigh(a.view()).unwrap();
        assert!(off(&vectors.t().dot(&vectors), &Array2::eye(n)) < 1e-12);
        let back = (&vectors * &Array1::from(values.clone())).dot(&vectors.t());
        assert!(off(&back, &a) < 1e-12 * n as f64);
        assert!(worst(&values, &B::eigenvalues_symmetric(a.view()).unwrap()) < 1e-13);
    }
}

fn singular_values_match_known_spectra<B: Backend>() {
    for n in [1, 2, 3, 17, 64, 300] {
        let expected = lower_ones_spectrum(n);
        let found = B::singular_values(lower_ones::<f64>(n).view()).unwrap();
        assert!(worst(&found, &expected) < 1e-13, "{n}");
        let found = B::singular_values(lower_ones::<f32>(n).view()).unwrap();
        assert!(worst(&wide(&found), &expected) < f32_bound(n), "{n}");
    }
    // Much taller than wide, and its transpose: u vᵀ has one singular value, |u| |v|.
    let tall = Array2::from_shape_fn((400, 3), |(i, j)| (i as f64 + 1.0) * (j as f64 - 0.5));
    let norm = (400.0 * 401.0 * 801.0 / 6.0 * (0.25 + 0.25 + 2.25f64)).sqrt();
    for a in [tall.view(), tall.t()] {
        assert!(worst(&B::singular_values(a).unwrap(), &[norm, 0.0, 0.0]) < 1e-13);
    }
}

fn squares_agree_with_singular_values<B: Backend>() {
    let mut workspace = Workspace::default();
    for (rows, cols) in [(40, 40), (90, 30), (30, 90), (600, 300), (20, 20)] {
        let a = waves(rows, cols);
        let mut expected: Vec<f64> =
            B::singular_values(a.view()).unwrap().iter().map(|s| s * s).collect();
        expected.reverse();
        for squares in [
            B::gram_eigenvalues(a.view(), &mut workspace).unwrap(),
            B::squared_singular_values(a.view(), &mut workspace).unwrap(),
        ] {
            assert!(worst(&squares, &expected) < 1e-12);
        }
    }
    // Small squares keep their digits: diag(1, 1e-7, 1e-14) squared.
    let graded = Array2::from_diag(&array![1.0, 1e-7, 1e-14]);
    let squares = B::squared_singular_values(graded.view(), &mut workspace).unwrap();
    for (found, expected) in squares.iter().zip([1e-28, 1e-14, 1.0]) {
        assert_relative_eq!(*found, expected, max_relative = 1e-2);
    }
    let none = Array2::<f32>::zeros((0, 4));
    assert!(B::squared_singular_values(none.view(), &mut workspace).unwrap().is_empty());
    assert!(B::gram_eigenvalues(none.view(), &mut workspace).unwrap().is_empty());
    // Squares of f32 that f32 could not hold.
    let large = Array2::<f32>::from_diag_elem(3, 1e30);
    let squares = B::gram_eigenvalues(large.view(), &mut workspace).unwrap();
    assert!(squares.iter().all(|s| (s / 1e60 - 1.0).abs() < 1e-6));
    let nan = array![[1.0, f64::NAN]];
    assert!(matches!(
        B::gram_eigenvalues(nan.view(), &mut workspace),
        Err(Error::NotFinite { .. })
    ));
    let huge = Array2::from_elem((2, 2), 1e200);
    assert!(matches!(
        B::gram_eigenvalues(huge.view(), &mut workspace),
        Err(Error::Overflow { .. })
    ));
}

fn scale_costs_no_digit<B: Backend>() {
    let expected = lower_ones_spectrum(40);
    for scale in [1e-300, 1e-160, 1e160, 1e300] {
        let values = B::singular_values((lower_ones::<f64>(40) * scale).view()).unwrap();
        let values: Vec<f64> = values.iter().map(|v| v / scale).collect();
        assert!(worst(&values, &expected) < 1e-13, "{scale}");
        let values =
            B::eigenvalues_symmetric((second_difference::<f64>(40) * scale).view()).unwrap();
        let values: Vec<f64> = values.iter().map(|v| v / scale).collect();
        assert!(worst(&values, &second_difference_spectrum(40)) < 1e-13, "{scale}");
    }
    for scale in [1e-36f32, 1e-25, 1e25, 1e36] {
        let values = B::singular_values((lower_ones::<f32>(40) * scale).view()).unwrap();
        let values: Vec<f32> = values.iter().map(|v| v / scale).collect();
        assert!(worst(&wide(&values), &expected) < f32_bound(40), "{scale}");
    }
    // The sum of the elements does not fit.
    let huge = Array2::from_elem((9, 9), f64::MAX);
    assert!(matches!(B::singular_values(huge.view()), Err(Error::Overflow { .. })));
}

fn cholesky_and_its_forms_invert<B: Backend>() {
    for n in [1, 2, 33, 256, 257, 600] {
        let a = positive_definite(n);
        let l = B::cholesky(a.view()).unwrap();
        assert!(l.indexed_iter().all(|((i, j), v)| j <= i || *v == 0.0));
        assert!(off(&l.dot(&l.t()), &a) < 1e-12);
        let eye = Array2::eye(n);
        let inverse = B::cholesky_inverse(l.view()).unwrap();
        assert_eq!(inverse, inverse.t());
        assert!(off(&inverse.dot(&a), &eye) < 1e-10);
        let u = B::inverse_upper_factor(a.view()).unwrap();
        assert!(u.indexed_iter().all(|((i, j), v)| j >= i || *v == 0.0));
        assert!(u.diag().iter().all(|d| *d > 0.0));
        assert!(off(&u.t().dot(&u), &inverse) < 1e-10);
        let b = waves(n, 5);
        let x = B::cholesky_solve(l.view(), b.view()).unwrap();
        assert!(off(&a.dot(&x), &b) < 1e-10);
        let x = B::solve_triangular(Triangle::Upper, u.view(), b.view()).unwrap();
        assert!(off(&u.dot(&x), &b) < 1e-10);
    }
}

fn cholesky_reads_one_triangle<B: Backend>() {
    let a = positive_definite(40);
    let mut half = a.clone();
    half.indexed_iter_mut().filter(|((i, j), _)| j > i).for_each(|(_, v)| *v = 0.0);
    assert_eq!(B::cholesky(half.view()).unwrap(), B::cholesky(a.view()).unwrap());
    let spectrum = B::eigenvalues_symmetric(half.view()).unwrap();
    assert_eq!(spectrum, B::eigenvalues_symmetric(a.view()).unwrap());
}

fn cholesky_names_the_pivot<B: Backend>() {
    for n in [10, 700] {
        for pivot in [0, n / 2, n - 1] {
            let mut a = Array2::<f64>::eye(n);
            a[[pivot, pivot]] = -1.0;
            let expected = Err(Error::NotPositiveDefinite { pivot });
            assert_eq!(B::cholesky(a.view()), expected);
            assert_eq!(B::inverse_upper_factor(a.view()), expected);
        }
    }
}

fn bad_input_is_refused<B: Backend>() {
    let wide = Array2::<f64>::zeros((2, 3));
    let not_square = Error::NotSquare { rows: 2, cols: 3 };
    assert_eq!(B::eigenvalues_symmetric(wide.view()), Err(not_square.clone()));
    assert_eq!(B::eigh(wide.view()), Err(not_square.clone()));
    assert_eq!(B::cholesky(wide.view()), Err(not_square.clone()));
    assert_eq!(B::cholesky_inverse(wide.view()), Err(not_square.clone()));
    assert_eq!(B::inverse_upper_factor(wide.view()), Err(not_square.clone()));
    assert_eq!(B::cholesky_solve(wide.view(), wide.view()), Err(not_square));
    let eye = Array2::<f64>::eye(3);
    assert!(matches!(B::cholesky_solve(eye.view(), wide.view()), Err(Error::Shape { .. })));
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut a = eye.clone();
        a[[2, 1]] = bad;
        let expected = Error::NotFinite { row: 2, col: 1, value: bad.to_string() };
        assert_eq!(B::eigenvalues_symmetric(a.view()), Err(expected.clone()));
        assert_eq!(B::eigh(a.view()), Err(expected.clone()));
        assert_eq!(B::singular_values(a.view()), Err(expected.clone()));
        assert_eq!(B::cholesky(a.view()), Err(expected.clone()));
        assert_eq!(B::cholesky_inverse(a.view()), Err(expected.clone()));
        assert_eq!(B::inverse_upper_factor(a.view()), Err(expected.clone()));
        assert_eq!(B::cholesky_solve(a.view(), eye.view()), Err(expected.clone()));
        assert_eq!(B::cholesky_solve(eye.view(), a.view()), Err(expected));
    }
    let mut singular = eye.clone();
    singular[[1, 1]] = 0.0;
    assert_eq!(B::cholesky_inverse(singular.view()), Err(Error::Singular { index: 1 }));
}

fn empty_and_strided_matrices_are_fine<B: Backend>() {
    let none = Array2::<f64>::zeros((0, 0));
    assert!(B::eigenvalues_symmetric(none.view()).unwrap().is_empty());
    assert_eq!(B::eigh(none.view()).unwrap().1.dim(), (0, 0));
    assert!(B::singular_values(Array2::<f64>::zeros((0, 4)).view()).unwrap().is_empty());
    assert_eq!(B::cholesky(none.view()).unwrap().dim(), (0, 0));
    assert_eq!(B::cholesky_inverse(none.view()).unwrap().dim(), (0, 0));
    assert_eq!(B::inverse_upper_factor(none.view()).unwrap().dim(), (0, 0));
    let no_columns = Array2::<f64>::zeros((3, 0));
    let eye = Array2::<f64>::eye(3);
    assert_eq!(B::cholesky_solve(eye.view(), no_columns.view()).unwrap().dim(), (3, 0));
    // A window of every second row and column, and a transpose.
    let big = waves(60, 80);
    let window: ArrayView2<'_, f64> = big.slice(s![3..47;2, 5..61;3]);
    let copied = window.to_owned();
    let expected = B::singular_values(copied.view()).unwrap();
    assert!(worst(&B::singular_values(window).unwrap(), &expected) < 1e-14);
    assert!(worst(&B::singular_values(window.t()).unwrap(), &expected) < 1e-14);
    assert_eq!(B::singular_values(array![[-3.0]].view()).unwrap(), [3.0]);
}

macro_rules! over {
    ($module:ident, $backend:ty, $($test:ident),* $(,)?) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test::<$backend>();
            })*
        }
    };
}

macro_rules! over_all {
    ($($test:ident),* $(,)?) => {
        over!(faer, prune_linalg::Faer, $($test),*);
        #[cfg(feature = "ndarray-linalg")]
        over!(lapack, prune_linalg::Lapack, $($test),*);
    };
}

over_all!(
    eigenvalues_match_known_spectra,
    eigenvectors_diagonalise,
    singular_values_match_known_spectra,
    squares_agree_with_singular_values,
    scale_costs_no_digit,
    cholesky_and_its_forms_invert,
    cholesky_reads_one_triangle,
    cholesky_names_the_pivot,
    bad_input_is_refused,
    empty_and_strided_matrices_are_fine,
);

fn matrix() -> impl Strategy<Value = Array2<f64>> {
    (1usize..24, 1usize..24).prop_flat_map(|(r, c)| {
        proptest::collection::vec(-10.0f64..10.0, r * c)
            .prop_map(move |v| Array2::from_shape_vec((r, c), v).unwrap())
    })
}

proptest! {
    #[test]
    fn spectra_keep_the_trace_and_the_norm(a in matrix()) {
        let gram = prune_linalg::gram(a.view());
        prop_assert_eq!(&gram, &gram.t());
        prop_assert!(off(&gram, &a.t().dot(&a)) < 1e-10);
        let eigenvalues = prune_linalg::eigenvalues_symmetric(gram.view()).unwrap();
        let singular = prune_linalg::singular_values(a.view()).unwrap();
        let norm: f64 = a.iter().map(|v| v * v).sum();
        assert_relative_eq!(eigenvalues.iter().sum::<f64>(), norm, max_relative = 1e-12);
        assert_relative_eq!(
            singular.iter().map(|s| s * s).sum::<f64>(), norm, max_relative = 1e-12);
        prop_assert!(singular.windows(2).all(|w| w[0] >= w[1]));
        let transposed = prune_linalg::singular_values(a.t()).unwrap();
        prop_assert!(worst(&transposed, &singular) < 1e-13);
    }

    #[test]
    fn factors_of_positive_definite_matrices_multiply_back(a in matrix()) {
        let n = a.ncols();
        let a = a.t().dot(&a) + Array2::<f64>::eye(n);
        let l = prune_linalg::cholesky(a.view()).unwrap();
        prop_assert!(off(&l.dot(&l.t()), &a) < 1e-10);
        let u = prune_linalg::inverse_upper_factor(a.view()).unwrap();
        prop_assert!(off(&u.dot(&a).dot(&u.t()), &Array2::eye(n)) < 1e-9);
        let x = prune_linalg::solve_lower(l.view(), a.view()).unwrap();
        prop_assert!(off(&x, &l.t().to_owned()) < 1e-9);
        let x = prune_linalg::solve_upper(l.t(), l.t()).unwrap();
        prop_assert!(off(&x, &Array2::eye(n)) < 1e-9);
    }
}
