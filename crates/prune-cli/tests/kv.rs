//! `prune kv-tune` and `prune eval --kv` on the embedded model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use std::path::Path;
use std::process::Command;

use harness::{prune, run, tiny_llama};
use serde_json::Value;

fn tune(out: &Path, more: &[&str]) -> Command {
    let model = tiny_llama().display().to_string();
    let text = tiny_llama().join("text/heldout.txt").display().to_string();
    let out = out.display().to_string();
    let mut command = prune(&["kv-tune", &model, "--text", &text, "-o", &out]);
    command.args(["--seqlen", "128", "--profile", "2", "--windows", "3"]).args(more);
    command
}

#[test]
fn the_tuned_cache_is_no_worse_than_a_uniform_one_and_the_same_on_any_number_of_threads() {
    let directory = tempfile::tempdir().unwrap();
    let mut outs = Vec::new();
    for threads in ["1", "4"] {
        let out = directory.path().join(format!("{threads}.json"));
        let more = ["--evaluations", "20", "--check", "2", "--json"];
        let mut command = tune(&out, &more);
        let (code, text) = run(command.env("RAYON_NUM_THREADS", threads));
        assert_eq!(code, 0, "{text}");
        outs.push((std::fs::read(&out).unwrap(), text));
    }
    assert_eq!(outs[0].0, outs[1].0);
    let report: Value = serde_json::from_str(&outs[0].1).unwrap();
    let chosen = &report["chosen"];
    assert!(chosen["code_bits"].as_f64().unwrap() <= 4.0);
    let trials = report["report"]["tuning"]["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 20);
    let uniform = trials
        .iter()
        .find(|t| t["layers"].as_array().unwrap().iter().all(|p| p["key"] == 4 && p["value"] == 4))
        .expect("KV4 is measured");
    let accuracy = |trial: &Value| trial["accuracy"].as_f64().unwrap();
    assert!(accuracy(chosen) >= accuracy(uniform), "{chosen} {uniform}");
    // What was found is measured again on other windows, beside uniform caches.
    let checked = report["checked"].as_array().unwrap();
    let names: Vec<&str> = checked.iter().map(|c| c["cache"].as_str().unwrap()).collect();
    assert_eq!(names, ["f32", "KV8", "K8V4", "KV4", "K4V2", "KV2", "tuned"]);
    let divergence: Vec<f64> =
        checked.iter().map(|c| c["found"]["divergence"].as_f64().unwrap()).collect();
    assert!(divergence[0].abs() < 1e-6, "{divergence:?}");
    assert!(divergence[..6].is_sorted(), "{divergence:?}");

    // The file is what `eval` reads.
    let model = tiny_llama().display().to_string();
    let text = tiny_llama().join("text/heldout.txt").display().to_string();
    let kv = directory.path().join("1.json").display().to_string();
    let more = ["--seqlen", "128", "--windows", "2", "--kv", &kv, "--json"];
    let (code, text) = run(prune(&["eval", &model, "--text", &text]).args(more));
    assert_eq!(code, 0, "{text}");
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["bits"], chosen["code_bits"]);
    assert!(found["divergence"].as_f64().unwrap() > 0.0);
    assert!(found["cache_bytes"].as_u64() < found["dense_cache_bytes"].as_u64());
}

#[test]
fn text_that_is_too_short_is_refused_and_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("kv.json");
    let (code, text) = run(&mut tune(&out, &["--check", "100000"]));
    assert_ne!(code, 0);
    assert!(text.contains("heldout.txt: 43955 tokens are too few: 12800640 are needed"), "{text}");
    assert!(!out.exists());
}
