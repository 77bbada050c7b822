//! A sentence encoder through the command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;
#[path = "../../prune-candle/tests/tiny_encoder/mod.rs"]
mod tiny_encoder;

use std::path::Path;

use harness::{prune, run};
use prune_checkpoint::{HfWriter, WriterOptions};
use prune_core::TensorSource;
use tiny_encoder::{config, tokenizer_json, weights};

fn write_encoder(directory: &Path) {
    let json = config("bert", "gelu");
    let source = weights(&json, "", |name| name);
    let plan = source.tensors().to_vec();
    let mut writer =
        HfWriter::create(directory, WriterOptions { plan, ..WriterOptions::default() }).unwrap();
    for info in source.tensors() {
        writer.write_tensor(info, &source.read(&info.name).unwrap()).unwrap();
    }
    writer.add_file("config.json", json.to_string().as_bytes()).unwrap();
    writer.add_file("tokenizer.json", &tokenizer_json()).unwrap();
    writer.finish().unwrap();
}

#[test]
fn an_encoder_is_calibrated_pruned_and_proven_and_has_no_perplexity() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    write_encoder(&directory.path().join("model"));
    std::fs::write(path("text"), "The cats sat on a mat. A dog sat on the cat. ".repeat(40))
        .unwrap();
    let (model, text, out) = (path("model"), path("text"), path("out"));
    // Ten positions, two of them for the special tokens.
    let data = |seqlen| ["--calibration", &text, "--samples", "32", "--seqlen", seqlen];

    let recipe = ["--method", "wanda", "--sparsity", "0.5"];
    let (code, found) = run(prune(&["compress", &model, &out]).args(recipe).args(data("10")));
    assert_eq!(code, 0, "{found}");
    let mut verify = prune(&["verify", &out, "--rederive", "--source", &model]);
    let (code, found) = run(verify.args(["--calibration", &text]));
    assert_eq!(code, 0, "{found}");

    let (code, found) = run(&mut prune(&["eval", &model, "--text", &text, "--seqlen", "10"]));
    assert_ne!(code, 0, "{found}");
    assert!(found.contains("`bert` is an encoder"), "{found}");

    let long = path("long");
    let (code, found) = run(prune(&["compress", &model, &long]).args(recipe).args(data("12")));
    assert_ne!(code, 0, "{found}");
    assert!(found.contains("12 tokens; expected at most 10"), "{found}");
    assert!(!Path::new(&long).exists());
}
