#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! What counts as a model directory and which of its files belong to it.

use std::fs;
use std::path::Path;

use prune_checkpoint::{Checkpoint, Contents, Error, Format};
use prune_core::TensorSource;

/// A safetensors file with one tensor of one byte.
fn write(path: &Path, tensor: &str, value: u8) {
    let header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.push(value);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_directory_without_weights_says_what_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), "{}").unwrap();
    let error = Checkpoint::open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::NoCheckpoint { .. }));
    let text = error.to_string();
    assert!(text.contains("model.safetensors") && text.contains("index.json"), "{text}");
}

#[test]
fn weights_under_another_name_are_pointed_at() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("SomeModel.Q4_0.gguf"), "").unwrap();
    let error = Checkpoint::open(directory.path()).unwrap_err();
    assert!(error.to_string().contains("SomeModel.Q4_0.gguf"), "{error}");
}

#[test]
fn a_directory_of_pickles_alone_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("pytorch_model.bin"), "").unwrap();
    let error = Checkpoint::open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::PickleOnly { .. }), "{error:?}");
    assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
}

#[test]
fn a_file_of_another_kind_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.onnx");
    fs::write(&path, "").unwrap();
    assert!(matches!(Checkpoint::open(&path).unwrap_err(), Error::UnknownFormat { .. }));
}

#[test]
fn a_directory_in_place_of_a_shard_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("model.safetensors")).unwrap();
    assert!(matches!(Checkpoint::open(directory.path()).unwrap_err(), Error::NotAFile { .. }));
}

#[test]
fn shards_are_read_through_their_index() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("one.safetensors"), "b", 2);
    write(&directory.path().join("two.safetensors"), "a", 1);
    let index = directory.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map":{"b":"one.safetensors","a":"two.safetensors"}}"#).unwrap();
    for path in [directory.path(), &index] {
        let model = Checkpoint::open(path).unwrap();
        assert_eq!(model.shards(), 2);
        assert_eq!(model.path(), path);
        assert_eq!(model.format(), Format::Safetensors);
        assert_eq!(model.tensors()[0].name, "a");
        assert_eq!(model.read("a").unwrap(), [1]);
        assert_eq!(model.read("b").unwrap(), [2]);
    }
}

#[test]
fn a_range_outside_a_tensor_and_an_unknown_tensor_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("model.safetensors"), "w", 1);
    let model = Checkpoint::open(directory.path()).unwrap();
    for (offset, length) in [(0, 2), (1, 1), (2, 0), (usize::MAX, 1)] {
        let error = model.read_at("w", offset, &mut vec![0; length]).unwrap_err();
        assert!(matches!(error, prune_core::Error::OutOfRange { .. }), "{error:?}");
    }
    model.read_at("w", 1, &mut []).unwrap();
    let error = model.read("v").unwrap_err();
    assert!(matches!(error, prune_core::Error::UnknownTensor(name) if name == "v"));
}

#[test]
fn every_file_that_holds_no_weights_goes_with_the_model() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    write(&path("model.safetensors"), "w", 1);
    for name in [
        "config.json",
        "tokenizer.json",
        "README.md",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.safetensors.index.json",
        "model.GGUF",
        "flax_model.msgpack",
    ] {
        fs::write(path(name), "{}").unwrap();
    }
    fs::create_dir(path("onnx")).unwrap();
    for opened in [directory.path().to_path_buf(), path("model.safetensors")] {
        let model = Checkpoint::open(&opened).unwrap();
        let files = model.auxiliary_files().unwrap();
        let names: Vec<_> = files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["README.md", "config.json", "tokenizer.json"]);
        assert_eq!(files[1].contents, Contents::Path(path("config.json")));
        assert_eq!(model.tokenizer_json().unwrap().unwrap(), b"{}");
        assert!(model.config().unwrap().is_object());
    }
}

#[test]
fn a_lone_weight_file_has_no_other_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    write(&path, "w", 1);
    fs::write(directory.path().join("letter.txt"), "").unwrap();
    let model = Checkpoint::open(&path).unwrap();
    assert_eq!(model.auxiliary_files().unwrap(), []);
    assert_eq!(model.tokenizer_json().unwrap(), None);
    assert!(model.config().unwrap_err().to_string().contains("config.json"));
}

#[test]
fn a_configuration_that_is_no_object_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("model.safetensors"), "w", 1);
    for text in ["[]", "{", ""] {
        fs::write(directory.path().join("config.json"), text).unwrap();
        let error = Checkpoint::open(directory.path()).unwrap().config().unwrap_err();
        assert!(matches!(error, Error::Json { .. }), "{error:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_download_cache_of_links_is_a_model_directory() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot");
    fs::create_dir(&snapshot).unwrap();
    write(&directory.path().join("blob1"), "w", 7);
    fs::write(directory.path().join("blob2"), "{}").unwrap();
    std::os::unix::fs::symlink("../blob1", snapshot.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("../blob2", snapshot.join("config.json")).unwrap();
    let model = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(model.read("w").unwrap(), [7]);
    assert_eq!(model.auxiliary_files().unwrap()[0].name, "config.json");
}
