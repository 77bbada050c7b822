//! Quantised outputs: every method and format, the same bytes in every setting, and refusals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{calibration, files, prune, run, tiny_llama};
use prune_checkpoint::{HfWriter, open_model};
use prune_core::LayerId;

fn quantize(out: &Path, more: &[&str]) -> Command {
    let model = tiny_llama().display().to_string();
    let mut command = prune(&["quantize", &model, out.to_str().unwrap()]);
    command.args(more);
    command
}

fn perplexity(model: &Path) -> f64 {
    let text = tiny_llama().join("text/heldout.txt").display().to_string();
    let model = model.display().to_string();
    let arguments =
        ["eval", &model, "--text", &text, "--seqlen", "128", "--windows", "4", "--json"];
    let (code, text) = run(&mut prune(&arguments));
    assert_eq!(code, 0, "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["perplexity"].as_f64().unwrap()
}

#[test]
fn inputs_rounded_to_eight_bits_cost_little() {
    let model = tiny_llama().display().to_string();
    let text = tiny_llama().join("text/heldout.txt").display().to_string();
    let eval = |block: &str| {
        let more = ["--seqlen", "128", "--windows", "4", "--json", "--input-block", block];
        run(prune(&["eval", &model, "--text", &text]).args(more))
    };
    let (code, found) = eval("32");
    assert_eq!(code, 0, "{found}");
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let (found, dense) = (found["perplexity"].as_f64().unwrap(), perplexity(&tiny_llama()));
    assert!(found != dense && (found / dense - 1.0).abs() < 0.01, "{found} {dense}");
    let (code, text) = eval("0");
    assert_ne!(code, 0, "{text}");
    assert!(text.contains("values of a block of inputs"), "{text}");
}

#[test]
fn every_format_is_written_verified_derived_again_and_evaluated() {
    let directory = tempfile::tempdir().unwrap();
    let dense = perplexity(&tiny_llama());
    let model = tiny_llama().display().to_string();
    let text = tiny_llama().join("text/train.txt").display().to_string();
    for (method, format, more, worse) in [
        ("rtn", "dense", "--bits 4 --group 64", 1.1),
        ("gptq", "compressed-tensors", "--bits 4 --group 64", 1.1),
        ("gptq-act", "gptq", "--bits 3 --group 64", 1.4),
        ("gptq-static", "awq", "--bits 4 --group 64", 1.1),
        ("awq", "awq", "--bits 4 --group 64", 1.1),
        ("awq", "gguf", "--bits 4 --group 32", 1.1),
        ("smoothquant", "compressed-tensors", "--bits 8 --group channel", 1.01),
        ("hqq", "dense", "--bits 4 --group 64", 1.1),
        ("hqq", "gguf", "--bits 4 --group 32", 1.1),
        ("gptq", "gguf", "--bits 4 --group 32", 1.1),
        ("ggml", "gguf", "--type q8_0", 1.01),
        ("ggml", "gguf", "--type q4_0", 1.1),
        ("rtn", "dense", "--scheme nf4+flat64+double", 1.1),
        ("rtn", "compressed-tensors", "--scheme nvfp4", 1.1),
        ("gptq", "compressed-tensors", "--scheme mxfp4", 1.1),
        ("ggml", "gguf", "--type nvfp4", 1.2),
        ("rtn", "gptq", "--bits 5 --group 64", 1.1),
        ("rtn", "gptq-p", "--bits 3 --group 64", 1.4),
    ] {
        let what = format!("{method} as {format}, {more}");
        let mut out = directory.path().join("out");
        if format == "gguf" {
            out.set_extension("gguf");
        }
        let mut command = quantize(&out, &["--method", method, "--format", format]);
        command.args(more.split(' ').map(|word| word.replace('+', " "))).args(calibration());
        let (code, text_out) = run(&mut command);
        assert_eq!(code, 0, "{what}: {text_out}");
        let found = perplexity(&out);
        assert!(found < worse * dense, "{what}: {found}; dense {dense}");
        let out_name = out.display().to_string();
        let again = ["verify", &out_name, "--rederive", "--source", &model, "--calibration", &text];
        let (code, text_out) = run(&mut prune(&again));
        assert_eq!(code, 0, "{what}: {text_out}");
        flip_a_bit(&weights_of(&out));
        let (code, text_out) = run(&mut prune(&["verify", &out_name]));
        assert_eq!(code, 3, "{what}: {text_out}");
        match out.is_dir() {
            true => std::fs::remove_dir_all(&out).unwrap(),
            false => std::fs::remove_file(&out).unwrap(),
        }
    }
}

fn weights_of(out: &Path) -> PathBuf {
    if out.is_dir() { out.join("model.safetensors") } else { out.to_path_buf() }
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn same_in_every_setting(name: &str, more: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let out = place.join(name);
    let mut first: Option<Vec<(String, Vec<u8>)>> = None;
    for (threads, memory, interrupted) in [
        ("1", None, false),
        ("2", None, true),
        ("4", Some("140MiB"), false),
        ("3", Some("140MiB"), true),
    ] {
        let command = || {
            let mut command = quantize(&out, more);
            command.args(calibration()).args(["--resume", "--json"]);
            command.env("RAYON_NUM_THREADS", threads);
            command.args(memory.iter().flat_map(|m| ["--memory", m]));
            command
        };
        if interrupted {
            let journal = HfWriter::partial(&out).unwrap().join("prune-journal.jsonl");
            let mut child = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let lines = || std::fs::read(&journal).map_or(0, |b| b.split(|c| *c == b'\n').count());
            while child.try_wait().unwrap().is_none() && lines() < 8 {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // A run that ended before it was interrupted has written all there is.
        if !out.exists() {
            let (code, text) = run(&mut command());
            assert_eq!(code, 0, "{text}");
        }
        let found = match out.is_dir() {
            true => files(&out),
            false => files(&place),
        };
        assert!(found.iter().any(|(n, _)| n.ends_with("prune-manifest.json")));
        let expected = first.get_or_insert_with(|| found.clone());
        for (a, b) in expected.iter().zip(&found) {
            assert!(a == b, "{} differs: {threads} threads, {memory:?}, {interrupted}", a.0);
        }
        assert_eq!(expected.len(), found.len());
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
    }
}

#[test]
fn gptq_gives_the_same_bytes_for_any_threads_memory_and_interruption() {
    let flags = ["--method", "gptq", "--bits", "4", "--group", "64", "--format"];
    same_in_every_setting("out", &[&flags[..], &["compressed-tensors"]].concat());
    same_in_every_setting("out.gguf", &["--method", "gptq", "--bits", "4", "--format", "gguf"]);
}

#[test]
fn layer_wise_bits_give_the_same_bytes_for_any_threads_memory_and_interruption() {
    let flags = ["--method", "rtn", "--group", "64", "--bits", "3.4", "--levels", "4,3,2"];
    for allocate in ["lim", "curve"] {
        let more = ["--allocate", allocate, "--format", "gptq"];
        same_in_every_setting("out", &[&flags[..], &more].concat());
    }
}

#[test]
fn codes_go_along_from_format_to_format() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let gptq = path("gptq");
    let flags = ["--method", "rtn", "--bits", "4", "--group", "64", "--format", "gptq"];
    let (code, text) = run(&mut quantize(&gptq, &flags));
    assert_eq!(code, 0, "{text}");
    let layer = LayerId::new("model.layers.1.mlp.down_proj");
    let codes = |path: &Path| {
        let matrix = open_model(path).unwrap().read_quantized(&layer).unwrap().unwrap();
        (matrix.codes().to_owned(), matrix.scales().to_owned())
    };
    let expected = codes(&gptq);
    let before = perplexity(&gptq);
    for (format, name) in
        [("compressed-tensors", "ct"), ("awq", "awq"), ("gguf", "q4_1.gguf"), ("dense", "dense")]
    {
        let out = path(name);
        let (from, to) = (gptq.display().to_string(), out.display().to_string());
        let (code, text) = run(&mut prune(&["convert", &from, &to, "--format", format]));
        assert_eq!(code, 0, "{format}: {text}");
        if ["ct", "awq"].contains(&name) {
            assert_eq!(codes(&out), expected, "{format}");
        }
        let after = perplexity(&out);
        // Q4_1 rounds its minima to f16, and embeddings go to Q8_0.
        assert!((after - before).abs() < 5e-3 * before, "{format}: {before} {after}");
    }
    // A dense model has no codes to keep.
    let (from, to) = (tiny_llama().display().to_string(), path("none").display().to_string());
    let (code, text) = run(&mut prune(&["convert", &from, &to, "--format", "gptq"]));
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("no codes to keep"), "{text}");
    let to = path("f16.gguf").display().to_string();
    let (code, text) = run(&mut prune(&["convert", &from, &to, "--format", "gguf"]));
    assert_eq!(code, 0, "{text}");
}

#[test]
fn what_cannot_be_stored_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    for (more, code, reason) in [
        ("--method rtn --bits 4 --group 96 --format compressed-tensors", 4, "without a rest"),
        ("--method rtn --bits 3 --group 64 --format awq", 4, "int4"),
        ("--method hqq --bits 4 --group 64 --format gptq", 4, "zero points"),
        ("--method rtn --bits 3 --format gguf", 4, "no type in GGUF"),
        ("--method ggml --type q4_0 --format gptq", 4, "say `format: gguf`"),
        ("--method gptq --bits 4 --group 64 --format gptq", 4, "needs calibration data"),
        ("--method rtn --bits 9", 4, "from 2 to 8"),
        ("--method rtn --bits 3.5", 4, "without `levels` they are whole"),
        ("--method rtn --bits 3.5 --levels 4,2", 4, "allocate: is missing"),
        ("--method rtn --bits 1.5 --levels 4,2 --allocate zd", 4, "the lowest level is 2"),
        ("--method rtn --bits 3.5 --levels 4,2 --allocate owl", 4, "divided by lim"),
        ("--method rtn --bits 3.5 --levels 4,2 --allocate lim", 4, "needs calibration"),
        ("--method gptp --bits 4", 4, "known are"),
        ("--method rtn --bits 4 --format onnx", 4, "known are dense"),
        ("--method rtn --bits 4 --memory 1MiB", 5, "needs"),
        ("--bits 4", 2, "--method"),
    ] {
        let (found, text) = run(quantize(&out, &[]).args(more.split(' ')));
        assert_eq!(found, code, "{more}: {text}");
        let reason = if code == 5 { "needs" } else { reason };
        let reason = if reason.starts_with("divided by lim") { "divided by lim" } else { reason };
        assert!(text.contains(reason), "{more}: {text}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "{more}");
    }
}

#[test]
fn a_pruned_model_stays_pruned() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let pruned = path("pruned").display().to_string();
    let model = tiny_llama().display().to_string();
    let mut command =
        prune(&["compress", &model, &pruned, "--method", "wanda", "--sparsity", "0.5"]);
    let (code, text) = run(command.args(calibration()));
    assert_eq!(code, 0, "{text}");
    let layer = "model.layers.1.mlp.down_proj.weight";
    let zeros = |model: &Path| {
        let weight = open_model(model).unwrap().read_matrix(layer).unwrap();
        weight.mapv(|w| w == 0.0)
    };
    let before = zeros(&path("pruned"));
    let quantize = |out: &Path, more: &[&str]| {
        let out = out.display().to_string();
        let all = ["quantize", &pruned, &out, "--method", "gptq", "--bits", "4", "--group", "64"];
        run(prune(&all).args(more).args(calibration()))
    };
    let (code, text) = quantize(&path("kept"), &["--format", "compressed-tensors"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(&format!("{layer}: {} zeros kept", before.len() / 2)), "{text}");
    let after = zeros(&path("kept"));
    assert!(before.iter().zip(&after).all(|(before, after)| *after || !before));

    // Nor does a second quantiser fill them, which sees no more than codes.
    let (kept, again) = (path("kept").display().to_string(), path("again").display().to_string());
    let flags = ["quantize", &kept, &again, "--method", "rtn", "--bits", "3", "--group", "64"];
    let (code, text) = run(&mut prune(&flags));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(&format!("{layer}: ")) && text.contains("zeros kept"), "{text}");
    let twice = zeros(&path("again"));
    assert!(before.iter().zip(&twice).all(|(before, after)| *after || !before));

    let (code, text) = quantize(&path("filled"), &["--keep-zeros", "false"]);
    assert_eq!(code, 0, "{text}");
    let filled = zeros(&path("filled"));
    assert!(before.iter().zip(&filled).any(|(before, after)| *before && !after));

    let (code, text) = quantize(&path("refused"), &["--zero", "float"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("keep_zeros: false"), "{text}");
}
