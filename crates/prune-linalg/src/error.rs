/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a decomposition.
///
/// The crate knows no names: callers wrap these with the layer that they belong to.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A matrix that must be square is not.
    #[error("found a matrix of {rows} x {cols}, expected a square one")]
    NotSquare {
        /// Rows that were found.
        rows: usize,
        /// Columns that were found.
        cols: usize,
    },
    /// Two matrices whose sizes must agree do not.
    #[error("{what}: found {found}, expected {expected}")]
    Shape {
        /// The dimension: "rows of the right-hand side".
        what: &'static str,
        /// Its size.
        found: usize,
        /// The size that was needed.
        expected: usize,
    },
    /// An element that is NaN or infinite.
    #[error("element ({row}, {col}) is {value}; every element must be finite")]
    NotFinite {
        /// Row of the first offender in row-major order.
        row: usize,
        /// Its column.
        col: usize,
        /// The value as text (`NaN`, `inf`, `-inf`).
        value: String,
    },
    /// A matrix without a Cholesky factor.
    #[error(
        "the matrix is not positive definite: pivot {pivot} is not above zero; add a larger \
         multiple of the identity"
    )]
    NotPositiveDefinite {
        /// Index of the first pivot, from 0, that is zero, negative or NaN.
        pivot: usize,
    },
    /// A triangular matrix with a zero on its diagonal.
    #[error("the triangular matrix is singular: diagonal element {index} is zero")]
    Singular {
        /// Index of the first zero, from 0.
        index: usize,
    },
    /// An iteration that did not converge.
    #[error("the {operation} did not converge")]
    NoConvergence {
        /// What was computed.
        operation: &'static str,
    },
    /// A result that the element type cannot hold.
    #[error("the {operation} leaves the range of the element type; use f64 or scale the matrix")]
    Overflow {
        /// What was computed.
        operation: &'static str,
    },
    /// A matrix of more rows or columns than LAPACK can index.
    #[error("LAPACK cannot index a matrix of {rows} x {cols}")]
    TooLarge {
        /// Rows that were found.
        rows: usize,
        /// Columns that were found.
        cols: usize,
    },
}
