use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::auxiliary::holds_weights;
use crate::{Error, Result};

/// The name of the lock inside a temporary directory, gone before the directory gets its name.
pub(crate) const LOCK: &str = ".prune-lock";

/// A directory that fills up under a temporary name, `.NAME.prune-partial` beside the output, and
/// takes its own name when it is complete. Dropped before that, it disappears.
#[derive(Debug)]
pub(crate) struct Staging {
    target: PathBuf,
    temporary: PathBuf,
    /// Where a replaced output waits until the new one is in place.
    replaced: PathBuf,
    overwrite: bool,
    lock: Option<File>,
    done: bool,
}

impl Staging {
    pub(crate) fn create(out: &Path, source: Option<&Path>, overwrite: bool) -> Result<Staging> {
        let name = out.file_name().ok_or_else(|| Error::OutputName { path: out.to_path_buf() })?;
        let parent = match out.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let parent = parent.canonicalize().map_err(|e| Error::io("open", parent, e))?;
        let target = parent.join(name);
        let beside = |ending: &str| {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(ending);
            parent.join(hidden)
        };
        if let Some(source) = source {
            check_apart(&target, source)?;
        }
        check_free(&target, overwrite)?;
        let temporary = beside(".prune-partial");
        let lock = Some(claim(&temporary)?);
        let replaced = beside(".prune-replaced");
        let staging = Staging { target, temporary, replaced, overwrite, lock, done: false };
        staging.clear()?;
        Ok(staging)
    }

    /// The path of the file called `name` while the directory is incomplete.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    /// Removes what an interrupted run left behind.
    fn clear(&self) -> Result<()> {
        let read = |e| Error::io("read", &self.temporary, e);
        for entry in fs::read_dir(&self.temporary).map_err(read)? {
            let entry = entry.map_err(read)?;
            if entry.file_name() == LOCK {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type().map_err(read)?;
            if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .map_err(|e| Error::io("remove", &path, e))?;
        }
        Ok(())
    }

    /// Gives the directory its own name.
    pub(crate) fn commit(mut self) -> Result<()> {
        drop(self.lock.take());
        let Staging { target, temporary, replaced, .. } = &self;
        // Once more, since the work may have taken hours.
        let exists = check_free(target, self.overwrite)?;
        let lock = temporary.join(LOCK);
        fs::remove_file(&lock).map_err(|e| Error::io("remove", &lock, e))?;
        sync_directory(temporary)?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| Error::io("rename to its final name", from, e))
        };
        if exists {
            remove_if_there(replaced)?;
            rename(target, replaced)?;
            if let Err(e) = rename(temporary, target) {
                // The old output is still whole; if even this fails, the first error says why.
                let _ = fs::rename(replaced, target);
                return Err(e);
            }
        } else {
            rename(temporary, target)?;
        }
        self.done = true;
        sync_directory(self.target.parent().unwrap_or(Path::new(".")))?;
        if exists {
            remove_if_there(&self.replaced)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.done {
            drop(self.lock.take());
            // Nothing can be reported from here, and the next run clears what is left.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Refuses an output that is, holds or lies in the source.
fn check_apart(target: &Path, source: &Path) -> Result<()> {
    let origin = source.canonicalize().map_err(|e| Error::io("open", source, e))?;
    // The parent of the target is resolved; the target itself may be a link.
    let output = target.canonicalize().unwrap_or_else(|_| target.to_path_buf());
    let inside = origin.is_dir() && output.starts_with(&origin);
    if inside || origin.starts_with(&output) {
        return Err(Error::OutputInSource { output, origin });
    }
    Ok(())
}

/// Whether something that may be replaced is at `target`.
fn check_free(target: &Path, overwrite: bool) -> Result<bool> {
    let metadata = match fs::symlink_metadata(target) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io("open", target, e)),
    };
    if !overwrite {
        return Err(Error::OutputExists { path: target.to_path_buf() });
    }
    let protect = |reason: &str| {
        Err(Error::OutputProtected { path: target.to_path_buf(), reason: reason.to_string() })
    };
    if !metadata.is_dir() {
        return protect("it is a file or a link, not a directory");
    }
    let read = |e| Error::io("read", target, e);
    let mut empty = true;
    let mut model = false;
    for entry in fs::read_dir(target).map_err(read)? {
        let entry = entry.map_err(read)?;
        empty = false;
        if entry.file_type().map_err(read)?.is_dir() {
            return protect(
                "it has subdirectories, so it is more than a model; remove it yourself",
            );
        }
        let name = entry.file_name();
        model |= name.to_str().is_some_and(|n| n.ends_with(".safetensors") && holds_weights(n));
    }
    if !empty && !model {
        return protect("it holds no safetensors, so it is no model; remove it yourself");
    }
    Ok(true)
}

/// Makes `temporary` ours, whether it is new or was left behind, and locks it.
fn claim(temporary: &Path) -> Result<File> {
    match fs::symlink_metadata(temporary) {
        Ok(metadata) => {
            let ours = metadata.is_dir()
                && (temporary.join(LOCK).exists()
                    || fs::read_dir(temporary).is_ok_and(|mut entries| entries.next().is_none()));
            if !ours {
                return Err(Error::OutputProtected {
                    path: temporary.to_path_buf(),
                    reason: "it has the temporary name of the output but is not one; remove it \
                             yourself"
                        .to_string(),
                });
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::create_dir(temporary) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::io("create", temporary, e));
            }
            _ => {}
        },
        Err(e) => return Err(Error::io("open", temporary, e)),
    }
    let path = temporary.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io("create", &path, e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: temporary.to_path_buf() }),
        // Some network file systems have no locks; two runs at once are then the user's care.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(lock),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &path, e)),
    }
}

fn remove_if_there(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", directory, e)),
        _ => Ok(()),
    }
}

/// Makes names in `directory` durable, where the system can.
fn sync_directory(directory: &Path) -> Result<()> {
    let sync = || -> io::Result<()> {
        if cfg!(unix) {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    sync().map_err(|e| Error::io("write", directory, e))
}
