//! ECoFLaP through a recipe: the calibration loss as an objective, and what perturbing it costs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, ArrayView2};
use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
use prune_core::{
    Block, BlockModel, DType, Head, LayerId, LayerInfo, Objective, Observer, Seed, TensorInfo,
    TensorSource, encode_f32,
};
use prune_importance::{Distribution, Perturbed, SeededNoise};
use prune_pipeline::{
    Action, Calibration, CalibrationLoss, Error, Plan, Recipe, TokenWindows, Weighted, evaluate,
};

const WIDTH: usize = 8;
const VOCABULARY: usize = 11;
const BLOCKS: usize = 3;
/// What each block adds of its output to the residual stream.
const STRENGTH: [f32; BLOCKS] = [0.02, 1.0, 0.1];

/// Blocks of two layers each: `h + strength · tanh(tanh(h A^T) B^T)`.
struct Toy {
    layers: Vec<LayerInfo>,
    /// Blocks that were loaded, each to be run over all samples.
    loads: AtomicUsize,
}

fn layer(block: usize, role: &str) -> LayerId {
    LayerId::new(format!("model.layers.{block}.mlp.{role}"))
}

impl Toy {
    fn new() -> Self {
        let all = (0..BLOCKS).flat_map(|b| ["down_proj", "up_proj"].map(|r| layer(b, r)));
        Self {
            layers: all.map(|id| LayerInfo::linear(id.as_str(), WIDTH, WIDTH)).collect(),
            loads: AtomicUsize::new(0),
        }
    }
}

struct ToyBlock {
    block: usize,
    up: Array2<f32>,
    down: Array2<f32>,
}

struct ToyHead;

impl BlockModel for Toy {
    fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }
    fn blocks(&self) -> usize {
        BLOCKS
    }
    fn vocab_size(&self) -> usize {
        VOCABULARY
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
    fn embed(&self, _: &dyn TensorSource, ids: &[u32]) -> prune_core::Result<Array2<f32>> {
        Ok(Array2::from_shape_fn((ids.len(), WIDTH), |(t, c)| table(ids[t] as usize, c)))
    }
    fn load_block(
        &self,
        weights: &dyn TensorSource,
        block: usize,
    ) -> prune_core::Result<Box<dyn Block>> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let read = |role| weights.read_matrix(&layer(block, role).weight_name());
        Ok(Box::new(ToyBlock { block, up: read("up_proj")?, down: read("down_proj")? }))
    }
    fn load_head(&self, _: &dyn TensorSource) -> prune_core::Result<Box<dyn Head>> {
        Ok(Box::new(ToyHead))
    }
}

fn table(token: usize, channel: usize) -> f32 {
    ((7 * token + 3 * channel) as f32).sin()
}

impl ToyBlock {
    fn inner(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        hidden.dot(&self.up.t()).mapv(f32::tanh)
    }
}

impl Block for ToyBlock {
    fn observe(
        &self,
        hidden: ArrayView2<'_, f32>,
        observer: &mut Observer<'_>,
    ) -> prune_core::Result<()> {
        observer(&[layer(self.block, "up_proj")], hidden)?;
        observer(&[layer(self.block, "down_proj")], self.inner(hidden).view())
    }
    fn forward(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        let added = self.inner(hidden).dot(&self.down.t()).mapv(f32::tanh);
        Ok(&hidden + &(added * STRENGTH[self.block]))
    }
}

impl Head for ToyHead {
    fn logits(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        Ok(hidden.dot(&Array2::from_shape_fn((WIDTH, VOCABULARY), |(c, t)| table(t, c))))
    }
}

fn checkpoint(directory: &Path) -> Checkpoint {
    let infos: Vec<TensorInfo> = Toy::new()
        .layers
        .iter()
        .map(|l| TensorInfo { name: l.id.weight_name(), dtype: DType::F32, shape: l.shape.clone() })
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

fn windows() -> TokenWindows {
    let mut stream = Seed::new(5).stream("ids");
    let ids: Vec<u32> = (0..40 * 16).map(|_| stream.below(VOCABULARY as u64) as u32).collect();
    TokenWindows::consecutive("ids", &ids, 16, None).unwrap()
}

#[test]
fn the_loss_is_that_of_an_evaluation_wherever_it_starts() {
    let directory = tempfile::tempdir().unwrap();
    let (source, model, windows) =
        (checkpoint(&directory.path().join("source")), Toy::new(), windows());
    let calibration = Calibration::new(&model, &windows);
    let whole = evaluate(Weighted { model: &model, weights: &source }, &windows, None).unwrap();
    let mut loss = CalibrationLoss::new(&calibration, 40).unwrap();
    assert!((loss.loss(&source).unwrap() - whole.perplexity.ln()).abs() < 1e-12);

    let noise = SeededNoise::new(Seed::new(1), Distribution::Gaussian);
    let name = layer(1, "up_proj").weight_name();
    let moved = Perturbed::new(&source, &[&name], &noise, 0, 0.1).unwrap();
    let expected = loss.loss(&moved).unwrap();
    assert_ne!(expected, loss.loss(&source).unwrap());
    loss.start_at(0, &source).unwrap();
    loss.start_at(1, &source).unwrap();
    model.loads.store(0, Ordering::Relaxed);
    // To the bit, and block 0 is not run again.
    assert_eq!(loss.loss(&moved).unwrap(), expected);
    assert_eq!(model.loads.load(Ordering::Relaxed), 2);
    let back = loss.start_at(0, &source);
    assert!(matches!(back, Err(Error::Plan { .. })), "{back:?}");

    let batches = CalibrationLoss::batches(&calibration, 16).unwrap();
    assert_eq!(batches.len(), 3);
}

#[test]
fn blocks_that_move_the_loss_keep_more_and_the_budget_is_met() {
    let directory = tempfile::tempdir().unwrap();
    let (source, model, windows) =
        (checkpoint(&directory.path().join("source")), Toy::new(), windows());
    let calibration = Calibration::new(&model, &windows);
    let total = 2 * BLOCKS * WIDTH * WIDTH;
    for (allocator, groups) in [("ecoflap", 2), ("ecoflap-layer", 2), ("ecoflap-joint", 1)] {
        model.loads.store(0, Ordering::Relaxed);
        let recipe = Recipe::new("wanda").sparsity(0.5).allocate(allocator);
        let plan = Plan::new(&source, &recipe, Some(&calibration)).unwrap();
        assert_eq!(plan.totals.removed, total / 2, "{allocator}");
        let removed = |block: usize| -> usize {
            let here = plan.tensors.iter().filter(|t| t.name.contains(&format!("layers.{block}.")));
            here.map(|t| match &t.action {
                Action::Prune { remove, .. } => *remove,
                _ => 0,
            })
            .sum()
        };
        // The middle block adds the most to the residual stream.
        assert!(removed(1) < removed(2) && removed(2) < removed(0), "{allocator}");
        // Four batches, two passes of each through the block and those after it, for each layer or
        // block; and two dense passes of each batch up to the last block.
        let passes: usize = (0..BLOCKS).map(|b| groups * 2 * (BLOCKS - b)).sum();
        assert_eq!(model.loads.load(Ordering::Relaxed), 4 * (passes + BLOCKS - 1), "{allocator}");
        assert_eq!(Plan::new(&source, &recipe, Some(&calibration)).unwrap(), plan);
    }
    let recipe = Recipe::new("magnitude").sparsity(0.5).allocate("ecoflap");
    let none = Plan::new(&source, &recipe, None);
    assert!(none.unwrap_err().to_string().contains("`ecoflap` needs calibration data"));
}
