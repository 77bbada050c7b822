use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::types::GgufType;
use crate::positional::{read_exact_at, write_all_at};
use crate::staging::Staging;
use crate::{Error, Result, limits};

/// How a GGUF file is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GgufOptions {
    /// Whether a file at the output is replaced, once the new one is complete.
    pub overwrite: bool,
    /// Whether what an interrupted writer left behind is gone on with instead of removed: none of
    /// its tensors counts as written before [`GgufWriter::seal`] says so.
    pub resume: bool,
    /// What is read meanwhile. An output that would be in it or contain it is refused.
    pub source: Option<PathBuf>,
}

/// A metadata value of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// An unsigned number.
    U32(u32),
    /// A large unsigned number.
    U64(u64),
    /// A 32-bit float.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// A text.
    String(String),
    /// A list of texts.
    Strings(Vec<String>),
    /// A list of signed numbers.
    I32s(Vec<i32>),
    /// A list of 32-bit floats.
    F32s(Vec<f32>),
}

impl GgufValue {
    fn write(&self, out: &mut Vec<u8>) {
        let mut kind = |id: u32| out.extend(id.to_le_bytes());
        match self {
            GgufValue::U32(v) => {
                kind(4);
                out.extend(v.to_le_bytes());
            }
            GgufValue::U64(v) => {
                kind(10);
                out.extend(v.to_le_bytes());
            }
            GgufValue::F32(v) => {
                kind(6);
                out.extend(v.to_le_bytes());
            }
            GgufValue::Bool(v) => {
                kind(7);
                out.push(u8::from(*v));
            }
            GgufValue::String(v) => {
                kind(8);
                string(out, v);
            }
            GgufValue::Strings(v) => {
                list(out, 8, v.len());
                v.iter().for_each(|s| string(out, s));
            }
            GgufValue::I32s(v) => {
                list(out, 5, v.len());
                v.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            GgufValue::F32s(v) => {
                list(out, 6, v.len());
                v.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
        }
    }
}

fn list(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor of a GGUF file to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name in the file, below 64 bytes.
    pub name: String,
    /// Its shape, outermost dimension first (the file has it the other way round).
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub kind: GgufType,
}

impl GgufTensor {
    /// The stored bytes; `None` when rows do not divide into blocks, or beyond the address space.
    pub fn nbytes(&self) -> Option<usize> {
        let row = *self.shape.last()?;
        let elements = self.kind.elements();
        if !row.is_multiple_of(elements) {
            return None;
        }
        let count = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        (count / elements).checked_mul(self.kind.bytes())
    }
}

/// Writes a GGUF file (version 3), a tensor at a time and in any order, from many threads.
///
/// The list of tensors fixes every offset before the first byte, in the order given; offsets and
/// the end are padded to 32 bytes, as ggml's reader demands. Until [`GgufWriter::finish`] the file
/// is in a directory `.NAME.prune-partial` beside the output, which is removed when the writer is
/// dropped before, unless [`GgufWriter::keep`] was called.
///
/// ```
/// use prune_checkpoint::{GgufOptions, GgufTensor, GgufType, GgufValue, GgufWriter};
/// use prune_core::DType;
///
/// let directory = tempfile::tempdir()?;
/// let out = directory.path().join("w.gguf");
/// let tensor =
///     GgufTensor { name: "w".into(), shape: vec![2], kind: GgufType::Plain(DType::F32) };
/// let metadata = vec![("general.architecture".into(), GgufValue::String("llama".into()))];
/// let writer = GgufWriter::create(&out, metadata, vec![tensor], &GgufOptions::default())?;
/// writer.write("w", &[0, 0, 128, 63, 0, 0, 0, 64])?;
/// assert!(!out.exists());
/// writer.finish()?;
/// assert!(std::fs::read(&out)?.starts_with(b"GGUF"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    // First, so that the file is closed when `staging` removes it.
    file: File,
    staging: Staging,
    places: HashMap<String, Place>,
    /// The names in their order, for messages.
    names: Vec<String>,
    /// Files that go beside the output, with their endings.
    beside: Vec<(String, String)>,
}

#[derive(Debug)]
struct Place {
    start: u64,
    bytes: usize,
    written: AtomicBool,
}

/// The file while it is incomplete.
const FILE: &str = "model.gguf";
const ALIGNMENT: u64 = 32;
/// `GGML_MAX_NAME`, which counts a terminator.
const NAME_BYTES: usize = 63;

impl GgufWriter {
    /// A writer of the file `out`, whose directory has to exist.
    ///
    /// # Errors
    /// [`Error::OutputExists`], [`Error::OutputProtected`], [`Error::OutputInSource`] and
    /// [`Error::OutputName`] for an `out` that will not do; [`Error::Busy`] when another process
    /// writes to it; [`Error::Plan`] for a key or tensor that is listed twice, a name that is too
    /// long, and a shape that does not divide into the blocks of its type; [`Error::Io`].
    pub fn create(
        out: &Path,
        metadata: Vec<(String, GgufValue)>,
        tensors: Vec<GgufTensor>,
        options: &GgufOptions,
    ) -> Result<GgufWriter> {
        let mut head = header(&metadata, &tensors)?;
        pad(&mut head);
        let mut places = HashMap::new();
        let mut at = head.len() as u64;
        let mut names = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let bytes = size_of(&tensor)?;
            let place = Place { start: at, bytes, written: AtomicBool::new(false) };
            at = padded(at + bytes as u64);
            names.push(tensor.name.clone());
            places.insert(tensor.name, place);
        }
        let GgufOptions { overwrite, resume, source } = options;
        let staging = Staging::create_file(out, source.as_deref(), *overwrite, *resume)?;
        let path = staging.path(FILE);
        let create = |e| Error::io("create", &path, e);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(create)?;
        file.set_len(at).and_then(|()| write_all_at(&file, &head, 0)).map_err(create)?;
        Ok(GgufWriter { file, staging, places, names, beside: Vec::new() })
    }

