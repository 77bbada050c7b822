//! Data-free compression of a small checkpoint, from recipe to verification and tampering.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
use prune_core::{DType, Mask, Pattern, Seed, TensorInfo, TensorSource, encode_f32};
use prune_pipeline::{ApplyOptions, Error, Manifest, Plan, Recipe, Rule, apply, verify};

fn tensor(name: &str, shape: &[usize], dtype: DType) -> (TensorInfo, Vec<u8>) {
    let info = TensorInfo { name: name.into(), dtype, shape: shape.to_vec() };
    let mut stream = Seed::new(3).stream(name);
    let values: Vec<f32> = (0..info.numel()).map(|_| stream.uniform() as f32 - 0.5).collect();
    let bytes = encode_f32(name, dtype, &values).unwrap();
    (info, bytes)
}

/// Two blocks of two linear layers each, a norm and an embedding.
fn source(directory: &Path, shard_size: u64) -> Checkpoint {
    let mut tensors = vec![
        tensor("model.embed_tokens.weight", &[64, 16], DType::BF16),
        tensor("model.norm.weight", &[16], DType::F32),
    ];
    for block in 0..2 {
        for (role, shape) in [("mlp.up_proj", [32, 16]), ("mlp.down_proj", [16, 32])] {
            tensors.push(tensor(
                &format!("model.layers.{block}.{role}.weight"),
                &shape,
                DType::BF16,
            ));
        }
    }
    let plan = tensors.iter().map(|(info, _)| info.clone()).collect();
    let options = WriterOptions { plan, shard_size, ..WriterOptions::default() };
    let mut writer = HfWriter::create(directory, options).unwrap();
    for (info, bytes) in &tensors {
        writer.write_tensor(info, bytes).unwrap();
    }
    writer.add_file("config.json", b"{}").unwrap();
    writer.finish().unwrap();
    Checkpoint::open(directory).unwrap()
}

fn compress(source: &Checkpoint, recipe: &Recipe, out: &Path) -> Manifest {
    let plan = Plan::new(source, recipe, None).unwrap();
    // The plan survives its own JSON.
    assert_eq!(Plan::from_json(&plan.to_json().unwrap()).unwrap(), plan);
    apply(source, &plan, None, out, &ApplyOptions::default(), &mut |_, _, _| ()).unwrap()
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn planned_tensors_have_exactly_their_zeros_and_others_are_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir.path().join("source"), u64::MAX);
    let out = dir.path().join("out");
    let recipe = Recipe::new("magnitude").sparsity(0.5).rule(Rule {
        layers: "re:.*layers\\.1\\..*down_proj".into(),
        skip: true,
        ..Rule::default()
    });
    let manifest = compress(&source, &recipe, &out);
    assert!(verify(&out).unwrap().ok);
    let result = Checkpoint::open(&out).unwrap();
    for info in source.tensors() {
        let before = source.read(&info.name).unwrap();
        let after = result.read(&info.name).unwrap();
        let planned =
            info.name.contains("proj") && info.name != "model.layers.1.mlp.down_proj.weight";
        if planned {
            let zeros = result.read_f32(&info.name).unwrap().iter().filter(|v| **v == 0.0).count();
            assert_eq!(zeros, info.numel() / 2, "{}", info.name);
        } else {
            assert_eq!(before, after, "{}", info.name);
        }
    }
    assert_eq!(manifest.plan.totals.removed, 3 * 256);
}

#[test]
fn two_of_four_holds_in_every_group_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir.path().join("source"), u64::MAX);
    let out = dir.path().join("out");
    compress(&source, &Recipe::new("random").pattern("2:4").seed(5), &out);
    let result = Checkpoint::open(&out).unwrap();
    let weight = result.read_matrix("model.layers.0.mlp.up_proj.weight").unwrap();
    Mask::of_nonzeros(weight.view()).check(Pattern::NM { n: 2, m: 4 }).unwrap();
}

