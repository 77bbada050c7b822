use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use prune_core::{TensorInfo, TensorSink};

use crate::auxiliary::holds_weights;
use crate::layout::{INDEX, Layout};
use crate::positional::{read_exact_at, write_all_at};
use crate::staging::{LOCK, Staging};
use crate::{AuxiliaryFile, Contents, Error, Result};

/// What an [`HfWriter`] is going to write, and where it must not.
///
/// ```
/// use prune_checkpoint::WriterOptions;
/// let options = WriterOptions { overwrite: true, ..WriterOptions::default() };
/// assert_eq!(options.shard_size, 5_000_000_000);
/// ```
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Every tensor of the output with the dtype and shape that it will have, in any order.
    pub plan: Vec<TensorInfo>,
    /// The most bytes of tensors in one file, from 1 on; a larger tensor gets its own file.
    /// 5 GB by default, as in transformers.
    pub shard_size: u64,
    /// Entries for the `__metadata__` of every file, besides `"format": "pt"`.
    pub metadata: BTreeMap<String, String>,
    /// Whether a model directory at the output is replaced, once the new one is complete.
    pub overwrite: bool,
    /// The checkpoint that is read meanwhile. An output that would be in it or contain it is
    /// refused.
    pub source: Option<PathBuf>,
    /// Whether what an interrupted writer of the same output left behind is gone on with instead
    /// of removed. Which of its tensors can be trusted is the caller's knowledge: none counts as
    /// written before [`HfWriter::seal`] says so.
    pub resume: bool,
    /// One more safetensors file, by name, with tensors that are not the model's: readers of the
    /// model do not see it. Their names differ from those of the plan.
    pub beside: Option<(String, Vec<TensorInfo>)>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        WriterOptions {
            plan: Vec::new(),
            shard_size: 5_000_000_000,
            metadata: BTreeMap::new(),
            overwrite: false,
            source: None,
            resume: false,
            beside: None,
        }
    }
}

/// Writes a Hugging Face model directory, a tensor at a time and in any order.
///
/// The plan fixes headers and offsets before the first byte, so tensors are written in place as
/// they come and none is held back. The bytes of the output depend on the plan, the shard size and
/// the tensors alone: not on the order of arrival, nor on how the source was sharded. Tensors are
/// distributed over the files in natural order of their names (block 2 before block 10); one file
/// is called `model.safetensors`, several `model-00001-of-00003.safetensors` and so on, with an
/// index.
///
/// Until [`HfWriter::finish`] everything is in the directory `.NAME.prune-partial` beside the
/// output, which then takes its name. A writer that is dropped before removes it;
/// [`HfWriter::keep`] leaves it for a later writer with [`WriterOptions::resume`].
///
/// Tensors can be written by many threads at once, in parts: [`HfWriter::write_part`], then
/// [`HfWriter::seal`].
///
/// ```
/// use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
/// use prune_core::{DType, TensorInfo, TensorSink, TensorSource};
///
/// let directory = tempfile::tempdir()?;
/// let out = directory.path().join("model");
/// let plan = ["b", "a"].map(|name| TensorInfo {
///     name: name.into(),
///     dtype: DType::U8,
///     shape: vec![2],
/// });
/// let options =
///     WriterOptions { plan: plan.to_vec(), shard_size: 2, ..WriterOptions::default() };
/// let mut writer = HfWriter::create(&out, options)?;
/// writer.write(&plan[0], &[3, 4])?;
/// writer.write(&plan[1], &[1, 2])?;
/// writer.add_file("config.json", b"{}")?;
/// assert!(!out.exists());
/// writer.finish()?;
///
/// let model = Checkpoint::open(&out)?;
/// assert_eq!(model.shards(), 2);
/// assert_eq!(model.read("b")?, [3, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct HfWriter {
    // First, so that the files are closed when `staging` removes them.
    files: Vec<File>,
    staging: Staging,
    layout: Layout,
    places: HashMap<String, Place>,
    added: BTreeSet<String>,
}

/// Where a tensor is in the layout, and whether it is complete.
#[derive(Debug)]
struct Place {
    shard: usize,
    index: usize,
    written: AtomicBool,
}

