use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use prune_checkpoint::{ModelSource, digest};
use serde::{Deserialize, Serialize};

use crate::manifest::TensorRecord;
use crate::{Error, Plan, Result};

/// The name of the journal among the files of an incomplete output.
pub(crate) const JOURNAL: &str = "prune-journal.jsonl";

/// Longer journals are not ours: one of a model with a million tensors stays below.
const LIMIT: u64 = 1 << 30;

/// What a run was started with. A run with another fingerprint cannot go on with its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fingerprint {
    format: String,
    version: String,
    recipe: String,
    plan: String,
    calibration: Option<String>,
    processor: String,
    shard_size: u64,
    /// Name, length and time of change of every file of the source.
    source: Vec<(String, u64, u64)>,
}

impl Fingerprint {
    pub(crate) fn new(
        source: &dyn ModelSource,
        plan: &Plan,
        calibration: Option<String>,
        shard_size: u64,
    ) -> Result<Self> {
        let recipe = serde_json::to_vec(&plan.recipe).map_err(|e| Error::plan("recipe", e))?;
        let states = source.file_states()?.into_iter().map(|state| {
            let name = state.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, state.len, state.modified)
        });
        Ok(Self {
            format: "prune-journal/1".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            recipe: digest(&recipe),
            plan: digest(plan.to_json()?.as_bytes()),
            calibration,
            processor: crate::processor::processor(),
            shard_size,
            source: states.collect(),
        })
    }

    /// What differs, in words: the first thing that explains the others.
    fn difference(&self, other: &Self) -> Option<String> {
        let differs = [
            ("the format of the journal", self.format != other.format),
            ("the version of prune", self.version != other.version),
            ("the recipe", self.recipe != other.recipe),
            ("the calibration data", self.calibration != other.calibration),
            ("the shard size", self.shard_size != other.shard_size),
            ("the processor type", self.processor != other.processor),
        ];
        if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
            return Some((*what).to_string());
        }
        if self.source != other.source {
            let changed = self.source.iter().find(|file| !other.source.contains(file));
            let changed = changed.or(other.source.iter().find(|f| !self.source.contains(f)));
            return changed.map(|(name, ..)| format!("the source file `{name}`"));
        }
        (self.plan != other.plan).then(|| "the plan".to_string())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Run(Fingerprint),
    Done(Vec<TensorRecord>),
}

/// Says beside an incomplete output which of its tensors are complete. Every entry is durable
/// before the next tensor counts.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// A new journal.
    pub(crate) fn create(path: PathBuf, fingerprint: &Fingerprint) -> Result<Self> {
        let file =
            File::create(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let mut journal = Self { path, file };
        journal.line(&Line::Run(fingerprint.clone()))?;
        Ok(journal)
    }

    /// The journal that an interrupted run left, and the tensors it names; `None` when there is
    /// none or it was cut off before its first line was complete.
    ///
    /// # Errors
    /// [`Error::Changed`] when it belongs to another run; [`Error::Plan`] when it is damaged.
    pub(crate) fn resume(
        path: PathBuf,
        fingerprint: &Fingerprint,
    ) -> Result<Option<(Self, BTreeMap<String, TensorRecord>)>> {
        let Some((found, records, length)) = read(&path)? else { return Ok(None) };
        if let Some(what) = fingerprint.difference(&found) {
            let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
            return Err(Error::Changed { what, path: directory });
        }
        let io = |source| Error::Io { path: path.clone(), source };
        let file = OpenOptions::new().append(true).open(&path).map_err(io)?;
        // A last line that was cut off must not run into the next.
        file.set_len(length).map_err(io)?;
        Ok(Some((Self { path: path.clone(), file }, records)))
    }

    /// The number of complete tensors in the journal at `path`.
    pub(crate) fn done(path: &Path) -> Result<usize> {
        Ok(read(path)?.map_or(0, |(_, records, _)| records.len()))
    }

    /// Adds tensors that are complete and durable.
    pub(crate) fn append(&mut self, records: Vec<TensorRecord>) -> Result<()> {
        self.line(&Line::Done(records))
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|e| Error::plan(JOURNAL, e))?;
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        written.map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

type Found = (Fingerprint, BTreeMap<String, TensorRecord>, u64);

/// Reads whole lines; what follows the last line break was being written when the run ended.
fn read(path: &Path) -> Result<Option<Found>> {
    let io = |source| Error::Io { path: path.into(), source };
    let mut text = String::new();
    match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(file) => file.take(LIMIT).read_to_string(&mut text).map_err(io)?,
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut lines = text[..whole].lines();
    let damaged = |e: String| Error::plan(path.display().to_string(), e);
    let parse = |line: &str| serde_json::from_str(line).map_err(|e| damaged(e.to_string()));
    let fingerprint = match lines.next().map(parse).transpose()? {
        None => return Ok(None),
        Some(Line::Run(fingerprint)) => fingerprint,
        Some(Line::Done(_)) => return Err(damaged("its first line is missing".into())),
    };
    let mut all = BTreeMap::new();
    for line in lines {
        match parse(line)? {
            Line::Run(_) => return Err(damaged("holds two runs".into())),
            Line::Done(records) => all.extend(records.into_iter().map(|r| (r.name.clone(), r))),
        }
    }
    Ok(Some((fingerprint, all, whole as u64)))
}