    /// The path of a file of the caller's own, such as a journal, beside the incomplete output.
    /// [`GgufWriter::finish`] removes it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.staging.path(name)
    }

    /// From here on an incomplete output stays on the disk, for [`GgufOptions::resume`].
    pub fn keep(&mut self) {
        self.staging.keep();
    }

    /// Stored bytes of a tensor.
    pub(super) fn nbytes(&self, tensor: &str) -> Option<usize> {
        self.places.get(tensor).map(|p| p.bytes)
    }

    fn part(&self, tensor: &str, offset: usize, len: usize) -> Result<(&Place, u64)> {
        let place = self
            .places
            .get(tensor)
            .ok_or_else(|| Error::NotPlanned { tensor: tensor.to_string() })?;
        if offset.checked_add(len).is_none_or(|end| end > place.bytes) {
            return Err(Error::PlanMismatch {
                tensor: tensor.to_string(),
                field: "range of bytes",
                found: format!("{len} from {offset} on"),
                expected: format!("within {}", place.bytes),
            });
        }
        Ok((place, place.start + offset as u64))
    }

    fn io(&self, verb: &'static str, error: std::io::Error) -> Error {
        Error::io(verb, &self.staging.path(FILE), error)
    }

    /// Writes stored bytes of a tensor from byte `offset` on. The tensor is complete when
    /// [`GgufWriter::seal`] says so.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::WrittenTwice`] for a sealed tensor;
    /// [`Error::PlanMismatch`] when the range leaves the tensor; [`Error::Io`].
    pub fn write_part(&self, tensor: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        let (place, start) = self.part(tensor, offset, bytes.len())?;
        if place.written.load(Ordering::Relaxed) {
            return Err(Error::WrittenTwice { tensor: tensor.to_string() });
        }
        write_all_at(&self.file, bytes, start).map_err(|e| self.io("write", e))
    }

    /// Fills `buf` with what stands in the incomplete file, from stored byte `offset` of the tensor
    /// on.
    ///
    /// # Errors
    /// As [`GgufWriter::write_part`], but for [`Error::WrittenTwice`].
    pub fn read_part(&self, tensor: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
        let (_, start) = self.part(tensor, offset, buf.len())?;
        read_exact_at(&self.file, buf, start).map_err(|e| self.io("read", e))
    }

    /// Declares a tensor complete, after making its bytes durable.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::WrittenTwice`]; [`Error::Io`].
    pub fn seal(&self, tensor: &str) -> Result<()> {
        let (place, _) = self.part(tensor, 0, 0)?;
        self.file.sync_data().map_err(|e| self.io("write", e))?;
        match place.written.swap(true, Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::WrittenTwice { tensor: tensor.to_string() }),
        }
    }

    /// Writes the stored bytes of one tensor: elements in little-endian order, or blocks.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::WrittenTwice`]; [`Error::PlanMismatch`] for another number
    /// of bytes than the shape and the type give; [`Error::Io`].
    pub fn write(&self, tensor: &str, bytes: &[u8]) -> Result<()> {
        let (place, start) = self.part(tensor, 0, 0)?;
        if bytes.len() != place.bytes {
            return Err(Error::PlanMismatch {
                tensor: tensor.to_string(),
                field: "length in bytes",
                found: bytes.len().to_string(),
                expected: place.bytes.to_string(),
            });
        }
        if place.written.swap(true, Ordering::Relaxed) {
            return Err(Error::WrittenTwice { tensor: tensor.to_string() });
        }
        write_all_at(&self.file, bytes, start).map_err(|e| self.io("write", e))
    }

    /// Adds a file that will lie beside the output, as `OUTPUT.ENDING`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add_beside(&mut self, ending: &str, bytes: &[u8]) -> Result<()> {
        let name = format!("beside-{}", self.beside.len());
        let path = self.staging.path(&name);
        let write = |e| Error::io("write", &path, e);
        let mut file = File::create(&path).map_err(write)?;
        std::io::Write::write_all(&mut file, bytes).map_err(write)?;
        file.sync_all().map_err(write)?;
        self.beside.push((name, ending.to_string()));
        Ok(())
    }

    /// Completes the file: checks that every tensor was written, makes it durable and gives it its
    /// name.
    ///
    /// # Errors
    /// [`Error::NotWritten`]; [`Error::OutputExists`] when something has appeared at the output
    /// meanwhile; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        let open = |name: &&String| {
            self.places.get(*name).is_none_or(|p| !p.written.load(Ordering::Relaxed))
        };
        let missing: Vec<&String> = self.names.iter().filter(open).collect();
        if let Some(first) = missing.first() {
            return Err(Error::NotWritten { tensor: (*first).clone(), missing: missing.len() });
        }
        self.file.sync_all().map_err(|e| self.io("write", e))?;
        self.staging.commit_file(FILE, &self.beside)
    }
}

