//! A run that is killed at any moment ends, resumed, with the bytes of one that was not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{calibration, files, prune, run, tiny_llama};
use prune_candle::{LlamaModel, Tokenizer};
use prune_checkpoint::Checkpoint;
use prune_core::Seed;
use prune_pipeline::{ApplyOptions, Calibration, Error, Plan, Recipe, Rule, TokenWindows, apply};

const CHILD: &str = "PRUNE_TEST_CHILD";

/// Magnitude for one role, which is data-free, and Wanda for the others.
fn recipe() -> Recipe {
    let magnitude = Rule { layers: "*.o_proj".into(), ..Recipe::new("magnitude").rules[0].clone() };
    Recipe::new("wanda").sparsity(0.5).rule(Rule { sparsity: Some(0.3), ..magnitude }).seed(1)
}

fn compress(out: &Path, resume: bool, recipe: &Recipe, stop_after: usize) -> Result<(), Error> {
    let source = Checkpoint::open(&tiny_llama()).unwrap();
    let model = LlamaModel::new(&source.config().unwrap(), &source).unwrap();
    let text = std::fs::read_to_string(tiny_llama().join("text/heldout.txt")).unwrap();
    let tokenizer = Tokenizer::from_bytes(&source.tokenizer_json().unwrap().unwrap()).unwrap();
    let tokens = tokenizer.encode(&text).unwrap();
    let windows = TokenWindows::sampled("text", &tokens, 64, 4, Seed::new(1)).unwrap();
    let calibration = Calibration::new(&model, &windows);
    let plan = Plan::new(&source, recipe, Some(&calibration)).unwrap();
    let options = ApplyOptions { resume, ..ApplyOptions::default() };
    let mut progress = |done: usize, _: usize, _: &str| {
        if done == stop_after {
            // As `kill -9`: nothing is cleaned up.
            std::process::abort();
        }
    };
    apply(&source, &plan, Some(&calibration), out, &options, &mut progress).map(drop)
}

/// Not a test of its own: the process that [`abort_after`] starts and that dies.
#[test]
fn child() {
    if let Ok(job) = std::env::var(CHILD) {
        let (stop, out) = job.split_once(' ').unwrap();
        compress(Path::new(out), true, &recipe(), stop.parse().unwrap()).unwrap();
    }
}

fn abort_after(tensors: usize, out: &Path) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(CHILD, format!("{tensors} {}", out.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
}

fn partial(out: &Path) -> PathBuf {
    prune_checkpoint::HfWriter::partial(out).unwrap()
}

#[test]
fn a_run_killed_at_each_journal_point_resumes_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    compress(&whole, false, &recipe(), usize::MAX).unwrap();
    let expected = files(&whole);
    let tensors = Checkpoint::open(&tiny_llama()).unwrap();
    let tensors = prune_core::TensorSource::tensors(&tensors).len();
    let out = directory.path().join("out");
    for stop in 1..=tensors {
        abort_after(stop, &out);
        assert!(!out.exists(), "after {stop} tensors something that looks finished is there");
        assert!(partial(&out).exists());
        compress(&out, true, &recipe(), usize::MAX).unwrap();
        assert!(files(&out) == expected, "killed after {stop} tensors");
        assert!(!partial(&out).exists());
        std::fs::remove_dir_all(&out).unwrap();
    }
    // And one run that is killed again and again.
    for stop in (3..tensors).step_by(7) {
        abort_after(stop, &out);
    }
    compress(&out, true, &recipe(), usize::MAX).unwrap();
    assert!(files(&out) == expected, "killed many times");
    // Resuming what is complete changes nothing.
    compress(&out, true, &recipe(), usize::MAX).unwrap();
    assert!(files(&out) == expected);
}

#[test]
fn a_run_killed_at_random_moments_resumes_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let model = tiny_llama().display().to_string();
    let command = |out: &Path, more: &[&str]| {
        let mut command = prune(&["compress", &model, out.to_str().unwrap()]);
        command.args(calibration()).args(["--method", "wanda", "--sparsity", "0.5"]).args(more);
        command
    };
    let whole = directory.path().join("whole");
    let start = Instant::now();
    let (code, text) = run(&mut command(&whole, &[]));
    let duration = start.elapsed();
    assert_eq!(code, 0, "{text}");
    let expected = files(&whole);
    let mut stream = Seed::new(7).stream("crash");
    for _ in 0..6 {
        let out = directory.path().join("out");
        let pause = duration.mul_f64(stream.uniform());
        let mut child = command(&out, &["--resume"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(pause);
        child.kill().unwrap();
        child.wait().unwrap();
        let (code, text) = run(&mut command(&out, &["--resume"]));
        assert_eq!(code, 0, "{text}");
        assert!(files(&out) == expected, "killed after {pause:?}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_changed_recipe_or_source_or_calibration_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    abort_after(12, &out);
    let other = recipe().seed(2);
    let error = compress(&out, true, &other, usize::MAX).unwrap_err().to_string();
    assert!(error.contains("the recipe is not what it was"), "{error}");
    let error = compress(&out, false, &recipe(), usize::MAX).unwrap_err().to_string();
    // Every other thread may have finished one more before the process was gone.
    let threads = std::thread::available_parallelism().unwrap().get();
    let left = |n: &usize| error.contains(&format!("an interrupted run left {n} tensors"));
    assert!((12..12 + threads).any(|n| left(&n)), "{error}");
    // Neither refusal lost the work.
    compress(&out, true, &recipe(), usize::MAX).unwrap();
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_at_a_safe_point_and_says_how_to_resume() {
    let directory = tempfile::tempdir().unwrap();
    let (model, out) = (tiny_llama().display().to_string(), directory.path().join("out"));
    let text = tiny_llama().join("text/train.txt").display().to_string();
    let arguments = [
        "compress",
        &model,
        out.to_str().unwrap(),
        "--method=wanda",
        "--sparsity=0.5",
        "--samples=128",
        "--seqlen=256",
        "--calibration",
        &text,
    ];
    let child = prune(&arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let journal = partial(&out).join("prune-journal.jsonl");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !journal.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains("run the same command with --resume to go on"), "{text}");
    assert!(!out.exists() && partial(&out).exists());
    let mut again = prune(&arguments);
    let (code, text) = run(again.arg("--resume"));
    assert_eq!(code, 0, "{text}");
}
