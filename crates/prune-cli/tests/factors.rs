//! Methods that write factors, through the command; what they write is tested in prune-pipeline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use harness::{calibration, prune, run, tiny_llama};
use prune_checkpoint::Checkpoint;
use prune_core::TensorSource;
use prune_pipeline::FACTORS;

#[test]
fn armor_is_compressed_verified_and_derived_again() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let (source, out) = (tiny_llama().display().to_string(), out.display().to_string());
    let mut command = prune(&["compress", &source, &out, "--method", "armor", "--pattern", "2:4"]);
    let options = ["--option", "block=8", "--option", "iterations=5"];
    let (code, said) = run(command.args(calibration()).args(options));
    assert_eq!(code, 0, "{said}");
    let (before, after) = (Checkpoint::open(&tiny_llama()), Checkpoint::open(out.as_ref()));
    assert_eq!(before.unwrap().tensors(), after.unwrap().tensors());
    let text = tiny_llama().join("text/train.txt").display().to_string();
    let again = ["--rederive", "--source", &source, "--calibration", &text];
    let (code, said) = run(prune(&["verify", &out]).args(again));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("84 factors"), "{said}");
    std::fs::remove_file(directory.path().join("out").join(FACTORS)).unwrap();
    let (code, said) = run(&mut prune(&["verify", &out]));
    assert_eq!(code, 3);
    assert!(said.contains(FACTORS), "{said}");
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let model = tiny_llama().display().to_string();
    for (option, says) in [("blok=8", "preset, block"), ("block", "expected KEY=VALUE")] {
        let mut command = prune(&["plan", &model, "--method", "armor", "--pattern", "2:4"]);
        let (code, said) = run(command.args(calibration()).args(["--option", option]));
        assert_ne!(code, 0);
        assert!(said.contains(says), "{said}");
    }
}
