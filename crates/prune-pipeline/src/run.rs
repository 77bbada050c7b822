use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use prune_checkpoint::Checkpoint;
use prune_core::{
    ColumnStats, DType, LayerId, LayerStats, Needs, Seed, TensorInfo, TensorSource, block_of,
};
use rayon::prelude::*;

use crate::calibrate::{Calibration, Dense, Observed, forward, observe};
use crate::compress::Job;
use crate::hidden::HiddenStates;
use crate::manifest::TensorRecord;
use crate::method::Method;
use crate::plan::{Action, Plan, PlannedFactor, PlannedTensor, factors_of};
use crate::schedule::{Schedule, models, passes, statistics_bytes, tensor_bytes, waves};
use crate::sink::{Sink, lock};
use crate::targets::Drift;
use crate::{Error, MemoryBudget, Progress, Result, Targets};

/// A planned tensor and what will be written for it.
pub(crate) struct Item<'a> {
    pub(crate) tensor: &'a PlannedTensor,
    pub(crate) info: TensorInfo,
    /// The factors that are written for it.
    pub(crate) factors: Vec<TensorInfo>,
    needs: Needs,
    bytes: u64,
}

/// The execution of a plan: the same work whether its result is written or compared.
pub(crate) struct Run<'a, 'p> {
    pub(crate) source: &'a Checkpoint,
    pub(crate) plan: &'a Plan,
    pub(crate) sink: &'a dyn Sink,
    pub(crate) schedule: &'a Schedule,
    pub(crate) budget: MemoryBudget,
    pub(crate) calibration: Option<&'a Calibration<'a>>,
    pub(crate) interrupt: Option<&'a AtomicBool>,
    pub(crate) progress: Mutex<&'a mut Progress<'p>>,
    pub(crate) records: Mutex<BTreeMap<String, TensorRecord>>,
}

/// The planned tensors, once it is clear that the source holds them as the plan says.
pub(crate) fn items<'a>(source: &Checkpoint, plan: &'a Plan) -> Result<Vec<Item<'a>>> {
    let items: Vec<Item<'a>> = plan
        .tensors
        .iter()
        .map(|tensor| {
            let info = check_tensor(source, tensor)?;
            let factors = factors_of(&info, &tensor.action)?;
            let planned = tensor.action.factors();
            let same = planned.len() == factors.len()
                && planned.iter().zip(&factors).all(|(planned, factor)| {
                    let PlannedFactor { name, shape, dtype } = planned;
                    (name, shape) == (&factor.name, &factor.shape) && dtype == factor.dtype.name()
                });
            if !same {
                return Err(Error::plan(&tensor.name, "plans other factors than the method makes"));
            }
            let needs = Method::of(&tensor.action)?.map_or(Needs::Nothing, |m| m.needs());
            let bytes = tensor_bytes(tensor, &info, plan.recipe.targets)?;
            Ok(Item { tensor, info, factors, needs, bytes })
        })
        .collect::<Result<_>>()?;
    if items.len() != source.tensors().len() {
        let reason =
            format!("plans {} tensors; the source has {}", items.len(), source.tensors().len());
        return Err(Error::plan("plan", reason));
    }
    Ok(items)
}

fn check_tensor(source: &Checkpoint, tensor: &PlannedTensor) -> Result<TensorInfo> {
    let info = source.info(&tensor.name)?;
    if info.shape != tensor.shape {
        let reason = format!("planned as {:?}; the source has {:?}", tensor.shape, info.shape);
        return Err(Error::plan(&tensor.name, reason));
    }
    let dtype: DType = tensor.dtype.parse()?;
    if tensor.action == Action::Copy && dtype != info.dtype {
        let reason = format!("copied as {dtype}; the source has {}", info.dtype);
        return Err(Error::plan(&tensor.name, reason));
    }
    Ok(TensorInfo { dtype, ..info.clone() })
}

