//! The output depends on the source, the recipe and the calibration data, and on nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{calibration, copy_model, files, prune, run, tiny_llama};
use prune_checkpoint::HfWriter;

struct Setting {
    threads: &'static str,
    model: String,
    memory: Option<String>,
}

fn command(setting: &Setting, out: &Path, more: &[&str]) -> Command {
    let mut command = prune(&["compress", &setting.model, out.to_str().unwrap()]);
    command.args(calibration()).args(more).args(["--seed", "5", "--json", "--resume"]);
    command.env("RAYON_NUM_THREADS", setting.threads);
    if let Some(memory) = &setting.memory {
        command.args(["--memory", memory]);
    }
    command
}

/// Runs to the end; `interrupted`, the run is killed first when some tensors are safe.
fn compress(
    setting: &Setting,
    out: &Path,
    more: &[&str],
    interrupted: bool,
) -> Vec<(String, Vec<u8>)> {
    if interrupted {
        let journal = HfWriter::partial(out).unwrap().join("prune-journal.jsonl");
        let mut first = command(setting, out, more);
        let mut child = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let lines = || std::fs::read(&journal).map_or(0, |b| b.split(|c| *c == b'\n').count());
        while child.try_wait().unwrap().is_none() && lines() < 18 {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (code, text) = run(&mut command(setting, out, more));
    assert_eq!(code, 0, "{text}");
    files(out)
}

/// The least memory that the run would do with, as its refusals state it.
fn least(model: &str, out: &Path, more: &[&str]) -> String {
    let mut memory = String::from("1MiB");
    loop {
        let mut command = prune(&["compress", model, out.to_str().unwrap(), "--memory", &memory]);
        let command = command.args(calibration()).args(more).env("RAYON_NUM_THREADS", "1");
        let (code, text) = run(command);
        if code == 0 {
            std::fs::remove_dir_all(out).unwrap();
            return memory;
        }
        assert_eq!(code, 5, "{text}");
        assert!(!out.exists());
        // Measuring for the allocation and pruning each state their own need.
        let needs = text.split("needs ").nth(1).unwrap();
        memory = needs.split(" (").next().unwrap().replace(' ', "");
    }
}

fn same_in_every_setting(more: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let sharded = directory.path().join("sharded");
    copy_model(&tiny_llama(), &sharded, 1_400_000);
    let models = [tiny_llama().display().to_string(), sharded.display().to_string()];
    let small = least(&models[0], &directory.path().join("refused"), more);
    let mut first = None;
    for threads in ["1", "2", "4"] {
        for model in &models {
            for memory in [None, Some(small.clone())] {
                let out = directory.path().join("out");
                let setting = Setting { threads, model: model.clone(), memory };
                for interrupted in [false, true] {
                    let found = compress(&setting, &out, more, interrupted);
                    std::fs::remove_dir_all(&out).unwrap();
                    let expected = first.get_or_insert_with(|| found.clone());
                    for (a, b) in expected.iter().zip(&found) {
                        assert!(a == b, "{} differs: {threads} threads, {model}", a.0);
                    }
                    assert_eq!(expected.len(), found.len());
                }
            }
        }
    }
    let names: Vec<String> = first.unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"prune-manifest.json".into()), "{names:?}");
}

#[test]
fn wanda_gives_the_same_bytes_for_any_threads_shards_memory_and_interruption() {
    same_in_every_setting(&["--method", "wanda", "--sparsity", "0.5", "--allocate", "owl"]);
}

#[test]
fn sparsegpt_gives_the_same_bytes_for_any_threads_shards_memory_and_interruption() {
    same_in_every_setting(&["--method", "sparsegpt", "--sparsity", "0.5"]);
}
