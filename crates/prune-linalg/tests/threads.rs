//! What runs on many threads has the same bits as on one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ndarray::Array2;
use prune_linalg::{Backend, Faer, Triangle, gram, product};

fn waves(rows: usize, cols: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(i, j)| {
        let (i, j) = (i as f64, j as f64);
        (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2).sin()
    })
}

fn everything() -> Vec<Array2<f64>> {
    let x = waves(300, 620);
    let a = gram(x.view()) + Array2::<f64>::eye(620);
    let l = Faer::cholesky(a.view()).unwrap();
    let b = waves(620, 530);
    vec![
        product(x.view(), a.view()).unwrap(),
        Faer::solve_triangular(Triangle::Lower, l.view(), b.view()).unwrap(),
        Faer::cholesky_inverse(l.view()).unwrap(),
        Faer::inverse_upper_factor(a.view()).unwrap(),
        Array2::from_shape_vec((1, 300), Faer::singular_values(x.view()).unwrap()).unwrap(),
        Array2::from_shape_vec((1, 620), Faer::eigenvalues_symmetric(a.view()).unwrap()).unwrap(),
        a,
        l,
    ]
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let run = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(everything)
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        for (found, expected) in run(threads).iter().zip(&one) {
            assert!(found.iter().zip(expected).all(|(f, e)| f.to_bits() == e.to_bits()));
        }
    }
}

#[test]
fn products_are_those_of_the_definition() {
    let (a, b) = (waves(515, 40), waves(40, 33));
    let c = product(a.view(), b.view()).unwrap();
    let g = gram(a.t());
    for (i, j) in [(0, 0), (514, 32), (256, 17)] {
        let expected: f64 = (0..40).map(|k| a[[i, k]] * b[[k, j]]).sum();
        assert!((c[[i, j]] - expected).abs() < 1e-12);
        let expected: f64 = (0..40).map(|k| a[[i, k]] * a[[j, k]]).sum();
        assert!((g[[i, j]] - expected).abs() < 1e-12);
    }
    assert_eq!(g, g.t());
    assert!(product(a.view(), a.view()).is_err());
    assert_eq!(gram(Array2::<f32>::zeros((0, 3)).view()), Array2::<f32>::zeros((3, 3)));
}
