use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use prune_core::{TensorInfo, TensorSource};
use serde_json::Value;

use crate::auxiliary::auxiliary_files;
use crate::gguf::GgufSource;
use crate::layout::INDEX;
use crate::quantized::quantization_config;
use crate::ranged_file::RangedFile;
use crate::safetensors::SafetensorsSource;
use crate::{AuxiliaryFile, Contents, Error, FileState, Result, limits};

const SINGLE: &str = "model.safetensors";

/// A model on disk, read a tensor or a part of a tensor at a time.
///
/// Opening reads headers and checks all of them; tensors are fetched from the files when asked
/// for, so memory holds the headers (for GGUF also the vocabulary) and the caller's buffers. A
/// `Checkpoint` can be read from many threads.
///
/// Tensors of a GGUF file carry their Hugging Face names. F32, F16, BF16, F64 and integers are
/// delivered as they are stored; quantised blocks are delivered as F32, with the bits that the
/// reference implementation gives. The rows of queries and keys, which llama.cpp permutes for
/// architecture `llama`, are put back.
///
/// ```
/// use prune_checkpoint::{Checkpoint, Format, HfWriter, WriterOptions};
/// use prune_core::{DType, TensorInfo, TensorSink, TensorSource, encode_f32};
///
/// let directory = tempfile::tempdir()?;
/// let model = directory.path().join("model");
/// let info = TensorInfo { name: "w".into(), dtype: DType::F16, shape: vec![2, 2] };
/// let options = WriterOptions { plan: vec![info.clone()], ..WriterOptions::default() };
/// let mut writer = HfWriter::create(&model, options)?;
/// writer.write(&info, &encode_f32("w", DType::F16, &[1.0, 2.0, 3.0, 4.0])?)?;
/// writer.finish()?;
///
/// let checkpoint = Checkpoint::open(&model)?;
/// assert_eq!(checkpoint.format(), Format::Safetensors);
/// assert_eq!(checkpoint.tensors(), [info]);
/// assert_eq!(checkpoint.read_f32("w")?, [1.0, 2.0, 3.0, 4.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// The model directory, where there is one.
    directory: Option<PathBuf>,
    tensors: Tensors,
}

#[derive(Debug)]
enum Tensors {
    Safetensors(SafetensorsSource),
    // Boxed: a vocabulary and its metadata are much larger than a list of shards.
    Gguf(Box<GgufSource>),
}

/// The file format of a [`Checkpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// One or more safetensors files.
    Safetensors,
    /// A GGUF file.
    Gguf,
}

