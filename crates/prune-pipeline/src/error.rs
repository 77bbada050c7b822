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
    #[error(
        "{what} needs calibration data; give a text or token windows, or images to lpvit \
         (--calibration)"
    )]
    NeedsCalibration {
        /// The method or allocator.
        what: String,
    },
    /// Calibration data of another kind than a method or allocator reads.
    #[error("{what} needs {needed} to calibrate on; found {found} (--calibration)")]
    OtherData {
        /// The method or allocator.
        what: String,
        /// The kind that it reads.
        needed: &'static str,
        /// The kind that it was given.
        found: &'static str,
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
    /// A file of images that cannot be used.
    #[error("{path}: {reason}")]
    Images {
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
    /// A linear layer of a block that no rule of the recipe mentions.
    #[error(
        "{layer}: no rule of the recipe says what to do with it ({count} such layers in all); add \
         a rule, or one with `skip: true`"
    )]
    Uncovered {
        /// The first such layer.
        layer: String,
        /// How many there are.
        count: usize,
    },
    /// Weights of several experts in one tensor, which would be left dense in silence.
    #[error(
        "{tensor}: shape {shape:?} looks like fused experts, which are not understood; exclude it \
         by name with `skip: true`, or split it into matrices"
    )]
    FusedExperts {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A layer that saw too little calibration data.
    #[error(
        "{layer}: {found} calibration tokens reached this layer; at least {needed} are needed \
         (min_tokens of the recipe): use more or other text"
    )]
    Starved {
        /// The layer.
        layer: String,
        /// Tokens that reached it.
        found: u64,
        /// Tokens needed.
        needed: u64,
    },
    /// A memory budget that cannot be met.
    #[error(
        "a memory budget of {} is too small: {what} needs {} (--memory)",
        crate::memory::Mebibytes(*budget),
        crate::memory::Mebibytes(*least)
    )]
    Memory {
        /// The budget in bytes.
        budget: u64,
        /// The least that would do.
        least: u64,
        /// The tensor or block that needs it.
        what: String,
    },
    /// The run was asked to stop, and did at a safe point.
    #[error(
        "interrupted after {done} of {all} tensors, which are kept; run the same command with \
         --resume to go on"
    )]
    Interrupted {
        /// Tensors that are safe.
        done: usize,
        /// All tensors.
        all: usize,
    },
    /// An interrupted run left its work.
    #[error(
        "{path}: an interrupted run left {done} tensors here; go on with --resume, or start over \
         with --overwrite"
    )]
    Unfinished {
        /// The directory of the incomplete output.
        path: PathBuf,
        /// Complete tensors in it.
        done: usize,
    },
    /// A run that cannot go on with the work of another, because it was started with other things.
    #[error(
        "{path}: cannot be resumed: {what} is not what it was; undo the change, or start over with \
         --overwrite and without --resume"
    )]
    Changed {
        /// What changed.
        what: String,
        /// The directory of the incomplete output.
        path: PathBuf,
    },
    /// A source that was changed while it was read.
    #[error("{path}: changed while it was read; the output was not completed")]
    SourceChanged {
        /// The file.
        path: PathBuf,
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
