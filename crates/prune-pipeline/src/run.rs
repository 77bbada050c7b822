use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use prune_checkpoint::ModelSource;
use prune_core::{
    ColumnStats, DType, LayerId, LayerStats, Needs, Seed, TensorInfo, TensorSource, block_of,
    encode_f32,
};
use rayon::prelude::*;

use crate::calibrate::{Dense, Observed, TokenCalibration, forward, observe};
use crate::compress::Job;
use crate::fold::{Folding, Planned, scales_channels};
use crate::hidden::HiddenStates;
use crate::manifest::TensorRecord;
use crate::plan::{Action, Plan, PlannedFactor, PlannedTensor, factors_of};
use crate::schedule::{Schedule, models, passes, statistics_bytes, tensor_bytes, waves};
use crate::sink::{Done, Sink, lock};
use crate::store::Store;
use crate::targets::Drift;
use crate::{Calibration, Error, MemoryBudget, Progress, Result, Targets};

/// A planned tensor and what will be written for it.
pub(crate) struct Item<'a> {
    pub(crate) tensor: &'a PlannedTensor,
    /// What it is stored as.
    pub(crate) outputs: Vec<TensorInfo>,
    /// The factors that are written for it.
    pub(crate) factors: Vec<TensorInfo>,
    needs: Needs,
    bytes: u64,
}

impl Item<'_> {
    /// The block that is run to observe the tensor's inputs; `None` where none is.
    fn observed_in(&self) -> Option<usize> {
        let observed = matches!(self.needs, Needs::Columns | Needs::Gram);
        block_of(&self.tensor.name).map(|(block, _)| block).filter(|_| observed)
    }
}

/// The execution of a plan: the same work whether its result is written or compared.
pub(crate) struct Run<'a, 'p> {
    pub(crate) source: &'a dyn ModelSource,
    pub(crate) plan: &'a Plan,
    pub(crate) store: &'a Store,
    pub(crate) sink: &'a dyn Sink,
    pub(crate) schedule: &'a Schedule,
    pub(crate) budget: MemoryBudget,
    pub(crate) calibration: Option<&'a Calibration<'a>>,
    pub(crate) interrupt: Option<&'a AtomicBool>,
    pub(crate) progress: Mutex<&'a mut Progress<'p>>,
    pub(crate) records: Mutex<BTreeMap<String, TensorRecord>>,
}

/// The planned tensors, once it is clear that the source holds them as the plan says.
pub(crate) fn items<'a>(
    source: &dyn ModelSource,
    plan: &'a Plan,
    store: &Store,
) -> Result<Vec<Item<'a>>> {
    let items: Vec<Item<'a>> = plan
        .tensors
        .iter()
        .map(|tensor| {
            let info = check_tensor(source, tensor)?;
            let planned = tensor.action.factors();
            let mut stored = info.clone();
            stored.dtype = tensor.dtype.parse()?;
            let factors = factors_of(&stored, &tensor.action)?;
            let same = planned.len() == factors.len()
                && planned.iter().zip(&factors).all(|(planned, factor)| {
                    let PlannedFactor { name, shape, dtype } = planned;
                    (name, shape) == (&factor.name, &factor.shape) && dtype == factor.dtype.name()
                });
            if !same {
                return Err(Error::plan(&tensor.name, "plans other factors than the method makes"));
            }
            let needs = tensor.action.needs()?;
            let bytes = tensor_bytes(tensor, info, plan.recipe.targets)?;
            Ok(Item { tensor, outputs: store.outputs(tensor)?, factors, needs, bytes })
        })
        .collect::<Result<_>>()?;
    if items.len() != source.tensors().len() {
        let reason =
            format!("plans {} tensors; the source has {}", items.len(), source.tensors().len());
        return Err(Error::plan("plan", reason));
    }
    Ok(items)
}

fn check_tensor<'s>(source: &'s dyn ModelSource, tensor: &PlannedTensor) -> Result<&'s TensorInfo> {
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
    Ok(info)
}

