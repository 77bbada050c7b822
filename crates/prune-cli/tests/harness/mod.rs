//! The command on the embedded model, in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
use prune_core::TensorSource;

/// The embedded model.
pub fn tiny_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-llama")
}

/// The command, on one thread unless a test says otherwise.
pub fn prune(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prune"));
    command.args(arguments).env("RAYON_NUM_THREADS", "2");
    command
}

/// Calibration of 8 windows of 64 tokens.
pub fn calibration() -> Vec<String> {
    let text = tiny_llama().join("text/train.txt").display().to_string();
    ["--calibration", &text, "--samples", "8", "--seqlen", "64"].map(String::from).to_vec()
}

/// Runs the command and returns its exit code and both of its streams.
pub fn run(command: &mut Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().unwrap_or(-1), text)
}

/// Every file of a directory, by name.
pub fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}

/// A copy of a model in shards of at most `shard_size` bytes.
pub fn copy_model(from: &Path, to: &Path, shard_size: u64) {
    let source = Checkpoint::open(from).unwrap();
    let plan = source.tensors().to_vec();
    let options = WriterOptions { plan, shard_size, ..WriterOptions::default() };
    let mut writer = HfWriter::create(to, options).unwrap();
    for info in source.tensors() {
        writer.write_tensor(info, &source.read(&info.name).unwrap()).unwrap();
    }
    for file in source.auxiliary_files().unwrap() {
        writer.copy_file(&file).unwrap();
    }
    writer.finish().unwrap();
}
