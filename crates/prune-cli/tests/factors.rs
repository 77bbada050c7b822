//! Methods that write factors: what is written, what verification finds, and what a fit to the
//! dense model gains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use std::path::Path;

use harness::{calibration, prune, run, tiny_llama};
use ndarray::{Array2, Ix1, Ix2, Ix3, s};
use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions, tensor_digest};
use prune_core::{DType, Mask, Pattern, TensorSource, encode_f32};
use prune_pipeline::{FACTORS, Manifest, verify};

const PATTERN: Pattern = Pattern::NM { n: 2, m: 4 };

fn compress(out: &Path, more: &[&str]) -> String {
    let model = tiny_llama().display().to_string();
    let mut command = prune(&["compress", &model, out.to_str().unwrap(), "--pattern", "2:4"]);
    let (code, text) = run(command.args(calibration()).args(more));
    assert_eq!(code, 0, "{text}");
    text
}

fn armor(out: &Path) {
    let options = ["block=8", "iterations=20"].map(|o| ["--option", o]).concat();
    compress(out, &[&["--method", "armor"][..], &options].concat());
}

fn check(out: &Path, more: &[&str]) -> (i32, String) {
    run(prune(&["verify", out.to_str().unwrap()]).args(more))
}

/// A factor of the first layer's queries.
fn factor(file: &Checkpoint, layer: &str, role: &str) -> ndarray::ArrayD<f32> {
    let name = format!("{layer}.{role}");
    let shape = file.info(&name).unwrap().shape.clone();
    ndarray::ArrayD::from_shape_vec(shape, file.read_f32(&name).unwrap()).unwrap()
}

fn block_diagonal(blocks: ndarray::ArrayD<f32>, size: usize) -> Array2<f32> {
    let blocks = blocks.into_dimensionality::<Ix3>().unwrap();
    let (count, block, _) = blocks.dim();
    let mut all = Array2::zeros((count * block, count * block));
    for (i, part) in blocks.outer_iter().enumerate() {
        let at = i * block..(i + 1) * block;
        all.slice_mut(s![at.clone(), at]).assign(&part);
    }
    all.slice_move(s![..size, ..size])
}

#[test]
fn armor_writes_a_dense_model_and_its_factors() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    armor(&out);
    let (source, model) =
        (Checkpoint::open(&tiny_llama()).unwrap(), Checkpoint::open(&out).unwrap());
    // What a runtime without knowledge of factors sees is a model like the source.
    assert_eq!(source.tensors(), model.tensors());
    assert_eq!(source.config().unwrap(), model.config().unwrap());
    let file = Checkpoint::open(&out.join(FACTORS)).unwrap();
    let manifest = Manifest::read(&out).unwrap();
    let mut layers = 0;
    for tensor in &manifest.tensors {
        let Some(figures) = &tensor.factored else { continue };
        layers += 1;
        let layer = tensor.name.strip_suffix(".weight").unwrap();
        let weight = model.read_matrix(&tensor.name).unwrap();
        let (rows, cols) = weight.dim();
        let core = factor(&file, layer, "armor_core").into_dimensionality::<Ix2>().unwrap();
        Mask::of_nonzeros(core.view()).check(PATTERN).unwrap();
        let a = block_diagonal(factor(&file, layer, "armor_a"), rows);
        let b = block_diagonal(factor(&file, layer, "armor_b"), cols);
        let product = a.dot(&core).dot(&b);
        let largest = weight.iter().fold(0f32, |m, w| m.max(w.abs()));
        // One rounding to the stored dtype.
        let off = product.iter().zip(&weight).fold(0f32, |m, (p, w)| m.max((p - w).abs()));
        assert!(off <= largest / 256.0, "{layer}: {off} of {largest}");
        assert_eq!(figures.core_sparsity, 0.5);
        assert_eq!(figures.overhead, 8.0 * (1.0 / rows as f64 + 1.0 / cols as f64));
        let [start, end] = figures.loss.unwrap();
        assert!(end < start, "{layer}: {start} to {end}");
    }
    assert_eq!(layers * 3, file.tensors().len());
    assert_eq!(verify(&out).unwrap().factors, layers * 3);

    let source = tiny_llama().display().to_string();
    let text = tiny_llama().join("text/train.txt").display().to_string();
    let again = ["--rederive", "--source", &source, "--calibration", &text];
    let (code, said) = check(&out, &again);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("factors against the product"), "{said}");
}

/// Replaces a factor, and with `forge` its digest in the manifest.
fn replace(out: &Path, name: &str, change: impl Fn(&mut [f32]), forge: bool) {
    let path = out.join(FACTORS);
    let file = Checkpoint::open(&path).unwrap();
    let spare = out.with_extension("spare");
    let options = WriterOptions { plan: file.tensors().to_vec(), ..WriterOptions::default() };
    let mut writer = HfWriter::create(&spare, options).unwrap();
    for info in file.tensors() {
        let mut values = file.read_f32(&info.name).unwrap();
        if info.name == name {
            change(&mut values);
        }
        let bytes = encode_f32(&info.name, info.dtype, &values).unwrap();
        writer.write_tensor(info, &bytes).unwrap();
    }
    writer.finish().unwrap();
    let old = tensor_digest(&file, name).unwrap();
    std::fs::rename(spare.join("model.safetensors"), &path).unwrap();
    std::fs::remove_dir(&spare).unwrap();
    if forge {
        let new = tensor_digest(&Checkpoint::open(&path).unwrap(), name).unwrap();
        let manifest = out.join("prune-manifest.json");
        let text = std::fs::read_to_string(&manifest).unwrap().replace(&old, &new);
        std::fs::write(&manifest, text).unwrap();
    }
}

