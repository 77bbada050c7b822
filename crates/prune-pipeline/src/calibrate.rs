use std::collections::{BTreeSet, HashMap};

use ndarray::Array2;
use prune_core::{Block, BlockModel, ColumnStats, LayerId, TensorSource};
use prune_importance::OutlierDistribution;
use rayon::prelude::*;

use crate::{Result, TokenWindows};

/// A model that can be run, and the token windows to run it on.
pub struct Calibration<'a> {
    /// The model.
    pub model: &'a dyn BlockModel,
    /// The samples.
    pub windows: &'a TokenWindows,
}

impl Calibration<'_> {
    /// Bytes of the hidden states of all samples, one block and its scratch on each thread.
    pub(crate) fn memory(&self) -> usize {
        let tokens = self.windows.windows().len() * self.windows.length();
        let hidden = 4 * tokens * self.model.width();
        hidden
            + (1 + rayon::current_num_threads())
                * (self.model.block_bytes() + self.model.sample_bytes(self.windows.length()))
    }
}

/// Samples whose statistics are summed apart before they join, in this fixed grouping, so that the
/// sums do not depend on threads.
const BATCH: usize = 8;

/// The hidden states that enter block 0, a sample each.
pub(crate) fn embed(
    calibration: &Calibration<'_>,
    source: &dyn TensorSource,
) -> Result<Vec<Array2<f32>>> {
    let windows = calibration.windows.windows();
    Ok(windows
        .iter()
        .map(|w| calibration.model.embed(source, w))
        .collect::<prune_core::Result<_>>()?)
}

/// Column statistics of the wanted layers of a block, from the inputs that they see.
pub(crate) fn observe(
    block: &dyn Block,
    hidden: &[Array2<f32>],
    wanted: &BTreeSet<LayerId>,
) -> Result<HashMap<LayerId, ColumnStats>> {
    let mut all: HashMap<LayerId, ColumnStats> = HashMap::new();
    for batch in hidden.chunks(BATCH) {
        let parts: Vec<_> =
            batch.par_iter().map(|h| observe_sample(block, h, wanted)).collect::<Result<_>>()?;
        for (ids, part) in parts.into_iter().flatten() {
            for id in ids {
                all.entry(id).or_insert_with(|| ColumnStats::new(part.channels())).merge(&part)?;
            }
        }
    }
    Ok(all)
}

type Part = (Vec<LayerId>, ColumnStats);

fn observe_sample(
    block: &dyn Block,
    hidden: &Array2<f32>,
    wanted: &BTreeSet<LayerId>,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    block.observe(hidden.view(), &mut |ids, input| {
        let ids: Vec<LayerId> = ids.iter().filter(|id| wanted.contains(*id)).cloned().collect();
        if let Some(first) = ids.first() {
            let mut stats = ColumnStats::new(input.ncols());
            stats.update(&format!("input of {first}"), input)?;
            parts.push((ids, stats));
        }
        Ok(())
    })?;
    Ok(parts)
}

/// Runs a block over all samples, in place.
pub(crate) fn forward(block: &dyn Block, hidden: &mut [Array2<f32>]) -> Result<()> {
    Ok(hidden.par_iter_mut().try_for_each(|h| {
        *h = block.forward(h.view())?;
        Ok::<(), prune_core::Error>(())
    })?)
}

/// OWL's outlier percentage of every block, on the dense model.
pub(crate) fn outlier_scores(
    source: &dyn TensorSource,
    calibration: &Calibration<'_>,
) -> Result<Vec<f64>> {
    let model = calibration.model;
    let mut hidden = embed(calibration, source)?;
    let mut scores = Vec::new();
    for index in 0..model.blocks() {
        let layers: Vec<_> =
            model.layers().iter().filter(|l| l.block == Some(index)).map(|l| &l.id).collect();
        let wanted = layers.iter().map(|id| (*id).clone()).collect();
        let block = model.load_block(source, index)?;
        let stats = observe(&*block, &hidden, &wanted)?;
        let mut first = OutlierDistribution::new(OutlierDistribution::MULTIPLIER)?;
        for id in &layers {
            if let Some(stats) = stats.get(*id) {
                first.observe(id, source.read_matrix(&id.weight_name())?.view(), stats)?;
            }
        }
        let mut second = first.second_pass()?;
        for id in &layers {
            if let Some(stats) = stats.get(*id) {
                second.observe(id, source.read_matrix(&id.weight_name())?.view(), stats)?;
            }
        }
        scores.push(second.percent()?);
        if index + 1 < model.blocks() {
            forward(&*block, &mut hidden)?;
        }
    }
    Ok(scores)
}
