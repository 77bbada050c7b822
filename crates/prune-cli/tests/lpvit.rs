//! LPViT through the command, on images.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]
#[allow(dead_code)]
mod harness;

use std::path::{Path, PathBuf};

use harness::{calibration, files, prune, run, tiny_llama};
use prune_checkpoint::Checkpoint;
use prune_core::{Mask, TensorSource};
use prune_pipeline::{Action, Manifest, Totals};

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets")
}

/// Writes a safetensors file of one tensor.
fn write(path: &Path, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> String {
    let json = serde_json::json!({
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, bytes.len()]}
    })
    .to_string();
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
    path.display().to_string()
}

/// The first digits, a number in −1..=1 a pixel.
fn digits(count: usize) -> Vec<u8> {
    let pixels = std::fs::read(assets().join("digits/pixels.u8")).unwrap();
    let values = pixels[..count * 64].iter().map(|p| f32::from(*p) / 8.0 - 1.0);
    values.flat_map(f32::to_le_bytes).collect()
}

const RECIPE: [&str; 6] = ["--method", "lpvit", "--pattern", "block 16x16", "--sparsity", "0.5"];

fn compress(out: &Path, images: &str, more: &[&str]) -> (i32, String) {
    let model = assets().join("tiny-vit").display().to_string();
    let mut command = prune(&["compress", &model, out.to_str().unwrap()]);
    run(command.args(RECIPE).args(["--calibration", images]).args(more))
}

#[test]
fn lpvit_meets_its_budget_in_whole_blocks_and_gives_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let images = write(&path("images.safetensors"), "images", "F32", &[80, 1, 8, 8], &digits(80));
    let out = path("out");
    let (code, text) = compress(&out, &images, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("multiplications an image removed"), "{text}");

    let manifest = Manifest::read(&out).unwrap();
    let Totals { multiplications, removed_multiplications, planned_weights, .. } =
        manifest.plan.totals;
    // 17 tokens; a block of 16 x 16 at each is the most by which the budget may be passed.
    assert_eq!(multiplications, 17 * planned_weights);
    let beyond = removed_multiplications - multiplications / 2;
    assert!(beyond < 17 * 256, "{removed_multiplications} of {multiplications}");
    let checkpoint = Checkpoint::open(&out).unwrap();
    let (mut layers, mut shares) = (0, Vec::new());
    for tensor in &manifest.plan.tensors {
        if let Action::Prune { method, remove, .. } = &tensor.action {
            assert_eq!(method, "lpvit");
            let weight = checkpoint.read_matrix(&tensor.name).unwrap();
            let mask = Mask::of_nonzeros(weight.view());
            mask.check("block 16x16".parse().unwrap()).unwrap();
            assert_eq!(weight.len() - mask.kept(), *remove);
            assert!(mask.kept() > 0, "{}", tensor.name);
            layers += 1;
            shares.push(*remove as f64 / weight.len() as f64);
        }
    }
    assert_eq!(layers, 4 * 6);
    assert!(shares.iter().any(|s| (s - shares[0]).abs() > 0.1), "{shares:?}");

    let first = files(&out);
    for threads in ["1", "4"] {
        let again = path(threads);
        let model = assets().join("tiny-vit").display().to_string();
        let mut command = prune(&["compress", &model, again.to_str().unwrap()]);
        let command = command.args(RECIPE).args(["--calibration", &images]);
        let (code, text) = run(command.env("RAYON_NUM_THREADS", threads));
        assert_eq!(code, 0, "{text}");
        assert!(files(&again) == first, "{threads} threads");
    }
    // Within the least memory that will do, and gone on with when nothing is left to do.
    let (code, text) = compress(&path("small"), &images, &["--memory", "1MiB"]);
    assert_eq!(code, 5, "{text}");
    let (code, text) = compress(&out, &images, &["--resume"]);
    assert_eq!(code, 0, "{text}");

    let model = assets().join("tiny-vit").display().to_string();
    let out = out.display().to_string();
    let (code, text) = run(&mut prune(&["verify", &out]));
    assert_eq!(code, 0, "{text}");
    let rederive = |images: &str| {
        let mut command = prune(&["verify", &out, "--rederive", "--source", &model]);
        run(command.args(["--calibration", images]))
    };
    let (code, text) = rederive(&images);
    assert_eq!(code, 0, "{text}");
    let others = write(&path("others.safetensors"), "images", "F32", &[81, 1, 8, 8], &{
        let mut pixels = digits(81);
        pixels.rotate_left(64 * 4);
        pixels
    });
    let (code, text) = rederive(&others);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("calibration data"), "{text}");
    let (code, text) = run(&mut prune(&["verify", &out, "--rederive", "--source", &model]));
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("needs calibration data"), "{text}");
}

