use std::path::PathBuf;

/// Why the command did not succeed; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{path}: {reason}")]
    Input { path: PathBuf, reason: String },
    #[error(transparent)]
    Pipeline(#[from] prune_pipeline::Error),
    #[error(transparent)]
    Checkpoint(#[from] prune_checkpoint::Error),
    #[error(transparent)]
    Model(#[from] prune_candle::Error),
    #[error(transparent)]
    Core(#[from] prune_core::Error),
    #[error(transparent)]
    Spectral(#[from] prune_spectral::Error),
    #[error("output: {0}")]
    Json(#[from] serde_json::Error),
    #[cfg(feature = "hub")]
    #[error("{name}: {source}")]
    Hub { name: String, source: Box<hf_hub::api::sync::ApiError> },
    #[error("cannot listen for Ctrl-C: {0}")]
    Signal(#[from] ctrlc::Error),
    #[error("verification failed")]
    Verification,
}

impl Error {
    /// 1 failed, 3 verification failed, 4 invalid input, 5 too little memory allowed, 75 interrupted
    /// and can be resumed.
    pub(crate) fn exit_code(&self) -> u8 {
        use prune_pipeline::Error as P;
        match self {
            Error::Verification => 3,
            Error::Json(_) => 1,
            #[cfg(feature = "hub")]
            Error::Hub { .. } => 1,
            Error::Pipeline(P::Interrupted { .. }) => 75,
            Error::Pipeline(P::Memory { .. }) => 5,
            Error::Pipeline(
                P::Io { .. }
                | P::SourceChanged { .. }
                | P::Checkpoint(prune_checkpoint::Error::Io { .. }),
            )
            | Error::Checkpoint(prune_checkpoint::Error::Io { .. })
            | Error::Signal(_) => 1,
            Error::Input { .. } | Error::Pipeline(_) | Error::Checkpoint(_) => 4,
            Error::Model(_) | Error::Core(_) | Error::Spectral(_) => 4,
        }
    }
}
