use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::types::GgufType;
use crate::positional::write_all_at;
use crate::{Error, Result, limits};

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
/// is called `.NAME.prune-partial`, and is removed when the writer is dropped before.
///
/// ```
/// use prune_checkpoint::{GgufTensor, GgufType, GgufValue, GgufWriter};
/// use prune_core::DType;
///
/// let directory = tempfile::tempdir()?;
/// let out = directory.path().join("w.gguf");
/// let tensor =
///     GgufTensor { name: "w".into(), shape: vec![2], kind: GgufType::Plain(DType::F32) };
/// let metadata = vec![("general.architecture".into(), GgufValue::String("llama".into()))];
/// let writer = GgufWriter::create(&out, metadata, vec![tensor], false)?;
/// writer.write("w", &[0, 0, 128, 63, 0, 0, 0, 64])?;
/// assert!(!out.exists());
/// writer.finish()?;
/// assert!(std::fs::read(&out)?.starts_with(b"GGUF"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    overwrite: bool,
    finished: bool,
    places: HashMap<String, Place>,
    /// The names in their order, for messages.
    names: Vec<String>,
}

#[derive(Debug)]
struct Place {
    start: u64,
    bytes: usize,
    written: AtomicBool,
}

const ALIGNMENT: u64 = 32;
/// `GGML_MAX_NAME`, which counts a terminator.
const NAME_BYTES: usize = 63;

impl GgufWriter {
    /// A writer of the file `out`, whose directory has to exist.
    ///
    /// # Errors
    /// [`Error::OutputExists`] unless `overwrite`; [`Error::OutputName`] for a path that names no
    /// file; [`Error::Plan`] for a key or tensor that is listed twice, a name that is too long, and
    /// a shape that does not divide into the blocks of its type; [`Error::Io`].
    pub fn create(
        out: &Path,
        metadata: Vec<(String, GgufValue)>,
        tensors: Vec<GgufTensor>,
        overwrite: bool,
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
        let name = out.file_name().ok_or_else(|| Error::OutputName { path: out.to_path_buf() })?;
        check_free(out, overwrite)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".prune-partial");
        let temporary = out.with_file_name(hidden);
        let create = |e| Error::io("create", &temporary, e);
        let file = File::create(&temporary).map_err(create)?;
        file.set_len(at).and_then(|()| write_all_at(&file, &head, 0)).map_err(create)?;
        let target = out.to_path_buf();
        Ok(GgufWriter { file, temporary, target, overwrite, finished: false, places, names })
    }

    /// Writes the stored bytes of one tensor: elements in little-endian order, or blocks.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::WrittenTwice`]; [`Error::PlanMismatch`] for another number
    /// of bytes than the shape and the type give; [`Error::Io`].
    pub fn write(&self, tensor: &str, bytes: &[u8]) -> Result<()> {
        let name = || tensor.to_string();
        let place = self.places.get(tensor).ok_or_else(|| Error::NotPlanned { tensor: name() })?;
        if bytes.len() != place.bytes {
            return Err(Error::PlanMismatch {
                tensor: name(),
                field: "length in bytes",
                found: bytes.len().to_string(),
                expected: place.bytes.to_string(),
            });
        }
        if place.written.swap(true, Ordering::Relaxed) {
            return Err(Error::WrittenTwice { tensor: name() });
        }
        write_all_at(&self.file, bytes, place.start)
            .map_err(|e| Error::io("write", &self.temporary, e))
    }

    /// Completes the file: checks that every tensor was written, makes it durable and gives it its
    /// name.
    ///
    /// # Errors
    /// [`Error::NotWritten`]; [`Error::OutputExists`] when something has appeared at the output
    /// meanwhile; [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        let open = |name: &&String| {
            self.places.get(*name).is_none_or(|p| !p.written.load(Ordering::Relaxed))
        };
        let missing: Vec<&String> = self.names.iter().filter(open).collect();
        if let Some(first) = missing.first() {
            return Err(Error::NotWritten { tensor: (*first).clone(), missing: missing.len() });
        }
        self.file.sync_all().map_err(|e| Error::io("write", &self.temporary, e))?;
        check_free(&self.target, self.overwrite)?;
        fs::rename(&self.temporary, &self.target)
            .map_err(|e| Error::io("rename to its final name", &self.temporary, e))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing can be reported from here, and the next run truncates what is left.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn check_free(out: &Path, overwrite: bool) -> Result<()> {
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
