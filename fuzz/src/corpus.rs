//! The seed corpora, for the property tests.

use std::fs;
use std::path::PathBuf;

use crate::bounded::Outcome;

/// `corpus/<target>`; `from` is the manifest directory of a crate in `crates/`.
pub fn directory(from: &str, target: &str) -> PathBuf {
    PathBuf::from(from).join("../../fuzz/corpus").join(target)
}

/// The names and contents of the seeds of a target, by name.
pub fn seeds(from: &str, target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<(String, Vec<u8>)> = fs::read_dir(directory(from, target))
        .expect("the corpus is part of the repository")
        .map(|entry| entry.expect("and readable").path())
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(path).expect("and so is every seed"))
        })
        .collect();
    seeds.sort();
    seeds
}

/// Runs a target on its seeds. Those called `valid-` have to be accepted, those called `hostile-`
/// refused.
pub fn check(from: &str, target: &str, run: impl Fn(&[u8]) -> Outcome) {
    let seeds = seeds(from, target);
    assert!(seeds.iter().any(|(name, _)| name.starts_with("valid-")), "{target}");
    for (name, bytes) in seeds {
        let outcome = run(&bytes);
        let wrong = match outcome {
            Outcome::Accepted => name.starts_with("hostile-"),
            Outcome::Refused => name.starts_with("valid-"),
        };
        assert!(!wrong, "{target}/{name}: {outcome:?}");
    }
}

/// Writes a seed.
pub fn write(from: &str, target: &str, name: &str, bytes: &[u8]) {
    let directory = directory(from, target);
    fs::create_dir_all(&directory).expect("the repository is writable");
    fs::write(directory.join(name), bytes).expect("the repository is writable");
}
