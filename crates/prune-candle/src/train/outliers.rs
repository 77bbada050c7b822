use std::collections::BTreeMap;

use prune_core::{BlockModel, ColumnStats, LayerId, TensorSource};
use prune_importance::OutlierDistribution;

use crate::{LlamaModel, Result};

/// The percentage of outliers in every block, weights times input norms above `multiplier` times
/// their mean, on these samples: what OwLore draws blocks by, with a multiplier of 13.
///
/// One block's weights and the hidden states of all samples are in memory.
///
/// # Errors
/// What the model reports; [`prune_core::Error::OutOfRange`] for a multiplier.
pub fn outlier_scores(
    model: &LlamaModel,
    weights: &dyn TensorSource,
    samples: &[&[u32]],
    multiplier: f64,
) -> Result<Vec<f64>> {
    let embed = |tokens: &&[u32]| model.embed(weights, tokens);
    let mut hidden = samples.iter().map(embed).collect::<prune_core::Result<Vec<_>>>()?;
    let mut scores = Vec::new();
    for index in 0..model.blocks() {
        let block = model.load_block(weights, index)?;
        let mut stats: BTreeMap<LayerId, ColumnStats> = BTreeMap::new();
        for x in &mut hidden {
            block.observe(x.view(), &mut |layers, input| {
                for layer in layers {
                    let fresh = || ColumnStats::new(input.ncols());
                    let stats = stats.entry(layer.clone()).or_insert_with(fresh);
                    stats.update(layer.as_str(), input)?;
                }
                Ok(())
            })?;
            *x = block.forward(x.view())?;
        }
        let mut mean = OutlierDistribution::new(multiplier)?;
        for (layer, stats) in &stats {
            let weight = weights.read_matrix(&layer.weight_name())?;
            mean.observe(layer, weight.view(), stats)?;
        }
        let mut count = mean.second_pass()?;
        for (layer, stats) in &stats {
            let weight = weights.read_matrix(&layer.weight_name())?;
            count.observe(layer, weight.view(), stats)?;
        }
        scores.push(count.percent()?);
    }
    Ok(scores)
}
