use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prune_checkpoint::{Hasher, StoredTensors};
use prune_core::{TensorInfo, TensorSource};

use crate::journal::Journal;
use crate::manifest::{Manifest, TensorRecord};
use crate::output::Output;
use crate::schedule::PIECE;
use crate::verify::Failure;
use crate::{Error, Result};

/// Where the tensors of a run go. Used from many threads.
pub(crate) trait Sink: Sync {
    /// Takes bytes of a tensor that is changed, from byte `offset` on.
    fn write_part(&self, info: &TensorInfo, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Takes bytes of a tensor that is copied.
    fn copy_part(&self, info: &TensorInfo, offset: usize, bytes: &[u8]) -> Result<()>;

    /// The bytes of these tensors are complete: from here on they survive an interruption.
    fn commit(&self, done: Vec<Done<'_>>) -> Result<()>;

    /// Fills `buf` with bytes that were taken before.
    fn read_part(&self, info: &TensorInfo, offset: usize, buf: &mut [u8]) -> Result<()>;
}

/// A tensor of the plan that is done.
pub(crate) struct Done<'a> {
    pub(crate) record: TensorRecord,
    /// What it is stored as.
    pub(crate) outputs: &'a [TensorInfo],
}

/// A poisoned lock only means that another thread stopped with an error, which is reported.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a checkpoint and its journal.
pub(crate) struct WriteSink {
    pub(crate) writer: Output,
    pub(crate) journal: Mutex<Journal>,
}

impl Sink for WriteSink {
    fn write_part(&self, info: &TensorInfo, offset: usize, bytes: &[u8]) -> Result<()> {
        self.writer.write_part(&info.name, offset, bytes)
    }

    fn copy_part(&self, info: &TensorInfo, offset: usize, bytes: &[u8]) -> Result<()> {
        self.write_part(info, offset, bytes)
    }

    fn commit(&self, done: Vec<Done<'_>>) -> Result<()> {
        for output in done.iter().flat_map(|d| d.outputs) {
            self.writer.seal(&output.name)?;
        }
        lock(&self.journal).append(done.into_iter().map(|d| d.record).collect())
    }

    fn read_part(&self, info: &TensorInfo, offset: usize, buf: &mut [u8]) -> Result<()> {
        self.writer.read_part(&info.name, offset, buf)
    }
}

/// Compares what a run makes with a checkpoint that an earlier run wrote, and writes nothing.
///
/// Holds the bytes of changed tensors until they are compared, and for good those that differ, so
/// that later blocks see what was made and not what is on the disk.
pub(crate) struct CompareSink<'a> {
    checkpoint: &'a StoredTensors,
    recorded: BTreeMap<&'a str, &'a TensorRecord>,
    pending: Mutex<HashMap<String, Vec<u8>>>,
    failures: Mutex<Vec<Failure>>,
}

impl<'a> CompareSink<'a> {
    pub(crate) fn new(checkpoint: &'a StoredTensors, manifest: &'a Manifest) -> Self {
        let recorded = manifest.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        Self {
            checkpoint,
            recorded,
            pending: Mutex::new(HashMap::new()),
            failures: Mutex::new(Vec::new()),
        }
    }

    /// What differed, by tensor.
    pub(crate) fn failures(self) -> Vec<Failure> {
        let mut failures = self.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        failures
    }

    fn compare(&self, done: &Done<'_>) -> Option<String> {
        let record = &done.record;
        let Some(recorded) = self.recorded.get(record.name.as_str()) else {
            return Some("the manifest has no record of it".into());
        };
        if recorded.source_digest != record.source_digest {
            return Some("was made from another source tensor".into());
        }
        match outputs_digest(self.checkpoint, done.outputs) {
            Err(e) => Some(e.to_string()),
            Ok(found) if found != record.digest => {
                Some(format!("is {found}; the recipe gives {}", record.digest))
            }
            Ok(_) if *recorded != record => Some("the manifest states other figures".into()),
            Ok(_) => None,
        }
    }
}

impl Sink for CompareSink<'_> {
    fn write_part(&self, info: &TensorInfo, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut pending = lock(&self.pending);
        let whole = pending.entry(info.name.clone()).or_insert_with(|| vec![0; info.nbytes()]);
        let part = whole.get_mut(offset..offset + bytes.len()).ok_or_else(|| {
            Error::plan(&info.name, format!("{} bytes at {offset} leave it", bytes.len()))
        })?;
        part.copy_from_slice(bytes);
        Ok(())
    }

    fn copy_part(&self, _: &TensorInfo, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn commit(&self, done: Vec<Done<'_>>) -> Result<()> {
        for done in &done {
            match self.compare(done) {
                None => {
                    let mut pending = lock(&self.pending);
                    for output in done.outputs {
                        pending.remove(&output.name);
                    }
                }
                Some(reason) => {
                    let tensor = done.record.name.clone();
                    lock(&self.failures).push(Failure { tensor, reason });
                }
            }
        }
        Ok(())
    }

    fn read_part(&self, info: &TensorInfo, offset: usize, buf: &mut [u8]) -> Result<()> {
        if let Some(whole) = lock(&self.pending).get(&info.name) {
            let part = whole.get(offset..offset + buf.len()).ok_or_else(|| {
                Error::plan(&info.name, format!("{} bytes at {offset} leave it", buf.len()))
            })?;
            buf.copy_from_slice(part);
            return Ok(());
        }
        Ok(self.checkpoint.read_at(&info.name, offset, buf)?)
    }
}

/// The digest of stored tensors, one after the other.
pub(crate) fn outputs_digest(source: &dyn TensorSource, outputs: &[TensorInfo]) -> Result<String> {
    let mut hash = Hasher::default();
    for output in outputs {
        let size = source.info(&output.name)?.nbytes();
        let mut piece = vec![0; PIECE.min(size)];
        let mut offset = 0;
        while offset < size {
            let part = PIECE.min(size - offset);
            source.read_at(&output.name, offset, &mut piece[..part])?;
            hash.update(&piece[..part]);
            offset += part;
        }
    }
    Ok(hash.finish())
}