impl Run<'_, '_> {
    /// Does all that is not done yet.
    pub(crate) fn run(&self, items: &[Item<'_>]) -> Result<()> {
        let mut blocks: BTreeMap<usize, Vec<&Item<'_>>> = BTreeMap::new();
        let mut rest = Vec::new();
        for item in items {
            match (item.needs, block_of(&item.tensor.name)) {
                (Needs::Nothing, _) | (_, None) => rest.push(item),
                (_, Some((block, _))) => blocks.entry(block).or_default().push(item),
            }
        }
        // Data-free tensors of a block that is run must be replaced before it is run; they come
        // first, and each is safe as soon as it is done.
        let left: Vec<&Item<'_>> = rest.iter().copied().filter(|i| !self.is_done(i)).collect();
        let sizes: Vec<u64> = left.iter().map(|i| i.bytes).collect();
        let count = 4 * rayon::current_num_threads();
        for wave in waves(&sizes, self.schedule.tensors, count) {
            self.pause()?;
            left[wave].par_iter().try_for_each(|item| {
                let record = self.compress(item, &LayerStats::default(), None)?;
                self.commit(vec![record])
            })?;
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let calibration =
            self.calibration.ok_or_else(|| Error::NeedsCalibration { what: "this plan".into() })?;
        let mut view = View { source: self.source, sink: self.sink, written: HashMap::new() };
        view.show(rest);
        self.blocks(calibration, &blocks, view)
    }

    fn blocks<'i>(
        &self,
        calibration: &Calibration<'_>,
        blocks: &BTreeMap<usize, Vec<&'i Item<'i>>>,
        mut view: View<'_>,
    ) -> Result<()> {
        let model = calibration.model;
        let last = blocks.keys().copied().max().unwrap_or(0);
        if last >= model.blocks() {
            let reason = format!("plans block {last}; the model has {}", model.blocks());
            return Err(Error::plan("plan", reason));
        }
        let pause = || self.pause();
        let at_once = self.schedule.samples;
        let mut hidden = calibration.embed(self.source, self.schedule.spills)?;
        let mut dense = match self.plan.recipe.targets {
            Targets::Dense => Some(calibration.embed(self.source, self.schedule.spills)?),
            Targets::Own => None,
        };
        for index in 0..=last {
            let items = blocks.get(&index).map(Vec::as_slice).unwrap_or_default();
            if !items.iter().all(|item| self.is_done(item)) {
                self.block(calibration, index, items, &view, (&hidden, dense.as_ref()))?;
            }
            view.show(items.iter().copied());
            if index < last {
                // What was written is what later blocks see, also after an interruption: the
                // states are recomputed from the same bytes to the same bits.
                forward(&*model.load_block(&view, index)?, &mut hidden, at_once, &pause)?;
                if let Some(dense) = &mut dense {
                    forward(&*model.load_block(self.source, index)?, dense, at_once, &pause)?;
                }
            }
        }
        Ok(())
    }

    /// Observes one block, with its weights as they were, and does its tensors.
    fn block(
        &self,
        calibration: &Calibration<'_>,
        index: usize,
        items: &[&Item<'_>],
        view: &View<'_>,
        (hidden, dense): (&HiddenStates, Option<&HiddenStates>),
    ) -> Result<()> {
        let model = calibration.model;
        let wanted: Vec<(LayerId, Needs, usize)> = items
            .iter()
            .map(|i| (LayerId::from_tensor(&i.tensor.name), i.needs, i.info.shape[1]))
            .collect();
        let passes = passes(&wanted, self.schedule.statistics, self.plan.recipe.targets);
        let mut block = Some(model.load_block(view, index)?);
        let mut dense_block = dense.map(|_| model.load_block(self.source, index)).transpose()?;
        let pause = || self.pause();
        let mut records = Vec::new();
        for (number, pass) in passes.iter().enumerate() {
            let Some(loaded) = &block else { break };
            let beside = dense_block.as_deref().zip(dense);
            let beside = beside.map(|(block, hidden)| Dense { block, hidden });
            let at_once = self.schedule.samples;
            let seen = observe(&**loaded, hidden, beside, pass, at_once, &pause)?;
            let is_last = number + 1 == passes.len();
            if is_last {
                (block, dense_block) = (None, None);
            }
            let items: Vec<&Item<'_>> = items
                .iter()
                .copied()
                .filter(|i| pass.contains_key(&LayerId::from_tensor(&i.tensor.name)))
                .collect();
            let targets = self.plan.recipe.targets;
            let statistics: u64 =
                items.iter().map(|i| statistics_bytes(i.needs, i.info.shape[1], targets)).sum();
            let models = models(targets);
            let states = models * hidden_bytes(calibration, self.schedule);
            let weights = if is_last { 0 } else { models * model.block_bytes() as u64 };
            let held = statistics + states + weights + (96 << 20);
            let tensors = self.schedule.tensors_beside(held, self.budget);
            let sizes: Vec<u64> = items.iter().map(|i| i.bytes).collect();
            for wave in waves(&sizes, tensors, usize::MAX) {
                self.pause()?;
                let done: Vec<TensorRecord> = items[wave]
                    .par_iter()
                    .map(|item| {
                        let (stats, drift) = self.stats_of(item, &seen)?;
                        self.compress(item, stats, drift)
                    })
                    .collect::<Result<_>>()?;
                records.extend(done);
            }
        }
        // A block is safe as a whole: its layers were measured together.
        self.commit(records)
    }

    fn stats_of<'s>(
        &self,
        item: &Item<'_>,
        seen: &'s [Observed],
    ) -> Result<(&'s LayerStats, Option<&'s Drift>)> {
        let layer = LayerId::from_tensor(&item.tensor.name);
        let found = seen.iter().find(|o| o.layers.contains(&layer));
        let columns = found.and_then(|o| o.stats.columns.as_ref());
        let tokens = columns.map_or(0, ColumnStats::count);
        let needed = self.plan.recipe.min_tokens;
        match found {
            // Layers that share an input may want less of it than this one.
            Some(found) if tokens >= needed => {
                Ok((&found.stats, found.drift.as_ref().filter(|_| item.needs == Needs::Gram)))
            }
            _ => Err(Error::Starved { layer: layer.to_string(), found: tokens, needed }),
        }
    }

    fn compress(
        &self,
        item: &Item<'_>,
        stats: &LayerStats,
        drift: Option<&Drift>,
    ) -> Result<TensorRecord> {
        let seed = Seed::new(self.plan.recipe.seed);
        let Item { tensor, info, factors, .. } = item;
        Job { source: self.source, sink: self.sink, seed, tensor, info, factors, stats, drift }
            .run()
    }

    fn commit(&self, records: Vec<TensorRecord>) -> Result<()> {
        self.sink.commit(&records)?;
        for record in records {
            let name = record.name.clone();
            let mut all = lock(&self.records);
            all.insert(name.clone(), record);
            let done = all.len();
            drop(all);
            (lock(&self.progress))(done, self.plan.tensors.len(), &name);
        }
        Ok(())
    }

    fn is_done(&self, item: &Item<'_>) -> bool {
        lock(&self.records).contains_key(&item.tensor.name)
    }

    /// Stops here when asked to.
    fn pause(&self) -> Result<()> {
        match self.interrupt {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(Error::Interrupted {
                done: lock(&self.records).len(),
                all: self.plan.tensors.len(),
            }),
            _ => Ok(()),
        }
    }
}

fn hidden_bytes(calibration: &Calibration<'_>, schedule: &Schedule) -> u64 {
    if schedule.spills { 0 } else { calibration.samples() as u64 * calibration.state_bytes() }
}

/// The source, with the tensors that are done as they were written.
struct View<'a> {
    source: &'a Checkpoint,
    sink: &'a dyn Sink,
    written: HashMap<String, TensorInfo>,
}

