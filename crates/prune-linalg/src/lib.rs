//! Eigenvalues, singular values, Cholesky factors and Gram products over ndarray, in pure Rust or LAPACK.
