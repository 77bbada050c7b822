//! Checkpoint files.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use prune_checkpoint::Checkpoint;
use prune_core::TensorSource;
use tempfile::TempDir;

use crate::bounded::{Limit, Outcome, bounded};

/// Entries of a header take a few times their length once they are parsed, quantised tensors
/// twelve times when they are delivered. Buffers of the readers make the constant.
const LIMIT: Limit = Limit { per_byte: 64, constant: 4 << 20 };

thread_local! {
    /// One directory a thread; files in it are overwritten, which is much faster than making one.
    static DIRECTORY: OnceCell<TempDir> = const { OnceCell::new() };
}

fn in_directory(use_it: impl FnOnce(&Path) -> Outcome) -> Outcome {
    DIRECTORY.with(|cell| {
        use_it(cell.get_or_init(|| tempfile::tempdir().expect("a temporary directory")).path())
    })
}

/// Opens `path` and, if that works, asks for everything.
fn open(path: &Path, input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || match Checkpoint::open(path) {
        Ok(model) => ask_everything(&model),
        Err(e) => Outcome::refused(&e),
    })
}

fn ask_everything(model: &Checkpoint) -> Outcome {
    assert!(model.tensors().is_sorted_by(|a, b| a.name < b.name));
    for tensor in model.tensors() {
        let whole = model.read(&tensor.name).expect("an accepted tensor can be read");
        assert_eq!(whole.len(), tensor.nbytes());
        let mut part = vec![0; whole.len() / 2];
        let start = whole.len() - part.len();
        model.read_at(&tensor.name, start, &mut part).expect("and so can a part");
        assert_eq!(part, whole[start..]);
        assert!(model.read_at(&tensor.name, start + 1, &mut part).is_err() || part.is_empty());
    }
    let errors =
        [model.config().err(), model.tokenizer_json().err(), model.auxiliary_files().err()];
    for e in errors.into_iter().flatten() {
        Outcome::refused(&e);
    }
    Outcome::Accepted
}

/// The bytes of a `.safetensors` file.
pub fn safetensors(input: &[u8]) -> Outcome {
    in_directory(|directory| {
        let path = directory.join("input.safetensors");
        fs::write(&path, input).expect("the directory is writable");
        open(&path, input)
    })
}

/// The bytes of a `.gguf` file.
pub fn gguf(input: &[u8]) -> Outcome {
    in_directory(|directory| {
        let path = directory.join("input.gguf");
        fs::write(&path, input).expect("the directory is writable");
        open(&path, input)
    })
}

/// The bytes of a `.safetensors.index.json` beside the shards `x.safetensors`, with tensors `a` and
/// `b`, and `y.safetensors`, with tensor `c`.
pub fn index(input: &[u8]) -> Outcome {
    in_directory(|directory| {
        let shards = [
            (
                "x.safetensors",
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
                3,
            ),
            ("y.safetensors", r#"{"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4),
        ];
        for (name, header, data) in shards {
            let path = directory.join(name);
            if !path.exists() {
                let length = (header.len() as u64).to_le_bytes();
                let bytes = [&length[..], header.as_bytes(), &vec![7; data]].concat();
                fs::write(path, bytes).expect("the directory is writable");
            }
        }
        let path = directory.join("input.safetensors.index.json");
        fs::write(&path, input).expect("the directory is writable");
        open(&path, input)
    })
}
