//! Recipes, plans and manifests.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
use prune_core::{DType, TensorInfo, encode_f32};
use prune_pipeline::{ApplyOptions, MANIFEST, Manifest, Plan, Recipe, apply, verify};
use tempfile::TempDir;

use crate::bounded::{Limit, Outcome, bounded};

/// A parser holds events and text beside what it makes of them. The constant leaves room for the
/// automata of regular expressions and for pruning the small model.
const LIMIT: Limit = Limit { per_byte: 256, constant: 16 << 20 };

/// A directory with a small model at `model` and, pruned by half, at `pruned`.
struct Models {
    directory: TempDir,
    source: Checkpoint,
}

thread_local! {
    static MODELS: OnceCell<Models> = const { OnceCell::new() };
}

fn with_models(use_them: impl FnOnce(&Models) -> Outcome) -> Outcome {
    MODELS.with(|cell| use_them(cell.get_or_init(|| Models::make().expect("two small models"))))
}

impl Models {
    fn make() -> Result<Models, Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let model = directory.path().join("model");
        let tensors = [
            ("model.embed_tokens.weight", vec![8, 4]),
            ("model.layers.0.mlp.down_proj.weight", vec![4, 8]),
            ("model.layers.0.mlp.up_proj.weight", vec![8, 4]),
            ("model.layers.1.mlp.down_proj.weight", vec![4, 8]),
            ("model.layers.1.mlp.up_proj.weight", vec![8, 4]),
            ("model.norm.weight", vec![4]),
        ]
        .map(|(name, shape)| TensorInfo { name: name.into(), dtype: DType::F32, shape });
        let options = WriterOptions { plan: tensors.to_vec(), ..WriterOptions::default() };
        let mut writer = HfWriter::create(&model, options)?;
        for tensor in &tensors {
            let values: Vec<f32> = (0..tensor.numel()).map(|i| 1.0 + i as f32).collect();
            writer.write_tensor(tensor, &encode_f32(&tensor.name, DType::F32, &values)?)?;
        }
        writer.add_file("config.json", b"{}")?;
        writer.finish()?;
        let source = Checkpoint::open(&model)?;
        let plan = Plan::new(&source, &Recipe::new("magnitude").sparsity(0.5), None)?;
        let pruned = directory.path().join("pruned");
        apply(&source, &plan, None, &pruned, &ApplyOptions::default(), &mut |_, _, _| ())?;
        Ok(Models { directory, source })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }
}

/// The text of a recipe, and what it plans for a small model.
pub fn recipe(input: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(input) else {
        return Outcome::Refused;
    };
    with_models(|models| {
        bounded(input, LIMIT, || match Recipe::from_yaml(text) {
            Ok(recipe) => match Plan::new(&models.source, &recipe, None) {
                Ok(plan) => {
                    let json = plan.to_json().expect("a plan is JSON");
                    assert_eq!(Plan::from_json(&json).expect("and comes back"), plan);
                    Outcome::Accepted
                }
                Err(e) => Outcome::refused(&e),
            },
            Err(e) => Outcome::refused(&e),
        })
    })
}

/// The text of a plan, and what comes of applying it to a small model.
pub fn plan(input: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(input) else {
        return Outcome::Refused;
    };
    with_models(|models| {
        // Emptied first: an interrupted run leaves what it has done beside the output.
        let work = models.path("work");
        if work.exists() {
            fs::remove_dir_all(&work).expect("it is ours");
        }
        fs::create_dir(&work).expect("the directory is writable");
        let out = work.join("out");
        bounded(input, LIMIT, || match Plan::from_json(text) {
            Ok(plan) => apply_and_verify(&models.source, &plan, &out),
            Err(e) => Outcome::refused(&e),
        })
    })
}

fn apply_and_verify(source: &Checkpoint, plan: &Plan, out: &Path) -> Outcome {
    match apply(source, plan, None, out, &ApplyOptions::default(), &mut |_, _, _| ()) {
        Ok(_) => {
            let verification = verify(out).expect("what was written can be read");
            assert!(verification.ok, "{:?}", verification.failures);
            Outcome::Accepted
        }
        Err(e) => {
            assert!(!out.exists(), "an output stands after: {e}");
            Outcome::refused(&e)
        }
    }
}

/// The text of a manifest, and what `verify` says of a pruned model that has it.
pub fn manifest(input: &[u8]) -> Outcome {
    with_models(|models| {
        let pruned = models.path("pruned");
        fs::write(pruned.join(MANIFEST), input).expect("the directory is writable");
        bounded(input, LIMIT, || {
            let read = Manifest::read(&pruned);
            match verify(&pruned) {
                Ok(verification) => {
                    assert!(read.is_ok());
                    assert_eq!(verification.ok, verification.failures.is_empty());
                    if verification.ok { Outcome::Accepted } else { Outcome::Refused }
                }
                Err(e) => Outcome::refused(&e),
            }
        })
    })
}

/// Gives the plans and the manifest of the small model to `write`.
pub fn write_seeds(write: impl Fn(&str, &str, &[u8])) {
    with_models(|models| {
        for (name, recipe) in [
            ("valid-magnitude", Recipe::new("magnitude").sparsity(0.5)),
            ("valid-two-of-four", Recipe::new("random").pattern("2:4").seed(3)),
            ("valid-blocks", Recipe::new("magnitude").pattern("block 2x4").sparsity(0.5)),
        ] {
            let plan = Plan::new(&models.source, &recipe, None).expect("a valid recipe");
            write("plan", name, plan.to_json().expect("a plan is JSON").as_bytes());
        }
        let manifest = fs::read(models.path("pruned").join(MANIFEST)).expect("it was written");
        write("manifest", "valid-magnitude", &manifest);
        Outcome::Accepted
    });
}
