//! What becomes of lines that cannot be written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::{Command, Stdio};

fn inspect() -> Command {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-llama");
    let mut command = Command::new(env!("CARGO_BIN_EXE_prune"));
    command.args(["inspect", model]);
    command
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = inspect().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stderr), "");
    assert!(done.status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = inspect().stdout(full).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{text}");
    assert!(text.contains("standard output"), "{text}");
}