#[test]
fn damaged_factors_are_named_also_when_the_manifest_is_forged() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    armor(&whole);
    let layer = "model.layers.0.self_attn.q_proj";
    let named = |case: &str, name: &str, says: &str, change: &dyn Fn(&Path)| {
        let out = directory.path().join("out");
        std::fs::create_dir(&out).unwrap();
        for (name, bytes) in harness::files(&whole) {
            std::fs::write(out.join(name), bytes).unwrap();
        }
        change(&out);
        let (code, said) = check(&out, &[]);
        assert_eq!(code, 3, "{case}: {said}");
        let found = verify(&out).unwrap().failures;
        assert_eq!(found.len(), 1, "{case}: {found:?}");
        assert_eq!(found[0].tensor, name, "{case}");
        assert!(found[0].reason.contains(says), "{case}: {}", found[0].reason);
        std::fs::remove_dir_all(&out).unwrap();
    };
    let (a, core) = (format!("{layer}.armor_a"), format!("{layer}.armor_core"));
    named("a changed number", &a, "differs from what was written", &|out| {
        replace(out, &a, |v| v[0] *= 2.0, false);
    });
    let weight = format!("{layer}.weight");
    named("a forged factor", &weight, "is not the product", &|out| {
        replace(out, &a, |v| v[0] *= 2.0, true);
    });
    named("a core without its pattern", &core, "zeros", &|out| {
        replace(out, &core, |v| v[..4].fill(1.0), true);
    });
    named("zeros in other places", &core, "2:4", &|out| {
        replace(out, &core, |v| {
            let kept = v[..4].iter().position(|x| *x != 0.0).unwrap();
            let free = 4 + v[4..8].iter().position(|x| *x == 0.0).unwrap();
            v.swap(kept, free);
        }, true);
    });
    named("an infinity", &core, "not finite", &|out| {
        replace(out, &core, |v| *v.iter_mut().find(|x| **x != 0.0).unwrap() = f32::INFINITY, true);
    });
    named("no factors", FACTORS, "missing", &|out| std::fs::remove_file(out.join(FACTORS)).unwrap());
}

#[test]
fn ria_permuted_is_two_of_four_in_its_own_order() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, permuted] = ["plain", "permuted"].map(|name| directory.path().join(name));
    compress(&plain, &["--method", "ria"]);
    compress(&permuted, &["--method", "ria-permuted"]);
    let model = Checkpoint::open(&permuted).unwrap();
    let file = Checkpoint::open(&permuted.join(FACTORS)).unwrap();
    let manifest = Manifest::read(&permuted).unwrap();
    let (mut error, mut expected) = (0.0, 0.0);
    for (tensor, other) in manifest.tensors.iter().zip(Manifest::read(&plain).unwrap().tensors) {
        let Some(figures) = &tensor.factored else { continue };
        let layer = tensor.name.strip_suffix(".weight").unwrap();
        let weight = model.read_matrix(&tensor.name).unwrap();
        let name = format!("{layer}.permuted_order");
        assert_eq!(file.info(&name).unwrap().dtype, DType::I32);
        let bytes = file.read(&name).unwrap();
        let order: Vec<usize> =
            bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as usize).collect();
        let grouped = weight.select(ndarray::Axis(1), &order);
        Mask::of_nonzeros(grouped.view()).check(PATTERN).unwrap();
        let core = factor(&file, layer, "permuted_core").into_dimensionality::<Ix2>().unwrap();
        assert_eq!(grouped, core);
        assert_eq!(ndarray::Array1::from(order).into_dimensionality::<Ix1>().unwrap().len(), weight.ncols());
        error += figures.relative_error;
        expected += other.pruned.unwrap().relative_error;
    }
    assert!(error < expected, "{error} with permutation, {expected} without");
    assert!(verify(&permuted).unwrap().ok);
}

#[test]
fn a_fit_to_the_dense_model_is_closer_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let [own, dense] = ["own", "dense"].map(|name| directory.path().join(name));
    compress(&own, &["--method", "sparsegpt"]);
    compress(&dense, &["--method", "sparsegpt", "--targets", "dense"]);
    let text = tiny_llama().join("text/train.txt").display().to_string();
    let source = tiny_llama().display().to_string();
    let divergence = |model: &Path| -> f64 {
        let mut command = prune(&["eval", model.to_str().unwrap(), "--text", &text]);
        command.args(["--seqlen", "64", "--windows", "8", "--baseline", &source, "--json"]);
        let (code, said) = run(&mut command);
        assert_eq!(code, 0, "{said}");
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        report["kl"].as_f64().unwrap()
    };
    let (own, dense) = (divergence(&own), divergence(&dense));
    assert!(dense < own, "KL {dense} fitted to the dense model, {own} without");
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let model = tiny_llama().display().to_string();
    for (more, says) in [
        (&["--method", "armor", "--option", "blok=8"][..], "preset, block, iterations"),
        (&["--method", "armor", "--option", "preset=quick"], "fast or paper"),
        (&["--method", "armor", "--option", "block=6"], "a multiple of 4"),
        (&["--method", "wanda", "--option", "block=8"], "`wanda` takes none"),
        (&["--method", "ria-permuted", "--option", "refinement=half"], "number of parts"),
    ] {
        let mut command = prune(&["plan", &model, "--pattern", "2:4"]);
        let (code, said) = run(command.args(calibration()).args(more));
        assert_ne!(code, 0);
        assert!(said.contains(says), "{said}");
    }
    let mut command = prune(&["plan", &model, "--method", "armor", "--sparsity", "0.5"]);
    let (_, said) = run(command.args(calibration()));
    assert!(said.contains("the core is N:M"), "{said}");
}
