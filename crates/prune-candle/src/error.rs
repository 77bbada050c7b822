/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a checkpoint and a model that runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model family that this crate cannot run.
    #[error(
        "model_type `{found}` is not supported; this crate runs {} and, as encoders, {}",
        crate::FAMILIES.join(", "),
        crate::ENCODER_FAMILIES.join(", ")
    )]
    UnsupportedModel {
        /// `model_type` of `config.json`.
        found: String,
    },
    /// A field of `config.json` that is missing or has a value that this crate cannot honour.
    #[error("config.json: {field} is {found}; expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What would do.
        expected: String,
    },
    /// `config.json` that does not parse.
    #[error("config.json: {0}")]
    ConfigSyntax(#[from] serde_json::Error),
    /// A tokenizer that cannot be read or cannot encode the text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tokenizer whose ids do not fit the model.
    #[error(
        "tokenizer and model do not fit: token id {id} was produced, the model has ids 0..{vocab}"
    )]
    TokenizerTooLarge {
        /// The offending id.
        id: u32,
        /// The model's vocabulary size.
        vocab: usize,
    },
    /// Training failed.
    #[error(transparent)]
    Train(#[from] prune_train::Error),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor is missing or has the wrong shape, or a value is not finite.
    #[error(transparent)]
    Core(#[from] prune_core::Error),
}

impl From<Error> for prune_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(e) => e,
            other => prune_core::Error::external("model", other),
        }
    }
}

/// The error as a trainer passes it on.
pub(crate) fn as_training(error: Error) -> prune_train::Error {
    match error {
        Error::Train(e) => e,
        Error::Candle(e) => prune_train::Error::Candle(e),
        other => prune_train::Error::Core(other.into()),
    }
}