impl View<'_> {
    fn show<'i>(&mut self, items: impl IntoIterator<Item = &'i Item<'i>>) {
        let changed = items.into_iter().filter(|i| i.tensor.action != Action::Copy);
        self.written.extend(changed.map(|i| (i.tensor.name.clone(), i.info.clone())));
    }
}

impl TensorSource for View<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        self.source.tensors()
    }

    fn info(&self, name: &str) -> prune_core::Result<&TensorInfo> {
        match self.written.get(name) {
            Some(info) => Ok(info),
            None => self.source.info(name),
        }
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        match self.written.get(name) {
            Some(info) => self
                .sink
                .read_part(info, offset, buf)
                .map_err(|e| prune_core::Error::external(name, e)),
            None => self.source.read_at(name, offset, buf),
        }
    }
}

/// The tensors that a journal names and that stand as it says, in the source and in the incomplete
/// output. A block counts only whole.
pub(crate) fn intact(
    items: &[Item<'_>],
    recorded: BTreeMap<String, TensorRecord>,
    check: &(dyn Fn(&TensorRecord) -> Result<bool> + Sync),
) -> Result<BTreeMap<String, TensorRecord>> {
    let checked: Vec<(TensorRecord, bool)> = recorded
        .into_values()
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|record| check(&record).map(|good| (record, good)))
        .collect::<Result<_>>()?;
    let good: HashSet<&str> =
        checked.iter().filter(|(_, good)| *good).map(|(r, _)| r.name.as_str()).collect();
    let calibrated_block = |i: &Item<'_>| {
        block_of(&i.tensor.name).map(|(block, _)| block).filter(|_| i.needs != Needs::Nothing)
    };
    let broken: HashSet<usize> = items
        .iter()
        .filter(|i| !good.contains(i.tensor.name.as_str()))
        .filter_map(calibrated_block)
        .collect();
    let whole: HashSet<&str> = items
        .iter()
        .filter(|i| calibrated_block(i).is_none_or(|block| !broken.contains(&block)))
        .map(|i| i.tensor.name.as_str())
        .collect();
    let keep = |r: &TensorRecord| good.contains(r.name.as_str()) && whole.contains(r.name.as_str());
    let kept: Vec<TensorRecord> =
        checked.iter().map(|(r, _)| r).filter(|r| keep(r)).cloned().collect();
    Ok(kept.into_iter().map(|r| (r.name.clone(), r)).collect())
}
