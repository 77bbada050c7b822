#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Output directories: their bytes, and what protects the ones that exist.

use std::fs;
use std::path::{Path, PathBuf};

use prune_checkpoint::{AuxiliaryFile, Checkpoint, Contents, Error, HfWriter, WriterOptions};
use prune_core::{DType, TensorInfo, TensorSink, TensorSource};

fn info(name: &str, count: usize) -> TensorInfo {
    TensorInfo { name: name.into(), dtype: DType::U8, shape: vec![count] }
}

fn options(plan: &[TensorInfo]) -> WriterOptions {
    WriterOptions { plan: plan.to_vec(), ..WriterOptions::default() }
}

/// Writes one tensor `w` of one byte, with these options.
fn write(out: &Path, value: u8, options: WriterOptions) -> Result<(), Error> {
    let w = info("w", 1);
    let mut writer = HfWriter::create(out, WriterOptions { plan: vec![w.clone()], ..options })?;
    writer.write_tensor(&w, &[value])?;
    writer.finish()
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_single_file_has_the_bytes_of_the_reference_implementation() {
    let fixture =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mixed.safetensors");
    let source = Checkpoint::open(&fixture).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let mut writer = HfWriter::create(&out, options(source.tensors())).unwrap();
    for tensor in source.tensors() {
        writer.write(tensor, &source.read(&tensor.name).unwrap()).unwrap();
    }
    Box::new(writer).finish().unwrap();
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), fs::read(&fixture).unwrap());
    assert_eq!(entries(&out), ["model.safetensors"]);
}

/// Written by safetensors 0.8.0 for Python (`safetensors.numpy.save_file` with this metadata).
#[test]
fn a_small_file_has_the_length_and_checksum_of_the_reference() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let tensor = |name: &str, dtype, shape: &[usize]| TensorInfo {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
    };
    let plan = [tensor("z", DType::I8, &[3]), tensor("w", DType::F32, &[2, 4])];
    let mut writer = HfWriter::create(&out, options(&plan)).unwrap();
    writer.write_tensor(&plan[0], &[-1i8 as u8, 0, 1]).unwrap();
    let sine = |i: usize, j: usize| (7.0 * i as f64 + 3.0 * j as f64).sin() as f32;
    let w: Vec<u8> = (0..8).flat_map(|k| sine(k / 4, k % 4).to_le_bytes()).collect();
    writer.write_tensor(&plan[1], &w).unwrap();
    writer.finish().unwrap();
    let file = fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!((file.len(), u64::from_le_bytes(file[..8].try_into().unwrap())), (187, 144));
    let header = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},"z":{"dtype":"I8","shape":[3],"data_offsets":[32,35]}}  "#;
    assert_eq!(std::str::from_utf8(&file[8..152]).unwrap(), header);
    let crc = !file.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    assert_eq!(crc, 0xa3b1_8b82);
}

#[test]
fn shards_are_filled_in_natural_order_and_listed_in_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let plan = ["l.10", "l.2", "l.1", "big", "z"].map(|n| info(n, if n == "big" { 9 } else { 2 }));
    let options = WriterOptions { shard_size: 4, ..options(&plan) };
    let mut writer = HfWriter::create(&out, options).unwrap();
    for (i, tensor) in plan.iter().enumerate() {
        writer.write_tensor(tensor, &vec![i as u8; tensor.nbytes()]).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(
        fs::read_to_string(out.join("model.safetensors.index.json")).unwrap(),
        r#"{
  "metadata": {
    "total_size": 17
  },
  "weight_map": {
    "big": "model-00001-of-00003.safetensors",
    "l.1": "model-00002-of-00003.safetensors",
    "l.10": "model-00003-of-00003.safetensors",
    "l.2": "model-00002-of-00003.safetensors",
    "z": "model-00003-of-00003.safetensors"
  }
}
"#
    );
    let model = Checkpoint::open(&out).unwrap();
    for (i, tensor) in plan.iter().enumerate() {
        assert_eq!(model.read(&tensor.name).unwrap(), vec![i as u8; tensor.nbytes()]);
    }
}

