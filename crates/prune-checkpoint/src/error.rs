use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when a checkpoint is read or written.
///
/// Every variant names the file and the tensor or field, what was found, and what was expected or
/// can be done. Through the traits of [`prune_core`] these errors arrive as
/// [`prune_core::Error::External`], whose source can be downcast to this type.
///
/// ```
/// use prune_checkpoint::{Checkpoint, Error};
/// let error = Checkpoint::open("no/such/model".as_ref()).unwrap_err();
/// assert!(matches!(error, Error::Io { .. }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: "open", "read", "rename".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory that holds no checkpoint.
    #[error(
        "{}: found neither `model.safetensors` nor `model.safetensors.index.json`{hint}",
        path.display()
    )]
    NoCheckpoint {
        /// The directory.
        path: PathBuf,
        /// What lies there instead and can be passed by name; may be empty.
        hint: String,
    },
    /// A directory whose only weights are pickled.
    #[error(
        "{}: the only weights are in `{file}`, a pickle, which can run code when it is read and \
         is not supported; convert the model to safetensors first",
        path.display()
    )]
    PickleOnly {
        /// The directory.
        path: PathBuf,
        /// The first pickled file.
        file: String,
    },
    /// A file that is neither safetensors nor GGUF.
    #[error(
        "{}: neither a `.safetensors` nor a `.gguf` file, and not a model directory",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A directory, device or pipe where a regular file is needed.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// A file that ends before what it announces.
    #[error(
        "{}: truncated: {what} reaches to byte {needed}, the file has {available}",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor or field that is cut off.
        what: String,
        /// The end of that part, in bytes from the start of the file.
        needed: u64,
        /// The length of the file in bytes.
        available: u64,
    },
    /// A length or count above what any real checkpoint has.
    #[error("{}: {what} is {found}; at most {limit} is accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The field.
        what: String,
        /// The value found.
        found: u64,
        /// The largest value accepted.
        limit: u64,
    },
    /// JSON that cannot be parsed or has the wrong structure.
    #[error("{}: the {what} is not valid: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Which JSON: "header", "index", "configuration".
        what: &'static str,
        /// What is wrong and where.
        reason: String,
    },
    /// A tensor whose description is wrong.
    #[error("{}: tensor `{tensor}`: {field} is {found}; expected {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor, as the file names it.
        tensor: String,
        /// The field of its description.
        field: &'static str,
        /// The value found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// Two descriptions of one tensor.
    #[error("{}: tensor `{tensor}` is listed twice", path.display())]
    DuplicateTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Two tensors that share bytes.
    #[error(
        "{}: tensor `{tensor}` starts at byte {start} of the data, inside tensor `{other}`, which \
         ends at {end}",
        path.display()
    )]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The later tensor.
        tensor: String,
        /// The earlier tensor.
        other: String,
        /// Where the later one starts.
        start: u64,
        /// Where the earlier one ends.
        end: u64,
    },
    /// Bytes between tensors that belong to none.
    #[error(
        "{}: bytes {start} to {end} of the data, before tensor `{tensor}`, belong to no tensor",
        path.display()
    )]
    Hole {
        /// The file.
        path: PathBuf,
        /// The tensor after the hole.
        tensor: String,
        /// Start of the hole.
        start: u64,
        /// End of the hole.
        end: u64,
    },
    /// Bytes after the last tensor.
    #[error(
        "{}: {} bytes follow the last tensor; the file should be {expected} bytes long",
        path.display(),
        found.saturating_sub(*expected)
    )]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// The length of the file.
        found: u64,
        /// The length that its header describes.
        expected: u64,
    },
    /// A shard name in an index that is no plain file name.
    #[error(
        "{}: weight_map sends tensor `{tensor}` to `{shard}`; expected the plain name of a \
         `.safetensors` file beside the index",
        path.display()
    )]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name found.
        shard: String,
    },
    /// A shard that the index names and that is not there.
    #[error(
        "{}: shard `{shard}`, which should hold tensor `{tensor}`, is missing; complete the \
         download",
        path.display()
    )]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The shard.
        shard: String,
        /// The first tensor that should be in it.
        tensor: String,
    },
    /// A tensor that is not in the shard that the index names.
    #[error("{}: tensor `{tensor}` is not here, though the index says so", path.display())]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that two shards hold.
    #[error("tensor `{tensor}` is both in {} and in {}", first.display(), second.display())]
    TwoShards {
        /// The tensor.
        tensor: String,
        /// The shard that the index names.
        first: PathBuf,
        /// The other one.
        second: PathBuf,
    },
    /// A tensor in a shard that the index does not list.
    #[error(
        "{}: tensor `{tensor}` is not listed in the index; the index and the shards belong to \
         different models",
        path.display()
    )]
    NotInIndex {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A metadata field that is missing or wrong.
    #[error("{}: {field} is {found}; expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field or metadata key.
        field: String,
        /// The value found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A valid file that uses something this crate cannot express.
    #[error("{}: {what} is not supported; {instead}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor, type or field.
        what: String,
        /// What is supported, or what to do.
        instead: String,
    },
    /// An output that is already there.
    #[error("{} exists already; choose another output or allow overwriting", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// An output that must not be replaced, overwriting allowed or not.
    #[error("{}: will not be replaced: {reason}", path.display())]
    OutputProtected {
        /// The output.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An output that would overwrite its own source.
    #[error(
        "the output {} and the source {} contain one another; choose an output outside the source",
        output.display(),
        origin.display()
    )]
    OutputInSource {
        /// The output, resolved.
        output: PathBuf,
        /// The source, resolved.
        origin: PathBuf,
    },
    /// An output path that names no directory.
    #[error("{}: not the name of a new directory", path.display())]
    OutputName {
        /// The output.
        path: PathBuf,
    },
    /// Another process that writes to the same output.
    #[error("{}: another process is writing here", path.display())]
    Busy {
        /// The temporary directory.
        path: PathBuf,
    },
    /// A file name that cannot go into a model directory.
    #[error("`{name}` cannot be added to the checkpoint: {reason}")]
    FileName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A plan that cannot be laid out.
    #[error("the plan of the output is not valid: {what}: {reason}")]
    Plan {
        /// The tensor or option.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that was written without being in the plan.
    #[error("tensor `{tensor}` is not in the plan of the output")]
    NotPlanned {
        /// The tensor.
        tensor: String,
    },
    /// A tensor that was written a second time.
    #[error("tensor `{tensor}` was written already")]
    WrittenTwice {
        /// The tensor.
        tensor: String,
    },
    /// A tensor that differs from its plan.
    #[error("tensor `{tensor}`: {field} is {found}; the plan says {expected}")]
    PlanMismatch {
        /// The tensor.
        tensor: String,
        /// "dtype", "shape" or "length in bytes".
        field: &'static str,
        /// The value given.
        found: String,
        /// The value planned.
        expected: String,
    },
    /// An output that was finished too early.
    #[error("tensor `{tensor}` was never written ({missing} missing in all)")]
    NotWritten {
        /// The first missing tensor.
        tensor: String,
        /// How many are missing.
        missing: usize,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { action, path: path.to_path_buf(), source }
    }
}

impl From<Error> for prune_core::Error {
    fn from(error: Error) -> Self {
        prune_core::Error::external("checkpoint", error)
    }
}
