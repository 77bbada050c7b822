use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use prune_checkpoint::{
    AuxiliaryFile, Contents, FileState, Hasher, HfWriter, ModelSource, WriterOptions, digest,
    read_exact_at, tensor_digest,
};
use prune_core::{TensorInfo, TensorSource};

use crate::journal::{Fingerprint, JOURNAL, Journal};
use crate::manifest::{FileRecord, MANIFEST, Manifest, TensorRecord};
use crate::output::Output;
use crate::plan::Plan;
use crate::run::{Item, Run, intact, items};
use crate::schedule::{PIECE, Schedule};
use crate::sink::{WriteSink, outputs_digest};
use crate::store::Store;
use crate::{Calibration, Error, MemoryBudget, Result};

/// How [`apply`] works and writes. None of it but `shard_size` changes a byte of the output.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Bytes of a shard.
    pub shard_size: u64,
    /// Whether an existing output is replaced, and what an interrupted run left thrown away.
    pub overwrite: bool,
    /// Whether an interrupted run of the same plan is gone on with.
    pub resume: bool,
    /// The most memory that the run may take.
    pub memory: MemoryBudget,
    /// Set from another thread, it stops the run at the next safe point.
    pub interrupt: Option<Arc<AtomicBool>>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            shard_size: WriterOptions::default().shard_size,
            overwrite: false,
            resume: false,
            memory: MemoryBudget::default(),
            interrupt: None,
        }
    }
}

/// Is told what a run is doing: `(done, all, name)` after each tensor that is safe on the disk.
pub type Progress<'a> = dyn FnMut(usize, usize, &str) + Send + 'a;

/// Executes a plan: reads `source` a piece of a tensor at a time (a block at a time where
/// calibration is needed) and writes a Hugging Face directory with a [`Manifest`] at `out`, or a
/// GGUF file with a manifest beside it where the recipe's format is `gguf`.
///
/// Nothing stands at `out` before everything is written. What is done is kept beside it, under the
/// name that [`HfWriter::partial`] gives, when the run is killed, interrupted or stopped by the
/// file system; a run with [`ApplyOptions::resume`] goes on from there and ends with the same bytes
/// as one that was never interrupted.
///
/// # Errors
/// [`Error::Memory`] before anything is read; [`Error::Plan`] when the plan is of another
/// checkpoint; [`Error::NeedsCalibration`], [`Error::Starved`]; [`Error::Unfinished`] and
/// [`Error::Changed`] about an earlier run; [`Error::SourceChanged`]; [`Error::Interrupted`];
/// [`Error::Checkpoint`], [`Error::Core`].
pub fn apply(
    source: &dyn ModelSource,
    plan: &Plan,
    calibration: Option<&Calibration<'_>>,
    out: &Path,
    options: &ApplyOptions,
    progress: &mut Progress<'_>,
) -> Result<Manifest> {
    let store = Store::of(&plan.recipe)?;
    let items = items(source, plan, &store)?;
    let schedule = Schedule::new(source, plan, calibration, options.memory)?;
    let calibration_digest = calibration_digest(calibration, &schedule);
    let states = source.file_states()?;
    let fingerprint =
        Fingerprint::new(source, plan, calibration_digest.clone(), options.shard_size)?;
    let partial = HfWriter::partial(out)?;
    if options.resume && !partial.exists() {
        if let Some(manifest) = complete(out, plan, calibration_digest.as_ref()) {
            return Ok(manifest);
        }
    } else if !options.resume && !options.overwrite {
        let done = Journal::done(&partial.join(JOURNAL))?;
        if done > 0 {
            return Err(Error::Unfinished { path: partial, done });
        }
    }
    let tensors = items.iter().flat_map(|item| item.outputs.iter().cloned()).collect();
    let factors = items.iter().flat_map(|item| item.factors.iter().cloned()).collect();
    let writer = Output::create(out, source, plan, &store, (tensors, factors), options)?;
    let (journal, records) = open_journal(&writer, source, &items, &fingerprint, options)?;
    let sink = WriteSink { writer, journal: Mutex::new(journal) };
    let run = Run {
        source,
        plan,
        store: &store,
        sink: &sink,
        schedule: &schedule,
        budget: options.memory,
        calibration,
        interrupt: options.interrupt.as_deref(),
        progress: Mutex::new(progress),
        records: Mutex::new(records),
    };
    let result = run.run(&items).and_then(|()| unchanged(source, &states));
    let records = run.records.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut writer = sink.writer;
    match result {
        Ok(()) => finish(source, plan, &store, calibration_digest, records, writer),
        Err(e) => {
            if can_go_on(&e) {
                writer.keep();
            }
            Err(e)
        }
    }
}

/// Whether what is done is worth keeping after this error: it came from outside, and the same
/// command may succeed later.
fn can_go_on(error: &Error) -> bool {
    matches!(
        error,
        Error::Interrupted { .. }
            | Error::Io { .. }
            | Error::Checkpoint(prune_checkpoint::Error::Io { .. })
    )
}

/// The manifest of an output that this very plan has already completed.
fn complete(out: &Path, plan: &Plan, calibration: Option<&String>) -> Option<Manifest> {
    let manifest = Manifest::read(out).ok()?;
    let same = manifest.plan == *plan
        && manifest.calibration_digest.as_ref() == calibration
        && manifest.version == env!("CARGO_PKG_VERSION");
    same.then_some(manifest)
}