#[test]
fn metadata_is_added_to_the_format() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let metadata = [("method".to_string(), "wanda".to_string())].into();
    write(&out, 1, WriterOptions { metadata, ..WriterOptions::default() }).unwrap();
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&bytes[8..]).into_owned();
    assert!(header.starts_with(r#"{"__metadata__":{"format":"pt","method":"wanda"},"#), "{header}");
}

#[test]
fn nothing_is_at_the_output_before_it_is_finished_or_after_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let writer = HfWriter::create(&out, options(&[info("w", 1)])).unwrap();
    assert_eq!(entries(directory.path()), [".out.prune-partial"]);
    drop(writer);
    assert_eq!(entries(directory.path()), [""; 0]);
}

#[test]
fn an_output_with_a_tensor_missing_is_not_finished() {
    let directory = tempfile::tempdir().unwrap();
    let plan = [info("a", 1), info("b", 1), info("c", 1)];
    let mut writer = HfWriter::create(&directory.path().join("out"), options(&plan)).unwrap();
    writer.write_tensor(&plan[0], &[1]).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(matches!(&error, Error::NotWritten { tensor, missing: 2 } if tensor == "b"));
    assert_eq!(entries(directory.path()), [""; 0]);
}

#[test]
fn a_tensor_that_departs_from_the_plan_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let w = info("w", 4);
    let mut writer =
        HfWriter::create(&directory.path().join("out"), options(std::slice::from_ref(&w))).unwrap();
    let error = writer.write_tensor(&info("v", 4), &[0; 4]).unwrap_err();
    assert!(matches!(error, Error::NotPlanned { .. }), "{error:?}");
    let other = TensorInfo { dtype: DType::I8, ..w.clone() };
    for (info, bytes, field) in [
        (&other, 4, "dtype"),
        (&TensorInfo { shape: vec![2, 2], ..w.clone() }, 4, "shape"),
        (&w, 3, "length in bytes"),
    ] {
        let error = writer.write_tensor(info, &vec![0; bytes]).unwrap_err();
        assert!(matches!(&error, Error::PlanMismatch { field: f, .. } if *f == field), "{error:?}");
    }
    writer.write_tensor(&w, &[0; 4]).unwrap();
    let error = writer.write_tensor(&w, &[0; 4]).unwrap_err();
    assert!(matches!(error, Error::WrittenTwice { .. }), "{error:?}");
    // Through the trait the error is still there to be asked for.
    let prune_core::Error::External { source, .. } = writer.write(&w, &[0; 4]).unwrap_err() else {
        panic!()
    };
    assert!(source.is::<Error>());
}

#[test]
fn plans_that_cannot_be_laid_out_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let huge = TensorInfo { shape: vec![usize::MAX, 2], ..info("w", 1) };
    let deep = TensorInfo { shape: vec![1; 9], ..info("w", 1) };
    for plan in
        [vec![info("w", 1), info("w", 1)], vec![info("__metadata__", 1)], vec![huge], vec![deep]]
    {
        let error = HfWriter::create(&out, options(&plan)).unwrap_err();
        assert!(matches!(error, Error::Plan { .. }), "{error:?}");
    }
    let options = WriterOptions { shard_size: 0, ..options(&[info("w", 1)]) };
    assert!(matches!(HfWriter::create(&out, options).unwrap_err(), Error::Plan { .. }));
    assert_eq!(entries(directory.path()), [""; 0]);
}

#[test]
fn an_output_that_exists_is_kept_unless_overwriting_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    write(&out, 1, WriterOptions::default()).unwrap();
    let error = write(&out, 2, WriterOptions::default()).unwrap_err();
    assert!(matches!(error, Error::OutputExists { .. }), "{error:?}");
    assert_eq!(Checkpoint::open(&out).unwrap().read("w").unwrap(), [1]);

    let overwrite = WriterOptions { overwrite: true, ..WriterOptions::default() };
    write(&out, 2, overwrite).unwrap();
    assert_eq!(Checkpoint::open(&out).unwrap().read("w").unwrap(), [2]);
    assert_eq!(entries(directory.path()), ["out"]);
}

#[test]
fn overwriting_leaves_the_old_model_alone_until_the_new_one_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    write(&out, 1, WriterOptions::default()).unwrap();
    let overwrite = WriterOptions { overwrite: true, ..options(&[info("w", 1)]) };
    let writer = HfWriter::create(&out, overwrite).unwrap();
    assert!(writer.finish().is_err());
    assert_eq!(Checkpoint::open(&out).unwrap().read("w").unwrap(), [1]);
}

