use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a network is built or trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that holds something else than was expected.
    #[error("{path}: {what} is {found}; expected {expected}", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The part of it.
        what: String,
        /// What it holds.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A parameter that the model does not have.
    #[error("the model has no parameter `{0}`")]
    UnknownParameter(String),
    /// A network whose layers do not fit one another.
    #[error("layer `{layer}`: {reason}")]
    Layer {
        /// The layer.
        layer: String,
        /// What does not fit.
        reason: String,
    },
    /// Training that has left the finite numbers.
    #[error("step {step}: {what} is {value}; lower the learning rate or clip the gradients")]
    Diverged {
        /// The step, from 0.
        step: usize,
        /// The loss, or the norm of the gradients.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A shape, a range or a value that is not finite.
    #[error(transparent)]
    Core(#[from] prune_core::Error),
    /// A decomposition failed.
    #[error("{what}: {source}")]
    Linalg {
        /// The matrix.
        what: String,
        /// Why.
        source: prune_linalg::Error,
    },
}

impl Error {
    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        Error::File { path: path.to_path_buf(), source }
    }

    pub(crate) fn format(
        path: &Path,
        what: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Error::Format {
            path: path.to_path_buf(),
            what: what.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    pub(crate) fn out_of_range(
        what: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Error::Core(prune_core::Error::OutOfRange {
            what: what.into(),
            found: found.to_string(),
            expected: expected.into(),
        })
    }

    pub(crate) fn shape(what: impl Into<String>, found: &[usize], expected: &[usize]) -> Self {
        Error::Core(prune_core::Error::Shape {
            what: what.into(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        })
    }
}

impl From<Error> for prune_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(e) => e,
            other => prune_core::Error::external("training", other),
        }
    }
}