fn header(metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<Vec<u8>> {
    let refuse = |what: &str, reason: String| Error::Plan { what: what.to_string(), reason };
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    let mut seen = BTreeSet::new();
    for (key, value) in metadata {
        if !seen.insert(key) {
            return Err(refuse(key, "the key is listed twice".to_string()));
        }
        string(&mut out, key);
        value.write(&mut out);
    }
    let mut seen = BTreeSet::new();
    let mut offset = 0u64;
    for tensor in tensors {
        let name = &tensor.name;
        if !seen.insert(name) {
            return Err(refuse(name, "the tensor is listed twice".to_string()));
        }
        if name.len() > NAME_BYTES {
            let reason = format!("the name has {} bytes, at most {NAME_BYTES} fit", name.len());
            return Err(refuse(name, reason));
        }
        let dims = tensor.shape.len();
        if dims == 0 || dims > limits::GGUF_DIMS as usize {
            let reason = format!("it has {dims} dimensions, expected 1 to {}", limits::GGUF_DIMS);
            return Err(refuse(name, reason));
        }
        string(&mut out, name);
        out.extend((dims as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|d| out.extend((*d as u64).to_le_bytes()));
        let kind = tensor
            .kind
            .id()
            .ok_or_else(|| refuse(name, format!("GGUF has no tensors of {}", tensor.kind)))?;
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = padded(offset + size_of(tensor)? as u64);
    }
    Ok(out)
}

fn size_of(tensor: &GgufTensor) -> Result<usize> {
    tensor.nbytes().ok_or_else(|| Error::Plan {
        what: tensor.name.clone(),
        reason: format!(
            "rows of shape {:?} do not divide into the {} elements of a {} block",
            tensor.shape,
            tensor.kind.elements(),
            tensor.kind
        ),
    })
}

fn padded(n: u64) -> u64 {
    n.div_ceil(ALIGNMENT) * ALIGNMENT
}

fn pad(out: &mut Vec<u8>) {
    out.resize(padded(out.len() as u64) as usize, 0);
}