impl Checkpoint {
    /// The checkpoint at `path`: a Hugging Face directory, a `.safetensors` file, the
    /// `.safetensors.index.json` of several, or a `.gguf` file.
    ///
    /// In a directory `model.safetensors` comes before `model.safetensors.index.json`, as in
    /// transformers. Costs the time to read and check all headers.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`], [`Error::PickleOnly`] and [`Error::UnknownFormat`] when there is
    /// nothing to read; [`Error::Io`]; one of the variants about files, tensors and fields when a
    /// header is damaged or hostile; [`Error::Unsupported`] for valid files of other kinds.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let metadata = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if metadata.is_dir() {
            let single = path.join(SINGLE);
            let index = path.join(INDEX);
            let tensors = if exists(&single)? {
                SafetensorsSource::open_file(&single)?
            } else if exists(&index)? {
                SafetensorsSource::open_index(&index)?
            } else {
                return Err(nothing_in(path)?);
            };
            return Ok(Checkpoint {
                path: path.to_path_buf(),
                directory: Some(path.to_path_buf()),
                tensors: Tensors::Safetensors(tensors),
            });
        }
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.to_path_buf() });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let tensors = if name.ends_with(".safetensors") {
            Tensors::Safetensors(SafetensorsSource::open_file(path)?)
        } else if name.ends_with(".safetensors.index.json") {
            Tensors::Safetensors(SafetensorsSource::open_index(path)?)
        } else if name.ends_with(".gguf") {
            Tensors::Gguf(Box::new(GgufSource::open(path)?))
        } else {
            return Err(Error::UnknownFormat { path: path.to_path_buf() });
        };
        // A weight file beside its configuration stands for the directory that both are in.
        let directory = match (&tensors, path.parent()) {
            (Tensors::Safetensors(_), Some(parent)) if exists(&parent.join("config.json"))? => {
                Some(parent.to_path_buf())
            }
            _ => None,
        };
        Ok(Checkpoint { path: path.to_path_buf(), directory, tensors })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file format.
    pub fn format(&self) -> Format {
        match self.tensors {
            Tensors::Safetensors(_) => Format::Safetensors,
            Tensors::Gguf(_) => Format::Gguf,
        }
    }

    /// The number of files that hold tensors.
    pub fn shards(&self) -> usize {
        match &self.tensors {
            Tensors::Safetensors(source) => source.files(),
            Tensors::Gguf(_) => 1,
        }
    }

    /// Whether the configuration, or a file beside it, describes a quantisation of the weights.
    pub(crate) fn is_quantized(&self) -> Result<bool> {
        let has_config = self.directory.as_ref().is_some_and(|d| d.join("config.json").is_file());
        Ok(has_config && quantization_config(self)?.is_some())
    }

    /// The GGUF file, where it is one.
    pub(crate) fn gguf(&self) -> Option<&GgufSource> {
        match &self.tensors {
            Tensors::Gguf(source) => Some(source),
            Tensors::Safetensors(_) => None,
        }
    }

    /// The state of every file that holds tensors, and of `config.json` where there is one: what to
    /// compare to find out whether the checkpoint was changed since.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// ```no_run
    /// # fn f(checkpoint: &prune_checkpoint::Checkpoint) -> prune_checkpoint::Result<()> {
    /// let before = checkpoint.file_states()?;
    /// // ... work that reads the checkpoint ...
    /// assert_eq!(checkpoint.file_states()?, before);
    /// # Ok(())
    /// # }
    /// ```
    pub fn file_states(&self) -> Result<Vec<FileState>> {
        let mut paths: Vec<PathBuf> = match &self.tensors {
            Tensors::Safetensors(source) => source.paths().map(Path::to_path_buf).collect(),
            Tensors::Gguf(_) => vec![self.path.clone()],
        };
        let config = self.directory.as_ref().map(|d| d.join("config.json"));
        if let Some(config) = config.filter(|path| path.is_file()) {
            paths.push(config);
        }
        paths.iter().map(|path| FileState::of(path)).collect()
    }

    /// The configuration of the model: `config.json`, or what the metadata of a GGUF file says in
    /// the same terms.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no `config.json`; [`Error::Json`] when it is no JSON object;
    /// [`Error::Field`] and [`Error::Unsupported`] when a GGUF file lacks what is needed or uses
    /// what `config.json` cannot say.
    ///
    /// ```
    /// use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
    ///
    /// let directory = tempfile::tempdir()?;
    /// let model = directory.path().join("model");
    /// let mut writer = HfWriter::create(&model, WriterOptions::default())?;
    /// writer.add_file("config.json", br#"{"hidden_size": 576}"#)?;
    /// writer.add_file("tokenizer.json", b"{}")?;
    /// writer.finish()?;
    ///
    /// let checkpoint = Checkpoint::open(&model)?;
    /// assert_eq!(checkpoint.config()?["hidden_size"], 576);
    /// assert_eq!(checkpoint.tokenizer_json()?.as_deref(), Some(&b"{}"[..]));
    /// let files = checkpoint.auxiliary_files()?;
    /// assert_eq!(files[0].name, "config.json");
    /// assert_eq!(files[1].name, "tokenizer.json");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn config(&self) -> Result<Value> {
        let directory = match (&self.tensors, &self.directory) {
            (Tensors::Gguf(source), _) => return source.config(),
            (_, Some(directory)) => directory.as_path(),
            (_, None) => self.path.parent().unwrap_or(Path::new("")),
        };
        let path = directory.join("config.json");
        let bytes = RangedFile::open(&path)?.read_all("configuration", limits::JSON_BYTES)?;
        let json = |reason| Error::Json { path: path.clone(), what: "configuration", reason };
        match serde_json::from_slice(&bytes) {
            Ok(config @ Value::Object(_)) => Ok(config),
            Ok(_) => Err(json("it is not an object".to_string())),
            Err(e) => Err(json(e.to_string())),
        }
    }

    /// The bytes of `tokenizer.json`, or of one made from the vocabulary of a GGUF file; `None`
    /// where there is none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TooLarge`]; [`Error::Field`] when the vocabulary of a GGUF file is
    /// damaged or of a kind whose splitting is not known.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        match (&self.tensors, &self.directory) {
            (Tensors::Gguf(source), _) => source.tokenizer_json(),
            (_, None) => Ok(None),
            (_, Some(directory)) => {
                let path = directory.join("tokenizer.json");
                if !exists(&path)? {
                    return Ok(None);
                }
                RangedFile::open(&path)?.read_all("tokenizer", limits::JSON_BYTES).map(Some)
            }
        }
    }

    /// The files that have to accompany the weights for the model to work elsewhere, by name.
    ///
    /// For a directory that is every regular file in it, without weights in any format, their
    /// indexes and subdirectories. A single `.safetensors` file counts for its directory when
    /// `config.json` lies beside it, and has no such files otherwise. For a GGUF file they are
    /// made from its metadata: `config.json`, `generation_config.json` and, with a vocabulary,
    /// `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::FileName`] for a name that is not UTF-8; for GGUF those of
    /// [`Checkpoint::config`] and [`Checkpoint::tokenizer_json`].
    pub fn auxiliary_files(&self) -> Result<Vec<AuxiliaryFile>> {
        let source = match (&self.tensors, &self.directory) {
            (Tensors::Gguf(source), _) => source,
            (_, Some(directory)) => return auxiliary_files(directory),
            (_, None) => return Ok(Vec::new()),
        };
        let mut files = Vec::new();
        let mut add = |name: &str, bytes| {
            let contents = Contents::Bytes(bytes);
            files.push(AuxiliaryFile { name: name.to_string(), contents });
        };
        add("config.json", pretty(&source.config()?));
        add("generation_config.json", pretty(&source.generation_config()?));
        if let Some(bytes) = source.tokenizer_json()? {
            add("tokenizer.json", bytes);
        }
        if let Some(config) = source.tokenizer_config()? {
            add("tokenizer_config.json", pretty(&config));
        }
        Ok(files)
    }
}

