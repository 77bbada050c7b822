use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file that belongs to a checkpoint and holds no weights: configuration, tokenizer, licence.
///
/// ```
/// use prune_checkpoint::{AuxiliaryFile, Contents};
/// let file = AuxiliaryFile {
///     name: "generation_config.json".to_string(),
///     contents: Contents::Bytes(b"{}".to_vec()),
/// };
/// assert_eq!(file.name, "generation_config.json");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuxiliaryFile {
    /// The name inside the model directory.
    pub name: String,
    /// Where the contents come from.
    pub contents: Contents,
}

/// The contents of an [`AuxiliaryFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Those of a file of the source.
    Path(PathBuf),
    /// Bytes that were made up, from the metadata of a GGUF file.
    Bytes(Vec<u8>),
}

/// Extensions of files that hold weights, in one format or another.
const WEIGHTS: [&str; 9] =
    ["safetensors", "bin", "gguf", "pt", "pth", "onnx", "h5", "msgpack", "ckpt"];

/// Every regular file of `directory` that holds no weights and is no index, by name.
pub(crate) fn auxiliary_files(directory: &Path) -> Result<Vec<AuxiliaryFile>> {
    let read = |e| Error::io("read", directory, e);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        // Follows links: a download cache is a directory of links.
        if !fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.is_file() {
            continue;
        }
        let name = path.file_name().unwrap_or_default();
        let Some(name) = name.to_str() else {
            return Err(Error::FileName {
                name: name.to_string_lossy().into_owned(),
                reason: "the name is not UTF-8; rename it in the source",
            });
        };
        if !holds_weights(name) {
            let name = name.to_string();
            files.push(AuxiliaryFile { name, contents: Contents::Path(path) });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Whether `name` is that of a weight file or of the index of one.
pub(crate) fn holds_weights(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".index.json")
        || name.rsplit_once('.').is_some_and(|(_, extension)| WEIGHTS.contains(&extension))
}
