use std::collections::BTreeMap;

use prune_core::{LayerId, LayerStats, Needs, TensorSource};
use prune_importance::OutlierDistribution;

use crate::Result;
use crate::calibrate::{Calibration, forward, observe};
use crate::schedule::measuring;

/// OWL's outlier percentage of every block, on the dense model.
pub(crate) fn outlier_scores(
    source: &dyn TensorSource,
    calibration: &Calibration<'_>,
) -> Result<Vec<f64>> {
    const MULTIPLIER: f64 = 5.0;
    let mut scores = Vec::new();
    each_block(source, calibration, &mut |layers, stats| {
        let mut first = OutlierDistribution::new(MULTIPLIER)?;
        for id in layers {
            if let Some(columns) = stats.get(id).and_then(|s| s.columns.as_ref()) {
                first.observe(id, source.read_matrix(&id.weight_name())?.view(), columns)?;
            }
        }
        let mut second = first.second_pass()?;
        for id in layers {
            if let Some(columns) = stats.get(id).and_then(|s| s.columns.as_ref()) {
                second.observe(id, source.read_matrix(&id.weight_name())?.view(), columns)?;
            }
        }
        scores.push(second.percent()?);
        Ok(())
    })?;
    Ok(scores)
}

/// Shows the layers of each block of the dense model in turn, with the statistics of their inputs.
fn each_block(
    source: &dyn TensorSource,
    calibration: &Calibration<'_>,
    visit: &mut dyn FnMut(&[LayerId], &BTreeMap<LayerId, LayerStats>) -> Result<()>,
) -> Result<()> {
    let model = calibration.model;
    let go_on = || Ok(());
    let weights = model.layers().iter().map(|l| 4 * l.numel() as u64).max().unwrap_or(0);
    let (spills, at_once) = measuring(calibration, weights)?;
    let mut hidden = calibration.embed(source, spills)?;
    for index in 0..model.blocks() {
        let layers: Vec<LayerId> = model
            .layers()
            .iter()
            .filter(|l| l.block == Some(index))
            .map(|l| l.id.clone())
            .collect();
        let wanted = layers.iter().map(|id| (id.clone(), Needs::Columns)).collect();
        let block = model.load_block(source, index)?;
        let seen = observe(&*block, &hidden, &wanted, at_once, &go_on)?;
        let stats = seen
            .into_iter()
            .flat_map(|o| o.layers.into_iter().map(move |id| (id, o.stats.clone())))
            .collect();
        visit(&layers, &stats)?;
        if index + 1 < model.blocks() {
            forward(&*block, &mut hidden, at_once, &go_on)?;
        }
    }
    Ok(())
}
