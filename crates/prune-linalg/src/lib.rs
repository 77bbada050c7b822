//! Eigenvalues, singular values, Cholesky factors and Gram products over ndarray, in pure Rust or
//! LAPACK.
//!
//! Functions take views of `f32` or `f64`, refuse NaN and infinity with a typed [`Error`], and
//! never panic. Where only values are asked for, no vectors are computed.
//!
//! ```
//! use ndarray::array;
//! use prune_linalg::{cholesky, cholesky_solve, eigenvalues_symmetric, gram};
//!
//! let x = array![[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]];
//! let a = gram(x.view());
//! let spectrum = eigenvalues_symmetric(a.view())?;
//! assert!(spectrum[0] > 0.0);
//! let l = cholesky(a.view())?;
//! let solution = cholesky_solve(l.view(), a.view())?;
//! assert!((solution[[0, 0]] - 1.0f64).abs() < 1e-12);
//! # Ok::<(), prune_linalg::Error>(())
//! ```
//!
//! | function | result | threads |
//! |---|---|---|
//! | [`eigenvalues_symmetric`], [`eigh`] | spectrum of a symmetric matrix | one |
//! | [`singular_values`] | spectrum of any matrix | one |
//! | [`squared_singular_values`], [`gram_eigenvalues`] | its squares, accurate or fast | one |
//! | [`cholesky`] | `L` with `A = L Lᵀ` | all |
//! | [`cholesky_solve`], [`cholesky_inverse`] | `A⁻¹ B`, `A⁻¹` | all |
//! | [`inverse_upper_factor`] | `U` with `A⁻¹ = Uᵀ U` | all |
//! | [`UpperFactor`] | `R = U⁻¹` and blocks of U, for SparseGPT and GPTQ | all |
//! | [`solve_lower`], [`solve_upper`] | triangular systems | all |
//! | [`gram`], [`product`] | `Xᵀ X`, `A B` | all |
//! | [`add_product`] | `C + alpha · A B` in place | one |
//!
//! Results have the same bits for any number of threads: what runs on many works on blocks of
//! fixed size, each in a fixed order. The functions call [`DefaultBackend`]: [`Faer`], or with
//! feature `ndarray-linalg` LAPACK through OpenBLAS (Debian and Ubuntu:
//! `apt-get install libopenblas-dev`). [`Backend`] is the interface of both, and the same tests
//! run over both.

mod backend;
mod banded_cholesky;
mod check;
mod error;
mod faer_backend;
mod functions;
#[cfg(feature = "ndarray-linalg")]
mod lapack;
mod products;
mod real;
mod scale;
mod triangle;
mod tridiagonal;
mod upper_factor;
mod workspace;

pub use backend::Backend;
pub use error::{Error, Result};
pub use faer_backend::Faer;
pub use functions::{
    cholesky, cholesky_inverse, cholesky_solve, eigenvalues_symmetric, eigh, gram_eigenvalues,
    inverse_upper_factor, singular_values, solve_lower, solve_upper, squared_singular_values,
};
#[cfg(feature = "ndarray-linalg")]
pub use lapack::Lapack;
pub use products::{add_product, gram, product};
pub use real::Real;
pub use triangle::Triangle;
pub use upper_factor::UpperFactor;
pub use workspace::Workspace;

/// The backend that the functions of this crate call.
#[cfg(not(feature = "ndarray-linalg"))]
pub type DefaultBackend = Faer;
/// The backend that the functions of this crate call.
#[cfg(feature = "ndarray-linalg")]
pub type DefaultBackend = Lapack;