impl Run<'_, '_> {
    /// Does all that is not done yet.
    pub(crate) fn run(&self, items: &[Item<'_>]) -> Result<()> {
        let mut blocks: BTreeMap<usize, Vec<&Item<'_>>> = BTreeMap::new();
        let mut rest = Vec::new();
        for item in items {
            match item.observed_in() {
                None => rest.push(item),
                Some(block) => blocks.entry(block).or_default().push(item),
            }
        }
        // Tensors that no block is run for must be replaced before their block is run; they come
        // first, and each is safe as soon as it is done.
        let left: Vec<&Item<'_>> = rest.iter().copied().filter(|i| !self.is_done(i)).collect();
        let sizes: Vec<u64> = left.iter().map(|i| i.bytes).collect();
        let none = LayerStats::default();
        let gradients = match left.iter().any(|i| i.needs == Needs::Gradient) {
            true => Some(self.calibration()?.images("this plan")?.stats(&|| self.pause())?),
            false => None,
        };
        let count = 4 * rayon::current_num_threads();
        for wave in waves(&sizes, self.schedule.tensors, count) {
            self.pause()?;
            left[wave].par_iter().try_for_each(|item| {
                let stats = match gradients.filter(|_| item.needs == Needs::Gradient) {
                    Some(all) => all.get(&LayerId::from_tensor(&item.tensor.name)),
                    None => None,
                };
                let record =
                    self.compress(item, stats.unwrap_or(&none), None, &Folding::default())?;
                self.commit(vec![Done { record, item }])
            })?;
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let calibration = self.calibration()?.tokens("this plan")?;
        let mut view = View {
            source: self.source,
            sink: self.sink,
            store: self.store,
            written: HashMap::new(),
            last: Mutex::new(None),
        };
        view.show(rest);
        self.blocks(calibration, &blocks, view)
    }

    fn calibration(&self) -> Result<&Calibration<'_>> {
        self.calibration.ok_or_else(|| Error::NeedsCalibration { what: "this plan".into() })
    }

    fn blocks<'v, 'i: 'v>(
        &self,
        calibration: &TokenCalibration<'_>,
        blocks: &BTreeMap<usize, Vec<&'i Item<'i>>>,
        mut view: View<'v>,
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
    fn block<'i>(
        &self,
        calibration: &TokenCalibration<'_>,
        index: usize,
        items: &[&'i Item<'i>],
        view: &View<'_>,
        (hidden, dense): (&HiddenStates, Option<&HiddenStates>),
    ) -> Result<()> {
        let model = calibration.model;
        let is_norm = |i: &Item<'_>| matches!(i.tensor.action, Action::Fold { .. });
        let wanted: Vec<(LayerId, Needs, usize)> = items
            .iter()
            .filter(|i| !is_norm(i))
            .map(|i| (LayerId::from_tensor(&i.tensor.name), i.needs, i.tensor.shape[1]))
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
            let items: Vec<&'i Item<'i>> = items
                .iter()
                .copied()
                .filter(|i| is_norm(i) || pass.contains_key(&LayerId::from_tensor(&i.tensor.name)))
                .collect();
            let folding = self.folding(&items, &seen)?;
            let targets = self.plan.recipe.targets;
            let statistics: u64 = pass
                .iter()
                .map(|(id, needs)| statistics_bytes(*needs, columns_of(&wanted, id), targets))
                .sum();
            let models = models(targets);
            let states = models * hidden_bytes(calibration, self.schedule);
            let weights = if is_last { 0 } else { models * model.block_bytes() as u64 };
            let held = statistics + states + weights + (96 << 20);
            let tensors = self.schedule.tensors_beside(held, self.budget);
            let sizes: Vec<u64> = items.iter().map(|i| i.bytes).collect();
            for wave in waves(&sizes, tensors, usize::MAX) {
                self.pause()?;
                let done: Vec<Done<'_>> = items[wave]
                    .par_iter()
                    .map(|item| {
                        let none = LayerStats::default();
                        let (stats, drift) = match is_norm(item) {
                            true => (&none, None),
                            false => self.stats_of(item, &seen)?,
                        };
                        let record = self.compress(item, stats, drift, &folding)?;
                        Ok(Done { record, item })
                    })
                    .collect::<Result<_>>()?;
                records.extend(done);
            }
        }
        // A block is safe as a whole: its layers were measured together.
        self.commit(records)
    }

    /// The scales of channels of a block, where they are folded.
    fn folding(&self, items: &[&Item<'_>], seen: &[Observed]) -> Result<Folding> {
        if matches!(self.store, Store::Dense) {
            return Ok(Folding::default());
        }
        let mut planned = Vec::new();
        for item in items {
            if let Action::Quantize { method, scheme, .. } = &item.tensor.action
                && scales_channels(method)
            {
                let layer = LayerId::from_tensor(&item.tensor.name);
                planned.push(Planned { layer, method, scheme: scheme.parse()? });
            }
        }
        Folding::find(self.source, &planned, seen)
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
        folding: &Folding,
    ) -> Result<TensorRecord> {
        let seed = Seed::new(self.plan.recipe.seed);
        let Item { tensor, outputs, factors, .. } = item;
        let (source, sink, store) = (self.source, self.sink, self.store);
        Job { source, sink, store, seed, tensor, outputs, factors, stats, drift, folding }.run()
    }

    fn commit(&self, done: Vec<Done<'_>>) -> Result<()> {
        let records: Vec<TensorRecord> = done.iter().map(|d| d.record.clone()).collect();
        self.sink.commit(done)?;
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

fn hidden_bytes(calibration: &TokenCalibration<'_>, schedule: &Schedule) -> u64 {
    if schedule.spills { 0 } else { calibration.samples() as u64 * calibration.state_bytes() }
}

/// Input channels of a layer that is observed.
fn columns_of(wanted: &[(LayerId, Needs, usize)], layer: &LayerId) -> usize {
    wanted.iter().find(|(id, ..)| id == layer).map_or(0, |(.., columns)| *columns)
}

/// The source, with the tensors that are done as they were written.
struct View<'a> {
    source: &'a dyn ModelSource,
    sink: &'a dyn Sink,
    store: &'a Store,
    written: HashMap<String, Shown<'a>>,
    /// The last tensor that was decoded from codes, and its values.
    last: Mutex<Option<(String, Arc<Vec<u8>>)>>,
}

/// A tensor as later blocks see it.
struct Shown<'a> {
    tensor: &'a PlannedTensor,
    info: TensorInfo,
    /// Whether the stored bytes are the delivered ones.
    plain: bool,
}