#[test]
fn the_output_does_not_depend_on_shards_or_threads() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe::new("random").sparsity(0.37).allocate("erk").seed(9);
    let mut outputs = Vec::new();
    for (i, (shard, threads)) in [(u64::MAX, 1), (1500, 2), (1, 4)].into_iter().enumerate() {
        let source = source(&dir.path().join(format!("source{i}")), shard);
        let out = dir.path().join(format!("out{i}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| compress(&source, &recipe, &out));
        outputs.push(files(&out));
    }
    assert!(outputs[0].iter().any(|(name, _)| name == "prune-manifest.json"));
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0], outputs[2]);
}

#[test]
fn every_tampered_tensor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir.path().join("source"), u64::MAX);
    let out = dir.path().join("out");
    compress(&source, &Recipe::new("magnitude").sparsity(0.5), &out);
    let path = out.join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&good[8..8 + header]).unwrap();
    for info in source.tensors() {
        let start = 8 + header + json[&info.name]["data_offsets"][0].as_u64().unwrap() as usize;
        // A set bit in the middle of an element, and a zero where none was.
        for change in [|b: &mut u8| *b ^= 1, |b: &mut u8| *b = if *b == 0 { 1 } else { 0 }] {
            let mut bad = good.clone();
            change(&mut bad[start]);
            std::fs::write(&path, &bad).unwrap();
            let verification = verify(&out).unwrap();
            assert!(!verification.ok);
            let named: Vec<&str> =
                verification.failures.iter().map(|f| f.tensor.as_str()).collect();
            assert_eq!(named, [info.name.as_str()]);
        }
    }
    std::fs::write(&path, &good).unwrap();
    assert!(verify(&out).unwrap().ok);
    std::fs::write(out.join("config.json"), b"{ }").unwrap();
    assert_eq!(verify(&out).unwrap().failures[0].tensor, "config.json");
}

#[test]
fn recipes_that_cannot_be_meant_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(&dir.path().join("source"), u64::MAX);
    let skip = |layers: &str| Rule { layers: layers.into(), skip: true, ..Rule::default() };
    let half = || Recipe::new("magnitude").sparsity(0.5);
    for (recipe, says) in [
        (half().rule(skip("*.q_proj")), "rule 2 (`*.q_proj`) matches none of the 4 linear layers"),
        (half().rule(skip("*")), "every layer is skipped"),
        (Recipe::new("magnitude"), "rule 1, sparsity: is missing"),
        (Recipe::new("magnitude").sparsity(1.0), "expected 0 <= sparsity < 1"),
        (Recipe::new("magnitude").sparsity(f64::NAN), "expected 0 <= sparsity < 1"),
        (Recipe::new("magik").sparsity(0.5), "known are magnitude, wanda"),
        (half().pattern("3:6"), "32 columns are not a multiple of 6"),
        (half().pattern("3:4"), "the pattern 3:4 fixes it at 0.25"),
        (half().pattern("2:4").allocate("erk"), "nothing to allocate"),
        (half().allocate("best"), "`best` is unknown"),
        (half().allocate("owl"), "`owl` needs calibration data"),
        (half().allocate("erk=0.1"), "`erk` has no parameter"),
        (half().allocate("farms=much"), "`much` is no number"),
        (half().allocate("farms=7"), "epsilon"),
        (half().allocate("snip"), "takes gradients"),
        (Recipe::new("wanda").sparsity(0.5), "wanda needs calibration data"),
        (Recipe::new("random").sparsity(0.5).scope("global"), "unstructured magnitude only"),
    ] {
        let err = Plan::new(&source, &recipe, None).unwrap_err().to_string();
        assert!(err.contains(says), "{err}");
    }
    let plan = Plan::new(&source, &half(), None).unwrap();
    let mut other = plan.clone();
    other.tensors[0].shape = vec![1];
    let out = dir.path().join("out");
    let options = ApplyOptions::default();
    let err = apply(&source, &other, None, &out, &options, &mut |_, _, _| ()).unwrap_err();
    assert!(matches!(err, Error::Plan { .. }), "{err}");
    assert!(!out.exists());
}