fn open_journal(
    writer: &Output,
    source: &dyn ModelSource,
    items: &[Item<'_>],
    fingerprint: &Fingerprint,
    options: &ApplyOptions,
) -> Result<(Journal, BTreeMap<String, TensorRecord>)> {
    let path = writer.scratch(JOURNAL);
    if options.resume
        && let Some((journal, recorded)) = Journal::resume(path.clone(), fingerprint)?
    {
        let check = |record: &TensorRecord| {
            let found = tensor_digest(source, &record.name)?;
            if found != record.source_digest {
                return Err(Error::Changed {
                    what: format!("the source tensor `{}`", record.name),
                    path: path.clone(),
                });
            }
            let item = items.iter().find(|item| item.tensor.name == record.name);
            item.map_or(Ok(false), |item| is_written(writer, item, record))
        };
        let records = intact(items, recorded, &check)?;
        for item in items.iter().filter(|i| records.contains_key(&i.tensor.name)) {
            for output in item.outputs.iter().chain(&item.factors) {
                writer.seal(&output.name)?;
            }
        }
        return Ok((journal, records));
    }
    Ok((Journal::create(path, fingerprint)?, BTreeMap::new()))
}

/// Whether the tensor and its factors stand in the incomplete output as the record says.
fn is_written(writer: &Output, item: &Item<'_>, record: &TensorRecord) -> Result<bool> {
    let recorded = record.factors();
    if recorded.len() != item.factors.len()
        || written_digest(writer, &item.outputs)? != record.digest
    {
        return Ok(false);
    }
    for (info, factor) in item.factors.iter().zip(recorded) {
        let written = written_digest(writer, std::slice::from_ref(info))?;
        if info.name != factor.name || written != factor.digest {
            return Ok(false);
        }
    }
    Ok(true)
}

fn written_digest(writer: &Output, tensors: &[TensorInfo]) -> Result<String> {
    outputs_digest(&Incomplete { writer, tensors: sorted(tensors) }, tensors)
}

/// Tensors of an output that is not complete.
struct Incomplete<'a> {
    writer: &'a Output,
    tensors: Vec<TensorInfo>,
}

fn sorted(tensors: &[TensorInfo]) -> Vec<TensorInfo> {
    let mut sorted = tensors.to_vec();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted
}

impl TensorSource for Incomplete<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let read = self.writer.read_part(name, offset, buf);
        read.map_err(|e| prune_core::Error::external(name, e))
    }
}

/// The digest of the token ids or images, where the plan reads them.
pub(crate) fn calibration_digest(
    calibration: Option<&Calibration<'_>>,
    schedule: &Schedule,
) -> Option<String> {
    calibration.filter(|_| schedule.samples > 0).map(Calibration::digest)
}

/// Refuses a result that was read from a source that changed meanwhile.
pub(crate) fn unchanged(source: &dyn ModelSource, before: &[FileState]) -> Result<()> {
    let now = source.file_states()?;
    match now.iter().zip(before).find(|(now, before)| now != before) {
        Some((now, _)) => Err(Error::SourceChanged { path: now.path.clone() }),
        None => Ok(()),
    }
}

fn finish(
    source: &dyn ModelSource,
    plan: &Plan,
    store: &Store,
    calibration_digest: Option<String>,
    records: BTreeMap<String, TensorRecord>,
    mut writer: Output,
) -> Result<Manifest> {
    writer.keep();
    let mut files = Vec::new();
    if let Output::Directory(writer) = &mut writer {
        for file in files_beside(source, plan, store)? {
            files.push(FileRecord { name: file.name.clone(), digest: file_digest(&file)? });
            writer.copy_file(&file)?;
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest {
        format: "prune-manifest/1".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        plan: plan.clone(),
        processor: calibration_digest.is_some().then(crate::processor::processor),
        calibration_digest,
        tensors: records.into_values().collect(),
        files,
    };
    writer.finish(&manifest.to_json()?)?;
    Ok(manifest)
}

/// The files that accompany the weights: those of the source, with what the format says of
/// quantised layers.
fn files_beside(
    source: &dyn ModelSource,
    plan: &Plan,
    store: &Store,
) -> Result<Vec<AuxiliaryFile>> {
    let mut files = source.auxiliary_files()?;
    files.retain(|f| f.name != MANIFEST);
    let Some(description) = store.description(plan)? else { return Ok(files) };
    let json = |name: &str, value: &serde_json::Value| AuxiliaryFile {
        name: name.into(),
        contents: Contents::Bytes(format!("{value:#}\n").into_bytes()),
    };
    let mut config = source.config()?;
    if let Some(fields) = config.as_object_mut() {
        fields.insert("quantization_config".into(), description.config);
    }
    let mut made = vec![json("config.json", &config)];
    made.extend(description.files.iter().map(|(name, value)| json(name, value)));
    files.retain(|f| made.iter().all(|m| m.name != f.name));
    files.extend(made);
    Ok(files)
}

pub(crate) fn file_digest(file: &AuxiliaryFile) -> Result<String> {
    let path = match &file.contents {
        Contents::Bytes(bytes) => return Ok(digest(bytes)),
        Contents::Path(path) => path,
    };
    let io = |source| Error::Io { path: path.clone(), source };
    let opened = std::fs::File::open(path).map_err(io)?;
    let length = opened.metadata().map_err(io)?.len();
    let mut hash = Hasher::default();
    let mut offset = 0;
    while offset < length {
        let mut piece = vec![0; (length - offset).min(PIECE as u64) as usize];
        read_exact_at(&opened, &mut piece, offset).map_err(io)?;
        hash.update(&piece);
        offset += piece.len() as u64;
    }
    Ok(hash.finish())
}