#[test]
fn what_is_no_model_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("photos")).unwrap();
    fs::write(path("photos/a.jpg"), "").unwrap();
    fs::create_dir_all(path("nested/deeper")).unwrap();
    fs::write(path("nested/model.safetensors"), "").unwrap();
    fs::write(path("file"), "").unwrap();
    for name in ["photos", "nested", "file"] {
        let overwrite = WriterOptions { overwrite: true, ..WriterOptions::default() };
        let error = write(&path(name), 1, overwrite).unwrap_err();
        assert!(matches!(error, Error::OutputProtected { .. }), "{name}: {error:?}");
    }
    assert_eq!(entries(directory.path()), ["file", "nested", "photos"]);
}

#[test]
fn an_output_in_or_around_its_source_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("models/m");
    fs::create_dir(directory.path().join("models")).unwrap();
    write(&model, 1, WriterOptions::default()).unwrap();
    #[cfg(unix)]
    let link = {
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&model, &link).unwrap();
        link
    };
    #[cfg(not(unix))]
    let link = model.clone();
    for out in [
        model.clone(),
        model.join("out"),
        directory.path().join("models"),
        link.clone(),
        link.join("out"),
        model.join("../m"),
    ] {
        for source in [&model, &link] {
            let source = Some(source.clone());
            let error =
                write(&out, 2, WriterOptions { overwrite: true, source, ..Default::default() });
            let error = error.unwrap_err();
            assert!(matches!(error, Error::OutputInSource { .. }), "{}: {error:?}", out.display());
        }
    }
    assert_eq!(entries(&model), ["model.safetensors"]);
    let source = Some(model.clone());
    write(&directory.path().join("m2"), 2, WriterOptions { source, ..Default::default() }).unwrap();
}

#[test]
fn an_output_needs_a_name_and_a_parent() {
    let directory = tempfile::tempdir().unwrap();
    let error = write(&directory.path().join(".."), 1, WriterOptions::default()).unwrap_err();
    assert!(matches!(error, Error::OutputName { .. }), "{error:?}");
    let error = write(&directory.path().join("a/b"), 1, WriterOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_eq!(entries(directory.path()), [""; 0]);
}

#[test]
fn two_writers_of_one_output_do_not_mix() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let _first = HfWriter::create(&out, options(&[info("w", 1)])).unwrap();
    let error = HfWriter::create(&out, options(&[info("w", 1)])).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
}

#[test]
fn what_an_interrupted_run_left_is_cleared() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    // As after a kill: neither `finish` nor `drop` has run.
    let mut writer = HfWriter::create(&out, options(&[info("v", 1)])).unwrap();
    writer.add_file("old.txt", b"").unwrap();
    let left = directory.path().join(".out.prune-partial");
    let saved = directory.path().join("saved");
    fs::rename(&left, &saved).unwrap();
    drop(writer);
    fs::rename(&saved, &left).unwrap();

    write(&out, 1, WriterOptions::default()).unwrap();
    assert_eq!(entries(&out), ["model.safetensors"]);
    assert_eq!(entries(directory.path()), ["out"]);
}

#[test]
fn a_foreign_directory_under_the_temporary_name_is_not_cleared() {
    let directory = tempfile::tempdir().unwrap();
    let foreign = directory.path().join(".out.prune-partial");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("diary.txt"), "").unwrap();
    let error = write(&directory.path().join("out"), 1, WriterOptions::default()).unwrap_err();
    assert!(matches!(error, Error::OutputProtected { .. }), "{error:?}");
    assert_eq!(entries(&foreign), ["diary.txt"]);
}

#[test]
fn only_plain_new_names_without_weights_can_be_added() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let mut writer = HfWriter::create(&out, options(&[])).unwrap();
    writer.add_file("config.json", b"{}").unwrap();
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "../b",
        "/b",
        "a\\b",
        "a\0b",
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        ".prune-lock",
        "config.json",
    ] {
        let error = writer.add_file(name, b"").unwrap_err();
        assert!(matches!(error, Error::FileName { .. }), "{name}: {error:?}");
    }
    let source = directory.path().join("merges.txt");
    fs::write(&source, "a b").unwrap();
    for (name, contents) in [
        ("merges.txt", Contents::Path(source.clone())),
        ("tokenizer.json", Contents::Bytes(b"{}".to_vec())),
    ] {
        writer.copy_file(&AuxiliaryFile { name: name.into(), contents }).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(entries(&out), ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read_to_string(out.join("merges.txt")).unwrap(), "a b");
}
