//! Breaches of the coverage contract, each refused before the first byte with its own error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::Path;

use ndarray::{Array2, ArrayView2};
use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
use prune_core::{
    Block, BlockModel, DType, Head, LayerId, LayerInfo, Observer, Seed, TensorInfo, TensorSource,
    encode_f32,
};
use prune_pipeline::{
    ApplyOptions, Calibration, Error, Plan, Recipe, Rule, Schedule, TokenWindows, apply,
};

const WIDTH: usize = 16;
const TOKENS: usize = 32;

/// A mixture of two experts a block, the second of which gets the tokens of odd id.
struct Mixture {
    layers: Vec<LayerInfo>,
}

struct MixtureBlock(usize);

fn expert(block: usize, number: usize) -> LayerId {
    LayerId::new(format!("model.layers.{block}.mlp.experts.{number}.up_proj"))
}

impl Mixture {
    fn new() -> Self {
        let all = (0..2).flat_map(|b| (0..2).map(move |e| expert(b, e)));
        Self { layers: all.map(|id| LayerInfo::linear(id.as_str(), WIDTH, WIDTH)).collect() }
    }
}

impl BlockModel for Mixture {
    fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }
    fn blocks(&self) -> usize {
        2
    }
    fn vocab_size(&self) -> usize {
        100
    }
    fn width(&self) -> usize {
        WIDTH
    }
    fn block_bytes(&self) -> usize {
        8 * WIDTH * WIDTH
    }
    fn sample_bytes(&self, tokens: usize) -> usize {
        4 * tokens * WIDTH
    }
    fn is_routed(&self) -> bool {
        true
    }
    fn embed(&self, _: &dyn TensorSource, ids: &[u32]) -> prune_core::Result<Array2<f32>> {
        Ok(Array2::from_shape_fn((ids.len(), WIDTH), |(t, c)| (ids[t] + c as u32) as f32))
    }
    fn load_block(&self, _: &dyn TensorSource, i: usize) -> prune_core::Result<Box<dyn Block>> {
        Ok(Box::new(MixtureBlock(i)))
    }
    fn load_head(&self, _: &dyn TensorSource) -> prune_core::Result<Box<dyn Head>> {
        Err(prune_core::Error::external("head", "there is none"))
    }
}

impl Block for MixtureBlock {
    fn observe(
        &self,
        hidden: ArrayView2<'_, f32>,
        observer: &mut Observer<'_>,
    ) -> prune_core::Result<()> {
        for number in 0..2 {
            let rows: Vec<usize> =
                (0..hidden.nrows()).filter(|t| hidden[[*t, 0]] as usize % 2 == number).collect();
            let input = hidden.select(ndarray::Axis(0), &rows);
            observer(&[expert(self.0, number)], input.view())?;
        }
        Ok(())
    }
    fn forward(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        Ok(hidden.to_owned())
    }
}

fn checkpoint(directory: &Path, tensors: &[(String, Vec<usize>)]) -> Checkpoint {
    let infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|(name, shape)| TensorInfo {
            name: name.clone(),
            dtype: DType::F32,
            shape: shape.clone(),
        })
        .collect();
    let options = WriterOptions { plan: infos.clone(), ..WriterOptions::default() };
    let mut writer = HfWriter::create(directory, options).unwrap();
    for info in &infos {
        let mut stream = Seed::new(1).stream(&info.name);
        let values: Vec<f32> = (0..info.numel()).map(|_| stream.uniform() as f32 - 0.5).collect();
        writer.write_tensor(info, &encode_f32(&info.name, DType::F32, &values).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(directory).unwrap()
}

fn mixture(directory: &Path) -> Checkpoint {
    let experts: Vec<_> =
        Mixture::new().layers.iter().map(|l| (l.id.weight_name(), vec![WIDTH, WIDTH])).collect();
    checkpoint(directory, &experts)
}

fn windows(odd: usize) -> TokenWindows {
    let ids: Vec<u32> = (0..8 * TOKENS).map(|i| if i < odd { 1 } else { 2 }).collect();
    TokenWindows::consecutive("ids", &ids, TOKENS, None).unwrap()
}

fn skip(layers: &str) -> Rule {
    Rule { layers: layers.into(), skip: true, ..Rule::default() }
}

#[test]
fn a_starved_expert_is_named_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let source = mixture(&directory.path().join("model"));
    let (model, windows) = (Mixture::new(), windows(5));
    let calibration = Calibration::new(&model, &windows);
    let recipe = Recipe::new("wanda").sparsity(0.5).min_tokens(10);
    let error = Plan::new(&source, &recipe, Some(&calibration)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.layers.0.mlp.experts.1.up_proj: 5 calibration tokens reached this layer; at least \
         10 are needed (min_tokens of the recipe): use more or other text"
    );
    // Excluded by name, the others can be pruned.
    let recipe = recipe.rule(skip("*.experts.1.*"));
    let plan = Plan::new(&source, &recipe, Some(&calibration)).unwrap();
    let out = directory.path().join("out");
    let options = ApplyOptions::default();
    let manifest =
        apply(&source, &plan, Some(&calibration), &out, &options, &mut |_, _, _| ()).unwrap();
    let tokens: Vec<u64> =
        manifest.tensors.iter().filter_map(|t| t.pruned.as_ref()).map(|p| p.tokens).collect();
    assert_eq!(tokens, [251, 251]);
}