impl HfWriter {
    /// A writer of the directory `out`, whose parent has to exist.
    ///
    /// Creates all weight files at their final sizes (sparse, where the file system can).
    ///
    /// # Errors
    /// [`Error::OutputExists`], [`Error::OutputProtected`], [`Error::OutputInSource`] and
    /// [`Error::OutputName`] for an `out` that will not do; [`Error::Busy`] when another process
    /// writes to it; [`Error::Plan`]; [`Error::Io`].
    pub fn create(out: &Path, options: WriterOptions) -> Result<HfWriter> {
        let WriterOptions { plan, shard_size, metadata, overwrite, source, resume, beside } =
            options;
        let mut all_metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        all_metadata.extend(metadata);
        if let Some((name, _)) = &beside {
            check_beside(name)?;
        }
        let layout = Layout::new(plan, shard_size, &all_metadata, beside)?;
        let staging = Staging::create(out, source.as_deref(), overwrite, resume)?;
        let mut files = Vec::with_capacity(layout.shards.len());
        let mut places = HashMap::new();
        for (number, shard) in layout.shards.iter().enumerate() {
            let path = staging.path(&shard.name);
            let file = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|e| Error::io("create", &path, e))?;
            file.set_len(shard.size)
                .and_then(|()| write_all_at(&file, &shard.head, 0))
                .map_err(|e| Error::io("write", &path, e))?;
            files.push(file);
            places.extend(shard.tensors.iter().enumerate().map(|(index, (t, _))| {
                (t.name.clone(), Place { shard: number, index, written: AtomicBool::new(false) })
            }));
        }
        Ok(HfWriter { files, staging, layout, places, added: BTreeSet::new() })
    }

    /// Where the files of the output `out` are before it is complete: a directory that an
    /// interrupted writer may have left, or none.
    ///
    /// # Errors
    /// [`Error::OutputName`]; [`Error::Io`] when the parent of `out` cannot be opened.
    ///
    /// ```
    /// let directory = tempfile::tempdir()?;
    /// let partial = prune_checkpoint::HfWriter::partial(&directory.path().join("model"))?;
    /// assert_eq!(partial.file_name().unwrap(), ".model.prune-partial");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn partial(out: &Path) -> Result<PathBuf> {
        Staging::partial(out)
    }

    /// The path of a file of the caller's own, such as a journal, among those of the incomplete
    /// output. [`HfWriter::finish`] removes it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.staging.path(name)
    }

    /// From here on an incomplete output stays on the disk, for [`WriterOptions::resume`].
    pub fn keep(&mut self) {
        self.staging.keep();
    }

    fn place(&self, tensor: &str) -> Result<(&Place, &TensorInfo, u64)> {
        let place = self
            .places
            .get(tensor)
            .ok_or_else(|| Error::NotPlanned { tensor: tensor.to_string() })?;
        let (info, start) = &self.layout.shards[place.shard].tensors[place.index];
        Ok((place, info, *start))
    }

    fn part(&self, tensor: &str, offset: u64, len: usize) -> Result<(&Place, u64)> {
        let (place, info, start) = self.place(tensor)?;
        let size = info.nbytes() as u64;
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            return Err(Error::PlanMismatch {
                tensor: tensor.to_string(),
                field: "range of bytes",
                found: format!("{len} from {offset} on"),
                expected: format!("within {size}"),
            });
        }
        Ok((place, start + offset))
    }

    fn io(&self, verb: &'static str, shard: usize, error: io::Error) -> Error {
        Error::io(verb, &self.staging.path(&self.layout.shards[shard].name), error)
    }

    /// Writes little-endian bytes of a tensor of the plan from byte `offset` on. The tensor is
    /// complete when [`HfWriter::seal`] says so.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::WrittenTwice`] for a sealed tensor;
    /// [`Error::PlanMismatch`] when the range leaves the tensor; [`Error::Io`].
    pub fn write_part(&self, tensor: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let (place, start) = self.part(tensor, offset, bytes.len())?;
        if place.written.load(Ordering::Relaxed) {
            return Err(Error::WrittenTwice { tensor: tensor.to_string() });
        }
        write_all_at(&self.files[place.shard], bytes, start)
            .map_err(|e| self.io("write", place.shard, e))
    }

    /// Fills `buf` with what stands in the incomplete output, from byte `offset` of the tensor on.
    ///
    /// # Errors
    /// As [`HfWriter::write_part`], but for [`Error::WrittenTwice`].
    pub fn read_part(&self, tensor: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (place, start) = self.part(tensor, offset, buf.len())?;
        read_exact_at(&self.files[place.shard], buf, start)
            .map_err(|e| self.io("read", place.shard, e))
    }

    /// Declares a tensor complete, after making its bytes durable.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::WrittenTwice`]; [`Error::Io`].
    pub fn seal(&self, tensor: &str) -> Result<()> {
        let (place, ..) = self.place(tensor)?;
        self.files[place.shard].sync_data().map_err(|e| self.io("write", place.shard, e))?;
        match place.written.swap(true, Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::WrittenTwice { tensor: tensor.to_string() }),
        }
    }

    /// Writes the little-endian bytes of one tensor of the plan.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::WrittenTwice`]; [`Error::PlanMismatch`] for another dtype,
    /// shape or number of bytes than planned; [`Error::Io`].
    pub fn write_tensor(&mut self, info: &TensorInfo, bytes: &[u8]) -> Result<()> {
        let (place, planned, _) = self.place(&info.name)?;
        let mismatch = |field, found: String, expected: String| {
            Err(Error::PlanMismatch { tensor: info.name.clone(), field, found, expected })
        };
        if info.dtype != planned.dtype {
            return mismatch("dtype", info.dtype.to_string(), planned.dtype.to_string());
        }
        if info.shape != planned.shape {
            let [found, expected] = [&info.shape, &planned.shape].map(|s| format!("{s:?}"));
            return mismatch("shape", found, expected);
        }
        if bytes.len() != planned.nbytes() {
            let expected = planned.nbytes().to_string();
            return mismatch("length in bytes", bytes.len().to_string(), expected);
        }
        self.write_part(&info.name, 0, bytes)?;
        place.written.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Adds a file without weights, such as `config.json`.
    ///
    /// # Errors
    /// [`Error::FileName`] for a name that is taken, has path separators or belongs to weights;
    /// [`Error::Io`].
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.add(name, bytes)
    }

    /// Adds a file that came with the source. Copies its contents piece by piece, not its
    /// permissions.
    ///
    /// # Errors
    /// As [`HfWriter::add_file`].
    pub fn copy_file(&mut self, file: &AuxiliaryFile) -> Result<()> {
        match &file.contents {
            Contents::Bytes(bytes) => self.add(&file.name, bytes.as_slice()),
            Contents::Path(path) => {
                let source = File::open(path).map_err(|e| Error::io("open", path, e))?;
                self.add(&file.name, source)
            }
        }
    }

    fn add(&mut self, name: &str, mut contents: impl io::Read) -> Result<()> {
        let refuse = |reason| Err(Error::FileName { name: name.to_string(), reason });
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
            return refuse("expected a plain file name, without a path");
        }
        if holds_weights(name) {
            return refuse("weights are written as tensors of the plan");
        }
        if name == LOCK {
            return refuse("the name is used while the checkpoint is written");
        }
        if self.added.contains(name) {
            return refuse("it was added already");
        }
        let path = self.staging.path(name);
        let write = |e| Error::io("write", &path, e);
        let mut file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        io::copy(&mut contents, &mut file).map_err(write)?;
        file.flush().and_then(|()| file.sync_all()).map_err(write)?;
        self.added.insert(name.to_string());
        Ok(())
    }

    /// Completes the checkpoint: checks that every planned tensor was written, writes the index,
    /// makes the files durable and gives the directory its name.
    ///
    /// # Errors
    /// [`Error::NotWritten`]; [`Error::OutputExists`] when something has appeared at the output
    /// meanwhile; [`Error::Io`]. After an error nothing is left of the new checkpoint, and an
    /// output that was to be replaced is still there.
    pub fn finish(mut self) -> Result<()> {
        let written = |place: &Place| place.written.load(Ordering::Relaxed);
        let missing = self.places.values().filter(|place| !written(place)).count();
        let tensors = self.layout.shards.iter().flat_map(|s| &s.tensors);
        let written = |name: &str| self.places.get(name).is_some_and(written);
        if let Some((first, _)) = tensors.into_iter().find(|(t, _)| !written(&t.name)) {
            return Err(Error::NotWritten { tensor: first.name.clone(), missing });
        }
        for (file, shard) in self.files.drain(..).zip(&self.layout.shards) {
            let path = self.staging.path(&shard.name);
            file.sync_all().map_err(|e| Error::io("write", &path, e))?;
        }
        if let Some(index) = self.layout.index() {
            let path = self.staging.path(INDEX);
            File::create(&path)
                .and_then(|mut file| file.write_all(&index).and_then(|()| file.sync_all()))
                .map_err(|e| Error::io("write", &path, e))?;
        }
        let shards = self.layout.shards.iter().map(|s| s.name.clone());
        self.added.extend(shards);
        self.added.insert(INDEX.to_string());
        self.staging.commit(&self.added)
    }
}

/// Refuses a name that readers of the model would take for a part of it.
fn check_beside(name: &str) -> Result<()> {
    let stem = name.strip_suffix(".safetensors").unwrap_or_default();
    let plain = stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if stem.is_empty() || !plain || stem == "model" || stem.starts_with("model-") {
        let reason =
            "expected letters and digits before `.safetensors`, other than those of a model";
        return Err(Error::FileName { name: name.to_string(), reason });
    }
    Ok(())
}

impl TensorSink for HfWriter {
    fn write(&mut self, info: &TensorInfo, bytes: &[u8]) -> prune_core::Result<()> {
        Ok(self.write_tensor(info, bytes)?)
    }

    fn finish(self: Box<Self>) -> prune_core::Result<()> {
        Ok(HfWriter::finish(*self)?)
    }
}
