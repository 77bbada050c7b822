use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::auxiliary::holds_weights;
use crate::{Error, Result};

/// The name of the lock inside a temporary directory, gone before the directory gets its name.
pub(crate) const LOCK: &str = ".prune-lock";

const PARTIAL: &str = ".prune-partial";

/// A directory that fills up under a temporary name, `.NAME.prune-partial` beside the output, and
/// takes its own name when it is complete. Dropped before that, it disappears, unless it is to be
/// kept.
#[derive(Debug)]
pub(crate) struct Staging {
    target: PathBuf,
    temporary: PathBuf,
    /// Where a replaced output waits until the new one is in place.
    replaced: PathBuf,
    overwrite: bool,
    lock: Option<File>,
    /// Whether the directory stays when this is dropped.
    keep: bool,
}

/// What an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

impl Staging {
    pub(crate) fn create(
        out: &Path,
        source: Option<&Path>,
        overwrite: bool,
        resume: bool,
    ) -> Result<Staging> {
        Self::of(Kind::Directory, out, source, overwrite, resume)
    }

    /// The same for an output that is a file, which [`Staging::commit_file`] takes out of the
    /// directory.
    pub(crate) fn create_file(
        out: &Path,
        source: Option<&Path>,
        overwrite: bool,
        resume: bool,
    ) -> Result<Staging> {
        Self::of(Kind::File, out, source, overwrite, resume)
    }

    fn of(
        kind: Kind,
        out: &Path,
        source: Option<&Path>,
        overwrite: bool,
        resume: bool,
    ) -> Result<Staging> {
        let (parent, name) = place_of(out)?;
        let target = parent.join(name);
        let replaced = parent.join(hidden(name, ".prune-replaced"));
        if let Some(source) = source {
            check_apart(&target, source)?;
        }
        match kind {
            Kind::Directory => {
                restore(&replaced, &target)?;
                check_free(&target, overwrite)?;
            }
            Kind::File => check_free_file(&target, overwrite)?,
        }
        let temporary = parent.join(hidden(name, PARTIAL));
        let lock = Some(claim(&temporary)?);
        let staging = Staging { target, temporary, replaced, overwrite, lock, keep: resume };
        if !resume {
            staging.remove_all_but(&BTreeSet::from([LOCK.to_string()]))?;
        }
        Ok(staging)
    }

    /// The directory in which the files of `out` are before it is complete.
    pub(crate) fn partial(out: &Path) -> Result<PathBuf> {
        let (parent, name) = place_of(out)?;
        Ok(parent.join(hidden(name, PARTIAL)))
    }

    /// From here on the directory stays when it is dropped incomplete.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// The path of the file called `name` while the directory is incomplete.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    /// Removes what has no place in the directory.
    fn remove_all_but(&self, names: &BTreeSet<String>) -> Result<()> {
        let read = |e| Error::io("read", &self.temporary, e);
        for entry in fs::read_dir(&self.temporary).map_err(read)? {
            let entry = entry.map_err(read)?;
            if entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type().map_err(read)?;
            if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .map_err(|e| Error::io("remove", &path, e))?;
        }
        Ok(())
    }

    /// Gives the directory its own name, after removing every file that is not in `names`, the
    /// lock among them.
    pub(crate) fn commit(mut self, names: &BTreeSet<String>) -> Result<()> {
        let lock = self.lock.take();
        let Staging { target, temporary, replaced, .. } = &self;
        // Once more, since the work may have taken hours.
        let exists = check_free(target, self.overwrite)?;
        self.remove_all_but(names)?;
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
        // Held up to here: nobody else may clear the directory before it has its name.
        drop(lock);
        self.keep = true;
        sync_directory(self.target.parent().unwrap_or(Path::new(".")))?;
        if exists {
            remove_if_there(&self.replaced)?;
        }
        Ok(())
    }
}

impl Staging {
    /// Gives the file called `name` the output's own name, after moving those of `beside` to
    /// `OUTPUT.ENDING`, and removes the directory.
    pub(crate) fn commit_file(mut self, name: &str, beside: &[(String, String)]) -> Result<()> {
        check_free_file(&self.target, self.overwrite)?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| Error::io("rename to its final name", from, e))
        };
        for (name, ending) in beside {
            rename(&self.path(name), &beside_file(&self.target, ending))?;
        }
        rename(&self.path(name), &self.target)?;
        sync_directory(self.target.parent().unwrap_or(Path::new(".")))?;
        drop(self.lock.take());
        remove_if_there(&self.temporary)
    }
}

/// The path of a file that belongs to the output file `out`: `model.gguf.ENDING`.
pub(crate) fn beside_file(out: &Path, ending: &str) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(ending);
    out.with_file_name(name)
}

/// Refuses what is at the place of an output file, unless it may be replaced.
fn check_free_file(out: &Path, overwrite: bool) -> Result<()> {
    match fs::symlink_metadata(out) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("open", out, e)),
        Ok(found) if !found.is_file() => Err(Error::OutputProtected {
            path: out.to_path_buf(),
            reason: "it is not a regular file".to_string(),
        }),
        Ok(_) if overwrite => Ok(()),
        Ok(_) => Err(Error::OutputExists { path: out.to_path_buf() }),
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            drop(self.lock.take());
            // Nothing can be reported from here, and the next run clears what is left.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// The resolved parent of an output, and its name.
fn place_of(out: &Path) -> Result<(PathBuf, &OsStr)> {
    let name = out.file_name().ok_or_else(|| Error::OutputName { path: out.to_path_buf() })?;
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(|e| Error::io("open", parent, e))?;
    Ok((parent, name))
}

fn hidden(name: &OsStr, ending: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(ending);
    hidden
}

/// Puts an output back that a run was killed while replacing, between the two renames.
fn restore(replaced: &Path, target: &Path) -> Result<()> {
    let there = |path: &Path| fs::symlink_metadata(path).is_ok();
    if there(replaced) && !there(target) {
        fs::rename(replaced, target).map_err(|e| Error::io("restore", replaced, e))?;
    }
    Ok(())
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

/// Whether a directory with the temporary name of an output was left by a writer: it has the lock,
/// or is empty, or holds plain files with weights among them (a writer that was killed just before
/// the last rename).
fn is_ours(temporary: &Path) -> bool {
    let Ok(entries) = fs::read_dir(temporary) else { return false };
    let (mut empty, mut model) = (true, false);
    for entry in entries {
        let Ok(entry) = entry else { return false };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return false;
        }
        empty = false;
        let name = entry.file_name();
        model |= name == LOCK || name.to_str().is_some_and(holds_weights);
    }
    empty || model
}

/// Makes `temporary` ours, whether it is new or was left behind, and locks it.
fn claim(temporary: &Path) -> Result<File> {
    match fs::symlink_metadata(temporary) {
        Ok(metadata) => {
            if !metadata.is_dir() || !is_ours(temporary) {
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