#[test]
fn too_little_calibration_data_is_refused_with_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let source = mixture(&directory.path().join("model"));
    let (model, windows) = (Mixture::new(), windows(100));
    let calibration = Calibration::new(&model, &windows);
    let recipe = Recipe::new("wanda").sparsity(0.5).min_tokens(300);
    let error = Plan::new(&source, &recipe, Some(&calibration)).unwrap_err().to_string();
    assert!(error.contains("256 tokens are too few: 300 are needed, 44 more"), "{error}");
}

#[test]
fn a_layer_that_no_rule_mentions_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = mixture(&directory.path().join("model"));
    let mut recipe = Recipe::new("magnitude").sparsity(0.5);
    recipe.rules[0].layers = "*.experts.0.*".into();
    let error = Plan::new(&source, &recipe, None).unwrap_err();
    assert!(matches!(&error, Error::Uncovered { count: 2, .. }), "{error}");
    assert!(error.to_string().starts_with("model.layers.0.mlp.experts.1.up_proj: no rule"));
    Plan::new(&source, &recipe.rule(skip("*.experts.1.*")), None).unwrap();
}

#[test]
fn fused_experts_are_refused_unless_excluded_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = [
        ("model.layers.0.mlp.experts.gate_up_proj".to_string(), vec![4, 8, 8]),
        ("model.layers.0.self_attn.q_proj.weight".to_string(), vec![8, 8]),
    ];
    let source = checkpoint(&directory.path().join("model"), &tensors);
    let recipe = Recipe::new("magnitude").sparsity(0.5);
    let error = Plan::new(&source, &recipe, None).unwrap_err().to_string();
    assert!(
        error.starts_with("model.layers.0.mlp.experts.gate_up_proj: shape [4, 8, 8]"),
        "{error}"
    );
    Plan::new(&source, &recipe.rule(skip("*.experts.*")), None).unwrap();
}

#[test]
fn a_budget_that_cannot_be_met_names_the_tensor_and_the_least() {
    let directory = tempfile::tempdir().unwrap();
    let source = mixture(&directory.path().join("model"));
    let plan = Plan::new(&source, &Recipe::new("magnitude").sparsity(0.5), None).unwrap();
    let error = Schedule::new(&source, &plan, None, "1MiB".parse().unwrap()).unwrap_err();
    let Error::Memory { budget, least, what } = &error else { panic!("{error}") };
    assert_eq!((*budget, what.contains("up_proj")), (1 << 20, true));
    // What it says would do does.
    let memory = prune_pipeline::MemoryBudget::bytes(*least);
    assert!(Schedule::new(&source, &plan, None, memory).unwrap().estimate <= *least);
    let out = directory.path().join("out");
    let options = ApplyOptions { memory: "1MiB".parse().unwrap(), ..ApplyOptions::default() };
    apply(&source, &plan, None, &out, &options, &mut |_, _, _| ()).unwrap_err();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_source_that_changes_while_it_is_read_gives_no_output() {
    let directory = tempfile::tempdir().unwrap();
    let source = mixture(&directory.path().join("model"));
    let plan = Plan::new(&source, &Recipe::new("magnitude").sparsity(0.5), None).unwrap();
    let out = directory.path().join("out");
    let file = directory.path().join("model/model.safetensors");
    let mut progress = |done: usize, _: usize, _: &str| {
        if done == 2 {
            // In place: other threads read on, and none may meet a file that is too short.
            let bytes = std::fs::read(&file).unwrap();
            let mut file = std::fs::File::options().write(true).open(&file).unwrap();
            file.write_all(&bytes).unwrap();
        }
    };
    let options = ApplyOptions::default();
    let error = apply(&source, &plan, None, &out, &options, &mut progress).unwrap_err();
    assert!(matches!(error, Error::SourceChanged { .. }), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
