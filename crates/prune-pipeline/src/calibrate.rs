use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Array2;
use prune_core::{
    Block, BlockModel, ColumnStats, GramAccumulator, LayerId, LayerStats, Needs, TensorSource,
};
use rayon::prelude::*;

use crate::hidden::HiddenStates;
use crate::targets::Drift;
use crate::{MemoryBudget, Result, TokenWindows};

/// A model that can be run, and the token windows to run it on.
#[derive(Clone)]
pub(crate) struct TokenCalibration<'a> {
    pub(crate) model: &'a dyn BlockModel,
    pub(crate) windows: &'a TokenWindows,
    pub(crate) memory: MemoryBudget,
    pub(crate) spill: PathBuf,
}

impl<'a> TokenCalibration<'a> {
    pub(crate) fn new(model: &'a dyn BlockModel, windows: &'a TokenWindows) -> Self {
        let spill = std::env::temp_dir();
        Self { model, windows, memory: MemoryBudget::default(), spill }
    }

    pub(crate) fn samples(&self) -> usize {
        self.windows.windows().len()
    }

    /// Bytes of the hidden states of one sample.
    pub(crate) fn state_bytes(&self) -> u64 {
        4 * self.windows.length() as u64 * self.model.width() as u64
    }

    /// The hidden states that enter block 0.
    pub(crate) fn embed(&self, source: &dyn TensorSource, spill: bool) -> Result<HiddenStates> {
        let one = |i: usize| Ok(self.model.embed(source, &self.windows.windows()[i])?);
        if spill {
            let shape = (self.windows.length(), self.model.width());
            return HiddenStates::in_file(Path::new(&self.spill), self.samples(), shape, one);
        }
        Ok(HiddenStates::in_memory((0..self.samples()).map(one).collect::<Result<_>>()?))
    }
}

/// Statistics of layers that share their input.
pub(crate) struct Observed {
    pub(crate) layers: Vec<LayerId>,
    pub(crate) stats: LayerStats,
    /// How the input differs from that in the dense model, where that was run too.
    pub(crate) drift: Option<Drift>,
}

/// A block of the dense model, and the hidden states that enter it there.
#[derive(Clone, Copy)]
pub(crate) struct Dense<'a> {
    pub(crate) block: &'a dyn Block,
    pub(crate) hidden: &'a HiddenStates,
}

/// Statistics of the wanted layers of a block, from the inputs that they see; `at_once` samples run
/// side by side.
///
/// Statistics of a sample are summed apart and join in the order of the samples, so that neither
/// threads nor `at_once` change a bit. With `dense`, layers that want a Gram matrix also get the
/// drift of their inputs.
pub(crate) fn observe(
    block: &dyn Block,
    hidden: &HiddenStates,
    dense: Option<Dense<'_>>,
    wanted: &BTreeMap<LayerId, Needs>,
    at_once: usize,
    pause: &dyn Fn() -> Result<()>,
) -> Result<Vec<Observed>> {
    let mut all: Vec<Observed> = Vec::new();
    for first in (0..hidden.samples()).step_by(at_once.max(1)) {
        pause()?;
        let last = (first + at_once.max(1)).min(hidden.samples());
        let parts: Vec<Vec<Part>> = (first..last)
            .into_par_iter()
            .map(|i| {
                let mut parts = observe_sample(block, &hidden.get(i)?, wanted)?;
                if let Some(dense) = dense {
                    add_dense(&mut parts, dense.block, &dense.hidden.get(i)?)?;
                }
                Ok(parts)
            })
            .collect::<Result<_>>()?;
        let parts: Vec<Part> = parts.into_iter().flatten().collect();
        for part in &parts {
            let place = all.iter().position(|o| o.layers == part.layers).unwrap_or(all.len());
            if place == all.len() {
                let channels = part.columns.channels();
                let gram = part.input.as_ref().map(|_| GramAccumulator::new(channels));
                let stats =
                    LayerStats { columns: Some(ColumnStats::new(channels)), gram, gradient: None };
                let drift = part.dense.as_ref().map(|_| Drift::new(channels));
                all.push(Observed { layers: part.layers.clone(), stats, drift });
            }
            if let Some(columns) = &mut all[place].stats.columns {
                columns.merge(&part.columns)?;
            }
        }
        for Observed { layers, stats, drift } in &mut all {
            let Some(gram) = &mut stats.gram else { continue };
            let parts = || parts.iter().filter(|part| part.layers == *layers);
            let inputs: Vec<_> = parts().filter_map(|p| Some(p.input.as_ref()?.view())).collect();
            gram.update_all(&format!("input of {}", layers[0]), &inputs)?;
            for part in parts() {
                if let (Some(drift), Some(dense), Some(own)) =
                    (&mut *drift, &part.dense, &part.input)
                {
                    drift.update(&layers[0], dense.view(), own.view())?;
                }
            }
        }
    }
    Ok(all)
}

struct Part {
    layers: Vec<LayerId>,
    columns: ColumnStats,
    /// Kept where a Gram matrix is wanted.
    input: Option<Array2<f32>>,
    /// The same in the dense model.
    dense: Option<Array2<f32>>,
}

/// Adds the inputs that layers have in the dense model, to parts that keep theirs.
fn add_dense(parts: &mut [Part], block: &dyn Block, hidden: &Array2<f32>) -> Result<()> {
    block.observe(hidden.view(), &mut |ids, input| {
        let part = parts.iter_mut().find(|p| p.layers.first().is_some_and(|l| ids.contains(l)));
        if let Some(part) = part.filter(|p| p.input.is_some()) {
            part.dense = Some(input.to_owned());
        }
        Ok(())
    })?;
    Ok(())
}

fn observe_sample(
    block: &dyn Block,
    hidden: &Array2<f32>,
    wanted: &BTreeMap<LayerId, Needs>,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    block.observe(hidden.view(), &mut |ids, input| {
        let layers: Vec<LayerId> =
            ids.iter().filter(|id| wanted.contains_key(*id)).cloned().collect();
        if let Some(first) = layers.first() {
            let mut columns = ColumnStats::new(input.ncols());
            columns.update(&format!("input of {first}"), input)?;
            let gram = layers.iter().any(|id| wanted.get(id) == Some(&Needs::Gram));
            let input = gram.then(|| input.to_owned());
            parts.push(Part { layers, columns, input, dense: None });
        }
        Ok(())
    })?;
    Ok(parts)
}

/// Runs a block over all samples, in place.
pub(crate) fn forward(
    block: &dyn Block,
    hidden: &mut HiddenStates,
    at_once: usize,
    pause: &dyn Fn() -> Result<()>,
) -> Result<()> {
    for first in (0..hidden.samples()).step_by(at_once.max(1)) {
        pause()?;
        let last = (first + at_once.max(1)).min(hidden.samples());
        let states = (first..last)
            .into_par_iter()
            .map(|i| Ok(block.forward(hidden.get(i)?.view())?))
            .collect::<Result<_>>()?;
        hidden.replace(first, states)?;
    }
    Ok(())
}