#[test]
fn samples_limit_the_images_and_a_plan_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("images.safetensors");
    let images = write(&path, "pixel_values", "F32", &[20, 1, 8, 8], &digits(20));
    let model = assets().join("tiny-vit").display().to_string();
    let plan = |more: &[&str]| {
        let mut command = prune(&["plan", &model, "--json"]);
        let command = command.args(RECIPE).args(["--calibration", &images]).args(more);
        let (code, text) = run(command);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(plan(&[])["calibration"]["images"], 20);
    let few = plan(&["--samples", "3", "--allocate", "uniform"]);
    assert_eq!(few["calibration"]["images"], 3);
    for tensor in few["tensors"].as_array().unwrap() {
        if let Some(remove) = tensor["action"]["prune"]["remove"].as_u64() {
            let size: u64 =
                tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
            assert_eq!(remove, size / 2, "{tensor}");
        }
    }
    plan(&["--allocate", "lpvit-hull=0.1"]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn images_that_cannot_be_meant_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, tensor: &str, dtype: &str, shape: &[usize], bytes: &[u8]| {
        write(&directory.path().join(format!("{name}.safetensors")), tensor, dtype, shape, bytes)
    };
    let good = digits(4);
    let mut nan = good.clone();
    nan[260..264].copy_from_slice(&f32::NAN.to_le_bytes());
    let cases = [
        (file("name", "pictures", "F32", &[4, 1, 8, 8], &good), "the tensors are: pictures"),
        (file("rank", "images", "F32", &[4, 8, 8], &good), "has the shape [4, 8, 8]; expected"),
        (file("size", "images", "F32", &[4, 1, 4, 16], &good), "[1, 8, 8]"),
        (file("nan", "images", "F32", &[4, 1, 8, 8], &nan), "element 1 of image 1 is NaN"),
        (file("int", "images", "I32", &[4, 1, 8, 8], &good), "is I32; expected normalised"),
        (file("none", "images", "F32", &[0, 1, 8, 8], &[]), "holds no pixel"),
        (file("cut", "images", "F32", &[4, 1, 8, 8], &good[..100]), "images"),
        (directory.path().join("absent.safetensors").display().to_string(), "absent"),
        (calibration()[1].clone(), "lpvit is calibrated on images"),
    ];
    let out = directory.path().join("out");
    for (path, says) in &cases {
        let (code, text) = compress(&out, path, &[]);
        assert_ne!(code, 0, "{path}: {text}");
        assert!(text.contains(says), "{path}: {text}");
        assert!(!out.exists());
    }
}

#[test]
fn what_lpvit_cannot_do_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out").display().to_string();
    let path = directory.path().join("images.safetensors");
    let images = write(&path, "images", "F32", &[4, 1, 8, 8], &digits(4));
    let (vit, llama) = (assets().join("tiny-vit"), tiny_llama());
    let refused = |model: &Path, arguments: &[&str], says: &str| {
        let mut command = prune(&["compress", model.to_str().unwrap(), &out]);
        let (code, text) = run(command.args(arguments));
        assert_eq!(code, 4, "{text}");
        assert!(text.contains(says), "{text}");
        assert!(!Path::new(&out).exists());
    };
    let data = ["--calibration", images.as_str()];
    refused(&vit, &RECIPE, "lpvit needs calibration data");
    refused(&llama, &[&RECIPE[..], &data].concat(), "expected `vit` or `deit`");
    let sparsity = ["--sparsity", "0.5"];
    let method = |name| ["--method", name];
    refused(&vit, &[&method("lpvit")[..], &sparsity, &data].concat(), "block 16x16");
    refused(&vit, &[&method("wanda")[..], &sparsity, &data].concat(), "found images");
    let allocate = |name| ["--allocate", name];
    refused(&vit, &[&RECIPE[..], &data, &allocate("erk")].concat(), "does not divide blocks");
    let magnitude = method("magnitude");
    let asked = [&magnitude[..], &sparsity, &allocate("lpvit")].concat();
    refused(&vit, &asked, "that the method `lpvit` removes");
}
