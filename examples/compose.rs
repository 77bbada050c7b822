//! A downstream framework's view: tensors of its own, the traits of `prune-core`, and a scorer of
//! one's own in twenty lines. No candle, no files.
//!
//! ```text
//! cargo run --release --example compose
//! ```

use ndarray::{Array2, ArrayView2};
use prune_allocate::Erk;
use prune_core::{
    Allocator, Budget, ColumnStats, LayerInfo, LayerStats, Needs, Pattern, Pruner, Result,
    RowScorer, Scope, ScorePruner, ScoredLayer, Seed, Target, WeightScorer,
};

/// Weighs a weight by the *variance* of its input instead of Wanda's norm: a constant input can be
/// folded into a bias, so only what varies counts.
struct VarianceScore;

impl WeightScorer for VarianceScore {
    fn name(&self) -> &str {
        "variance"
    }

    fn needs(&self) -> Needs {
        Needs::Columns
    }

    fn prepare(
        &self,
        target: &Target<'_>,
        _weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
    ) -> Result<RowScorer> {
        let variance = stats.require_columns(target.layer, self.name())?.variance();
        let factors: Vec<f32> = variance.iter().map(|v| v.sqrt() as f32).collect();
        Ok(Box::new(move |_row, weights, scores| {
            for ((score, weight), factor) in scores.iter_mut().zip(weights).zip(&factors) {
                *score = weight.abs() * factor;
            }
        }))
    }
}

fn main() -> Result<()> {
    // Tensors of the framework's own: here two layers and the inputs that they saw.
    let wave =
        |seed: usize| move |(i, j)| ((37 * i * i + 53 * i * j + 91 * j + seed) as f32 * 0.01).sin();
    let mut weights =
        [Array2::from_shape_fn((64, 32), wave(1)), Array2::from_shape_fn((16, 64), wave(2))];
    let layers = [LayerInfo::linear("first", 64, 32), LayerInfo::linear("second", 16, 64)];

    // Allocate: one budget over both layers, met to the weight.
    let scored: Vec<ScoredLayer> = layers.iter().cloned().map(ScoredLayer::from).collect();
    let kept = Erk.allocate(&scored, &Budget::sparsity(0.6)?)?;

    // Measure and compress, a layer at a time.
    let pruner = ScorePruner(VarianceScore);
    let mut all = 0;
    for (layer, weight) in layers.iter().zip(&mut weights) {
        let inputs = Array2::from_shape_fn((256, layer.shape[1]), wave(3));
        let mut columns = ColumnStats::new(layer.shape[1]);
        columns.update("inputs", inputs.view())?;
        let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
        let target = Target {
            layer: &layer.id,
            pattern: Pattern::Unstructured,
            scope: Scope::PerLayer,
            remove: layer.numel() - kept.get(&layer.id).copied().unwrap_or(0),
            stream: Seed::new(0).stream(layer.id.as_str()),
        };
        let pruned = pruner.prune(weight.view_mut(), &stats, &target)?;
        println!("{:<8} {:>5} of {} removed", layer.id, pruned.mask.removed(), layer.numel());
        all += pruned.mask.removed();
    }
    println!("{:<8} {all:>5} in all: the budget, to the weight", "both");
    Ok(())
}
