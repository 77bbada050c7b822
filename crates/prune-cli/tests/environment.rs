//! What a broken environment or a careless command gets: an error that says what to do, and no
//! directory that looks finished.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use std::path::Path;

use harness::{calibration, copy_model, prune, run, tiny_llama};
use prune_checkpoint::Checkpoint;

fn compress(model: &Path, out: &Path, more: &[&str]) -> (i32, String) {
    let mut command = prune(&["compress", model.to_str().unwrap(), out.to_str().unwrap()]);
    run(command.args(["--method", "magnitude", "--sparsity", "0.5"]).args(more))
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_the_work_can_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    // A limit on the size of files stands for a full disk: writes beyond it fail.
    let script = format!(
        "trap '' XFSZ; ulimit -f 1000; exec '{}' compress '{}' '{}' --method magnitude \
         --sparsity 0.5",
        env!("CARGO_BIN_EXE_prune"),
        tiny_llama().display(),
        out.display()
    );
    let (code, text) = run(std::process::Command::new("sh").args(["-c", &script]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("File too large"), "{text}");
    assert!(!out.exists());
    let (code, text) = compress(&tiny_llama(), &out, &["--resume"]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn an_existing_output_is_refused_without_overwrite_and_the_source_always() {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model");
    copy_model(&tiny_llama(), &model, u64::MAX);
    let (code, text) = compress(&tiny_llama(), &model, &[]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("exists already"), "{text}");
    let (code, text) = compress(&model, &model, &["--overwrite"]);
    assert_eq!(code, 4, "{text}");
    #[cfg(unix)]
    {
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&model, &link).unwrap();
        let (code, text) = compress(&model, &link, &["--overwrite"]);
        assert_eq!(code, 4, "{text}");
        let (code, text) = compress(&link, &model, &["--overwrite"]);
        assert_eq!(code, 4, "{text}");
    }
    Checkpoint::open(&model).unwrap();
    let (code, text) = compress(&tiny_llama(), &directory.path().join("no/such/parent"), &[]);
    assert_ne!(code, 0, "{text}");
    assert!(text.contains("no/such"), "{text}");
}

#[test]
fn a_second_run_on_the_same_output_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let partial = prune_checkpoint::HfWriter::partial(&out).unwrap();
    std::fs::create_dir(&partial).unwrap();
    let lock = std::fs::File::create(partial.join(".prune-lock")).unwrap();
    lock.lock().unwrap();
    let (code, text) = compress(&tiny_llama(), &out, &[]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("another process is writing here"), "{text}");
}

#[test]
fn calibration_data_that_cannot_be_meant_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let model = tiny_llama().display().to_string();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let npy = |data: &[u8]| {
        let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 64), }\n";
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    };
    let cases = [
        (file("short.txt", b"A few words."), "tokens are too few"),
        (file("latin1.txt", b"caf\xe9 au lait"), "is not UTF-8"),
        (file("cut.npy", &npy(&[0; 300])), "its shape says 2 x 64"),
        (file("large.npy", &npy(&i32::MAX.to_le_bytes().repeat(128))), "token id"),
        (directory.path().join("absent.txt").display().to_string(), "absent.txt"),
    ];
    for (path, says) in &cases {
        let mut command = prune(&["compress", &model, out.to_str().unwrap(), "--method", "wanda"]);
        let arguments = ["--sparsity", "0.5", "--samples", "2", "--seqlen", "64", "--calibration"];
        let (code, text) = run(command.args(arguments).arg(path));
        assert_eq!(code, 4, "{path}: {text}");
        assert!(text.contains(says), "{path}: {text}");
        assert!(!out.exists());
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model");
    copy_model(&tiny_llama(), &model, u64::MAX);
    let path = model.join("tokenizer.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let extra = serde_json::json!({"id": 99_999, "content": "<|extra|>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json["added_tokens"].as_array_mut().unwrap().push(extra);
    json["model"]["vocab"]["<|extra|>"] = 99_999.into();
    std::fs::write(&path, json.to_string()).unwrap();
    let out = directory.path().join("out");
    let mut command = prune(&["compress", model.to_str().unwrap(), out.to_str().unwrap()]);
    let (code, text) =
        run(command.args(calibration()).args(["--method", "wanda", "--sparsity", "0.5"]));
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("tokenizer and model do not fit"), "{text}");
    assert!(!out.exists());
}

#[cfg(unix)]
#[test]
fn a_read_only_source_is_no_obstacle() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model");
    copy_model(&tiny_llama(), &model, u64::MAX);
    for entry in std::fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    }
    std::fs::set_permissions(&model, std::fs::Permissions::from_mode(0o555)).unwrap();
    let (code, text) = compress(&model, &directory.path().join("out"), &[]);
    std::fs::set_permissions(&model, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_changed_bit_is_found_by_verify_and_named_by_rederive() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let (model, path) = (tiny_llama(), out.to_str().unwrap().to_string());
    let model = model.to_str().unwrap();
    let mut command = prune(&["compress", model, &path, "--method", "wanda", "--sparsity", "0.5"]);
    let (code, text) = run(command.args(calibration()));
    assert_eq!(code, 0, "{text}");
    let rederive = || {
        let mut command = prune(&["verify", &path, "--rederive", "--source", model]);
        run(command.args(&calibration()[..2]))
    };
    let (code, text) = rederive();
    assert_eq!(code, 0, "{text}");

    // One bit of a kept weight, with the manifest made to agree: only the recipe knows better.
    let name = "model.layers.2.mlp.down_proj.weight";
    let file = out.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = (start..).step_by(2).find(|i| bytes[*i] != 0 || bytes[*i + 1] != 0).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let (code, text) = run(&mut prune(&["verify", &path]));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains(name), "{text}");

    let digest = prune_checkpoint::tensor_digest(&Checkpoint::open(&out).unwrap(), name).unwrap();
    let manifest = out.join("prune-manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for tensor in json["tensors"].as_array_mut().unwrap() {
        if tensor["name"] == name {
            tensor["digest"] = digest.clone().into();
        }
    }
    std::fs::write(&manifest, json.to_string()).unwrap();
    let (code, text) = run(&mut prune(&["verify", &path]));
    assert_eq!(code, 0, "{text}");
    let (code, text) = rederive();
    assert_eq!(code, 3, "{text}");
    let named: Vec<&str> = text.lines().filter(|l| l.starts_with("model.")).collect();
    assert_eq!(named.len(), 1, "{text}");
    assert!(named[0].starts_with(name), "{text}");
}

#[test]
fn diff_shows_what_compression_changed() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let (code, text) = compress(&tiny_llama(), &out, &["--dtype", "F32"]);
    assert_eq!(code, 2, "{text}");
    let (code, text) = compress(&tiny_llama(), &out, &[]);
    assert_eq!(code, 0, "{text}");
    let model = tiny_llama();
    let (code, text) =
        run(&mut prune(&["diff", model.to_str().unwrap(), out.to_str().unwrap(), "--json"]));
    assert_eq!(code, 0, "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tensors = json["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 4 * 7);
    for tensor in tensors {
        let size: u64 = tensor["after"]["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap())
            .product();
        assert!(tensor["after"]["zeros"].as_u64().unwrap() >= size / 2, "{tensor}");
    }
}