impl<'a> View<'a> {
    fn show<'i: 'a>(&mut self, items: impl IntoIterator<Item = &'i Item<'i>>) {
        for item in items {
            let tensor = item.tensor;
            let plain = match (&tensor.action, self.store) {
                (Action::Copy, _) => continue,
                (Action::Prune { .. } | Action::Factorise { .. }, _)
                | (Action::Quantize { .. }, Store::Dense) => true,
                (Action::Fold { .. }, store) => !matches!(store, Store::Gguf),
                (Action::Quantize { .. }, _) => false,
                // Embeddings and norms stay those of the source, whose values they are but for
                // rounding.
                (Action::Encode { .. }, _) if !is_layer(tensor) => continue,
                (Action::Encode { .. }, _) => false,
            };
            let info = match (plain, item.outputs.first()) {
                (true, Some(info)) => info.clone(),
                _ => TensorInfo {
                    name: tensor.name.clone(),
                    dtype: DType::F32,
                    shape: tensor.shape.clone(),
                },
            };
            self.written.insert(tensor.name.clone(), Shown { tensor, info, plain });
        }
    }

    fn decoded(&self, shown: &Shown<'_>, offset: usize, buf: &mut [u8]) -> Result<()> {
        let name = &shown.info.name;
        let held = lock(&self.last).clone();
        let bytes = match held {
            Some((last, bytes)) if last == *name => bytes,
            _ => {
                // Not under the lock: decoding shares its work over threads.
                let read = |info: &TensorInfo, at: usize, buf: &mut [u8]| {
                    self.sink.read_part(info, at, buf)
                };
                let values = self.store.decode(shown.tensor, &read)?;
                let bytes = Arc::new(encode_f32(name, DType::F32, &values)?);
                *lock(&self.last) = Some((name.clone(), Arc::clone(&bytes)));
                bytes
            }
        };
        match bytes.get(offset..offset + buf.len()) {
            Some(part) => {
                buf.copy_from_slice(part);
                Ok(())
            }
            None => {
                let reason = format!("{} bytes at {offset} leave it", buf.len());
                Err(Error::plan(name, reason))
            }
        }
    }
}

/// Whether a tensor is a matrix of a block.
fn is_layer(tensor: &PlannedTensor) -> bool {
    tensor.shape.len() == 2 && block_of(&tensor.name).is_some()
}

impl TensorSource for View<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        self.source.tensors()
    }

    fn info(&self, name: &str) -> prune_core::Result<&TensorInfo> {
        match self.written.get(name) {
            Some(shown) => Ok(&shown.info),
            None => self.source.info(name),
        }
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let Some(shown) = self.written.get(name) else {
            return self.source.read_at(name, offset, buf);
        };
        let read = match shown.plain {
            true => self.sink.read_part(&shown.info, offset, buf),
            false => self.decoded(shown, offset, buf),
        };
        read.map_err(|e| prune_core::Error::external(name, e))
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
    let broken: HashSet<usize> = items
        .iter()
        .filter(|i| !good.contains(i.tensor.name.as_str()))
        .filter_map(|i| i.observed_in())
        .collect();
    let whole: HashSet<&str> = items
        .iter()
        .filter(|i| i.observed_in().is_none_or(|block| !broken.contains(&block)))
        .map(|i| i.tensor.name.as_str())
        .collect();
    let keep = |r: &TensorRecord| good.contains(r.name.as_str()) && whole.contains(r.name.as_str());
    let kept: Vec<TensorRecord> =
        checked.iter().map(|(r, _)| r).filter(|r| keep(r)).cloned().collect();
    Ok(kept.into_iter().map(|r| (r.name.clone(), r)).collect())
}
