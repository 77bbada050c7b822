use std::fmt;

use crate::simd::widest;
use crate::{Pattern, Scope};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in `prune-core` and in implementations of its traits.
///
/// Every variant names the tensor or field, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that must be finite is NaN or infinite.
    #[error("{what}: element {index} is {value}; every value must be finite")]
    NotFinite {
        /// The tensor or quantity.
        what: String,
        /// Row-major index of the first offending element.
        index: usize,
        /// The value as text (`NaN`, `inf`, `-inf`).
        value: String,
    },
    /// Two shapes that must agree do not.
    #[error("{what}: found shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor or quantity.
        what: String,
        /// The shape that was given.
        found: Vec<usize>,
        /// The shape that was needed.
        expected: Vec<usize>,
    },
    /// A number outside its valid range.
    #[error("{what} is {found}; expected {expected}")]
    OutOfRange {
        /// The parameter.
        what: String,
        /// The value that was given.
        found: String,
        /// The valid range in words.
        expected: String,
    },
    /// A pattern that cannot be laid over a shape.
    #[error("{what}: shape {rows} x {cols} cannot carry the pattern {pattern}: {reason}")]
    PatternShape {
        /// The tensor.
        what: String,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// The pattern that was asked for.
        pattern: Pattern,
        /// Which dimension does not divide.
        reason: String,
    },
    /// A mask or matrix that does not hold its pattern.
    #[error("the pattern {pattern} does not hold: {violation}")]
    PatternBroken {
        /// The pattern that was checked.
        pattern: Pattern,
        /// Where and how it breaks.
        violation: Violation,
    },
    /// A method that has no meaning for this pattern and scope.
    #[error("{method} does not support the pattern {pattern} with scope {scope}: {reason}")]
    Unsupported {
        /// The method.
        method: String,
        /// The pattern that was asked for.
        pattern: Pattern,
        /// The scope that was asked for.
        scope: Scope,
        /// Why not, and what to use instead.
        reason: String,
    },
    /// A method that needs calibration statistics got none.
    #[error("{layer}: {method} needs {needed}, but no calibration data reached this layer")]
    NoStatistics {
        /// The layer.
        layer: String,
        /// The method.
        method: String,
        /// What is needed: "column statistics", "a Gram matrix", "a gradient".
        needed: &'static str,
    },
    /// A Gram matrix that stays indefinite or singular however much is added to its diagonal.
    #[error(
        "{layer}: the Gram matrix has no Cholesky factor even with {damping} of its mean diagonal \
         added; calibrate on more tokens or ask for more damping"
    )]
    Indefinite {
        /// The layer.
        layer: String,
        /// The last damping that was tried, over the mean of the diagonal.
        damping: f64,
    },
    /// Parts of a sparse matrix that contradict each other.
    #[error("invalid {format}: {field}: {reason}")]
    InvalidSparse {
        /// The storage format.
        format: &'static str,
        /// The field at fault.
        field: &'static str,
        /// What was found and what was expected.
        reason: String,
    },
    /// A scheme that a quantizer cannot make.
    #[error("{method} does not support the scheme `{scheme}`: {reason}")]
    UnsupportedScheme {
        /// The method.
        method: String,
        /// The scheme that was asked for.
        scheme: crate::QuantScheme,
        /// Why not, and what to use instead.
        reason: String,
    },
    /// Parts of a quantised matrix that contradict each other, or packed codes of a wrong length.
    #[error("invalid quantised matrix: {field}: {reason}")]
    InvalidQuantized {
        /// The part at fault.
        field: &'static str,
        /// What was found and what was expected.
        reason: String,
    },
    /// A budget that the layers cannot meet.
    #[error("infeasible budget: {0}")]
    Infeasible(String),
    /// A model that predicts no token was asked for predictions.
    #[error(
        "`{model}` is an encoder: it has no output matrix and predicts no token, so that it has no \
         perplexity; compare its hidden states or sentence embeddings instead"
    )]
    NoHead {
        /// The family of the model.
        model: String,
    },
    /// A tensor that a source does not hold.
    #[error("no tensor named `{0}`")]
    UnknownTensor(String),
    /// An element type that an operation does not take.
    #[error("{tensor}: dtype {found} where {expected} was expected")]
    DType {
        /// The tensor.
        tensor: String,
        /// The dtype that was found.
        found: String,
        /// The dtypes that would do.
        expected: String,
    },
    /// A failure of whatever stands behind a trait: a file, a framework, a network.
    #[error("{context}: {source}")]
    External {
        /// What was being done, to which tensor.
        context: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Wraps a foreign error with the tensor or action that it belongs to.
    pub fn external(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Error::External { context: context.into(), source: source.into() }
    }

    pub(crate) fn out_of_range(
        what: impl Into<String>,
        found: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Error::OutOfRange { what: what.into(), found: found.to_string(), expected: expected.into() }
    }
}

/// The first place where a pattern breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Row of the matrix (block row for block patterns).
    pub row: usize,
    /// Group of `m` columns for N:M, block column for blocks.
    pub group: usize,
    /// Weights kept there.
    pub kept: usize,
    /// Weights that may be kept there.
    pub allowed: usize,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "row {}, group {}: {} kept, at most {} allowed",
            self.row, self.group, self.kept, self.allowed
        )
    }
}

/// Returns an error naming the first NaN or infinity of `values`.
///
/// # Errors
/// [`Error::NotFinite`] with the row-major index of the first offender.
///
/// ```
/// use prune_core::check_finite;
/// assert!(check_finite("w", &[1.0, -2.0]).is_ok());
/// let e = check_finite("w", &[1.0, f32::NAN]).unwrap_err();
/// assert_eq!(e.to_string(), "w: element 1 is NaN; every value must be finite");
/// ```
pub fn check_finite(what: &str, values: &[f32]) -> Result<()> {
    // All exponent bits set means NaN or infinity; a sum over whole chunks vectorises.
    const EXP: u32 = 0x7f80_0000;
    let any = |chunk: &[f32]| chunk.iter().fold(false, |b, v| b | (v.to_bits() & EXP == EXP));
    for (c, chunk) in values.chunks(1 << 14).enumerate() {
        let bad = widest(
            #[inline(always)]
            || any(chunk),
        );
        if bad {
            let i = chunk.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(Error::NotFinite {
                what: what.to_string(),
                index: (c << 14) + i,
                value: chunk[i].to_string(),
            });
        }
    }
    Ok(())
}
