/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a weight and its metrics.
///
/// The crate sees no names: [`Error::in_layer`] adds the layer's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option outside its valid range.
    #[error("{what} is {found}; expected {expected}")]
    OutOfRange {
        /// The option.
        what: &'static str,
        /// The value that was given.
        found: String,
        /// The valid range in words.
        expected: &'static str,
    },
    /// A weight without rows or without columns.
    #[error("the weight is empty: found shape {shape:?}")]
    Empty {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Too few eigenvalues for a fit.
    #[error(
        "{found} eigenvalues are left after {dropped} that are zero to working precision; a fit \
         needs {needed}"
    )]
    TooFewEigenvalues {
        /// Eigenvalues that a fit can use.
        found: usize,
        /// Eigenvalues at or below the cutoff.
        dropped: usize,
        /// What a fit needs.
        needed: usize,
    },
    /// A spectrum without a tail: no power law has its shape.
    #[error("the spectrum is degenerate: {reason}")]
    DegenerateSpectrum {
        /// Why.
        reason: &'static str,
    },
    /// An eigenvalue that is negative, NaN or infinite.
    #[error("eigenvalue {index} is {value}; expected finite numbers, zero or above")]
    NotAnEigenvalue {
        /// Its index in the list that was given.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// Two lists that must have the same length.
    #[error("{what}: found {found} values, expected {expected}")]
    Length {
        /// The second list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length of the first list.
        expected: usize,
    },
    /// A layer that the limits of the options leave out, as WeightWatcher does.
    #[error("skipped: {what} is {found}, the limit is {limit}")]
    Skipped {
        /// What was measured.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A spectrum that no Marchenko–Pastur bulk fits.
    #[error("no Marchenko–Pastur bulk fits the spectrum: {reason}")]
    NoBulk {
        /// Why.
        reason: &'static str,
    },
    /// NaN or infinity in a weight, or a decomposition that failed.
    #[error(transparent)]
    Linalg(#[from] prune_linalg::Error),
    /// A plot that could not be drawn or written.
    #[cfg(feature = "plot")]
    #[error("cannot draw {path}: {reason}")]
    Plot {
        /// The file.
        path: std::path::PathBuf,
        /// What the drawing library says.
        reason: String,
    },
}

impl Error {
    /// The error of this crate as one of `prune-core`, with the name of the layer.
    ///
    /// ```
    /// use prune_spectral::Error;
    /// let e = Error::Empty { shape: vec![0, 4] }.in_layer("mlp.up_proj");
    /// assert_eq!(e.to_string(), "mlp.up_proj: the weight is empty: found shape [0, 4]");
    /// ```
    pub fn in_layer(self, layer: impl Into<String>) -> prune_core::Error {
        prune_core::Error::external(layer, self)
    }
}
