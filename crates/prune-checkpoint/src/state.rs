use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::{Error, Result};

/// What the file system says of a file: enough to notice that it was changed, without reading it.
///
/// ```
/// use prune_checkpoint::FileState;
/// let file = tempfile::NamedTempFile::new()?;
/// let before = FileState::of(file.path())?;
/// assert_eq!(FileState::of(file.path())?, before);
/// std::fs::write(file.path(), b"more")?;
/// assert_ne!(FileState::of(file.path())?, before);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// When it was last written, in nanoseconds since 1970; 0 where the system does not say.
    pub modified: u64,
}

impl FileState {
    /// The state of the file at `path`, links followed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(path: &Path) -> Result<FileState> {
        let metadata = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Ok(FileState {
            path: path.to_path_buf(),
            len: metadata.len(),
            modified: modified.map_or(0, |t| t.as_nanos() as u64),
        })
    }
}