impl TensorSource for Checkpoint {
    fn tensors(&self) -> &[TensorInfo] {
        match &self.tensors {
            Tensors::Safetensors(source) => source.tensors(),
            Tensors::Gguf(source) => source.tensors(),
        }
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let tensors = self.tensors();
        let index = tensors
            .binary_search_by(|t| t.name.as_str().cmp(name))
            .map_err(|_| prune_core::Error::UnknownTensor(name.to_string()))?;
        let size = tensors[index].nbytes();
        if offset.checked_add(buf.len()).is_none_or(|end| end > size) {
            return Err(prune_core::Error::OutOfRange {
                what: format!("the range read from tensor `{name}`"),
                found: format!("{} bytes from byte {offset} on", buf.len()),
                expected: format!("a range within its {size} bytes"),
            });
        }
        match &self.tensors {
            Tensors::Safetensors(source) => source.read_at(index, offset, buf)?,
            Tensors::Gguf(source) => source.read_at(index, offset, buf)?,
        }
        Ok(())
    }
}

/// Whether something is at `path`; only "not found" counts as no.
fn exists(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("open", path, e)),
    }
}

/// Why `directory` holds no checkpoint.
fn nothing_in(directory: &Path) -> Result<Error> {
    let read = |e| Error::io("read", directory, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(read)? {
        names.push(entry.map_err(read)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let first = |endings: &[&str]| {
        names.iter().find(|n| endings.iter().any(|e| n.to_ascii_lowercase().ends_with(e)))
    };
    let path = directory.to_path_buf();
    if let Some(file) = first(&[".safetensors", ".safetensors.index.json", ".gguf"]) {
        let hint = format!("; to read `{file}`, pass its own path");
        return Ok(Error::NoCheckpoint { path, hint });
    }
    if let Some(file) = first(&[".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"]) {
        return Ok(Error::PickleOnly { path, file: file.clone() });
    }
    Ok(Error::NoCheckpoint { path, hint: String::new() })
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}
