use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::positional::read_exact_at;
use crate::{Error, Result};

/// A file read by ranges. Not mapped: a file that shrinks gives an error, not a signal, and pages
/// that were read do not count as resident memory.
#[derive(Debug)]
pub(crate) struct RangedFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl RangedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Asked before opening, which would block on a pipe.
        if !fs::metadata(path).map_err(|e| Error::io("open", path, e))?.is_file() {
            return Err(Error::NotAFile { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let len = file.metadata().map_err(|e| Error::io("open", path, e))?.len();
        Ok(RangedFile { path: path.to_path_buf(), file, len })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The length when the file was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from byte `offset` on; `what` is named when the file is too short.
    pub(crate) fn read_at(&self, what: impl Display, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, buf, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                Error::Truncated {
                    path: self.path.clone(),
                    what: what.to_string(),
                    needed: offset.saturating_add(buf.len() as u64),
                    available: self.file.metadata().map_or(self.len, |m| m.len()),
                }
            } else {
                Error::io("read", &self.path, e)
            }
        })
    }

    /// The whole file, refused above `limit` bytes.
    pub(crate) fn read_all(&self, what: &str, limit: u64) -> Result<Vec<u8>> {
        if self.len > limit {
            return Err(Error::TooLarge {
                path: self.path.clone(),
                what: format!("the length of the {what}"),
                found: self.len,
                limit,
            });
        }
        let mut bytes = vec![0; self.len as usize];
        self.read_at(what, 0, &mut bytes)?;
        Ok(bytes)
    }
}
