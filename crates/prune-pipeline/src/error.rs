use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a recipe and a verified checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A recipe that does not parse or contradicts itself.
    #[error("recipe: {field}: {reason}")]
    Recipe {
        /// The field, with the number of its rule.
        field: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A rule that matches no linear layer.
    #[error(
        "recipe: rule {rule} (`{pattern}`) matches none of the {layers} linear layers, such as \
         `{example}`"
    )]
    NoMatch {
        /// The number of the rule, from 1.
        rule: usize,
        /// Its pattern.
        pattern: String,
        /// How many layers there are.
        layers: usize,
        /// The name of one.
        example: String,
    },
    /// A method or allocator that reads calibration data was given none.
    #[error("{what} needs calibration data; give a text or token windows (--calibration)")]
    NeedsCalibration {
        /// The method or allocator.
        what: String,
    },
    /// A layer that a calibrated method is to prune, but that the model does not show.
    #[error("{layer}: {method} needs calibration, but the model does not run this layer")]
    NotObserved {
        /// The layer.
        layer: String,
        /// The method.
        method: String,
    },
    /// Too little text.
    #[error("{what}: {found} tokens are too few: {needed} are needed, {} more", needed - found)]
    TooShort {
        /// The text.
        what: String,
        /// Tokens found.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// A file of token windows that cannot be used.
    #[error("{path}: {reason}")]
    Windows {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A plan or manifest that does not fit the checkpoint.
    #[error("{what}: {reason}")]
    Plan {
        /// The plan, manifest or tensor.
        what: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A checkpoint that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] prune_checkpoint::Error),
    /// A method failed.
    #[error(transparent)]
    Core(#[from] prune_core::Error),
}

impl Error {
    pub(crate) fn recipe(field: impl Into<String>, reason: impl ToString) -> Self {
        Error::Recipe { field: field.into(), reason: reason.to_string() }
    }

    pub(crate) fn plan(what: impl Into<String>, reason: impl ToString) -> Self {
        Error::Plan { what: what.into(), reason: reason.to_string() }
    }
}
