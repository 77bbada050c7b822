use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use ndarray::Array2;
use prune_checkpoint::{AuxiliaryFile, Checkpoint, Contents, HfWriter, WriterOptions, digest};
use prune_core::{
    ColumnStats, DType, LayerId, LayerStats, Needs, Seed, Target, TensorInfo, TensorSource,
    decode_f32, encode_f32,
};

use crate::calibrate::{Calibration, embed, forward, observe};
use crate::manifest::{FileRecord, MANIFEST, Manifest, PrunedRecord, TensorRecord};
use crate::plan::{Action, Plan, PlannedTensor, pruner};
use crate::{Error, Result};

/// How [`apply`] writes.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Bytes of a shard.
    pub shard_size: u64,
    /// Whether an existing output is replaced.
    pub overwrite: bool,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self { shard_size: WriterOptions::default().shard_size, overwrite: false }
    }
}

/// Is told what a run is doing: `(done, all, name)` after each tensor.
pub type Progress<'a> = dyn FnMut(usize, usize, &str) + 'a;

/// Executes a plan: reads `source` a tensor at a time (a block at a time where calibration is
/// needed) and writes a Hugging Face directory with a [`Manifest`] at `out`.
///
/// Nothing stands at `out` before everything is written.
///
/// # Errors
/// [`Error::Plan`] when the plan is of another checkpoint, [`Error::NeedsCalibration`],
/// [`Error::Checkpoint`], [`Error::Core`].
pub fn apply(
    source: &Checkpoint,
    plan: &Plan,
    calibration: Option<&Calibration<'_>>,
    out: &Path,
    options: &ApplyOptions,
    progress: &mut Progress<'_>,
) -> Result<Manifest> {
    let planned = plan.tensors.iter().map(|t| Ok((t, check_tensor(source, t)?)));
    let planned: Vec<(&PlannedTensor, TensorInfo)> = planned.collect::<Result<_>>()?;
    if planned.len() != source.tensors().len() {
        let reason =
            format!("plans {} tensors; the source has {}", planned.len(), source.tensors().len());
        return Err(Error::plan("plan", reason));
    }
    let writer = HfWriter::create(
        out,
        WriterOptions {
            plan: planned.iter().map(|(_, info)| info.clone()).collect(),
            shard_size: options.shard_size,
            overwrite: options.overwrite,
            source: Some(source.path().to_path_buf()),
            ..WriterOptions::default()
        },
    )?;
    let mut run = Run {
        source,
        plan,
        writer,
        records: BTreeMap::new(),
        replaced: Overlay { base: source, tensors: HashMap::new() },
        progress,
    };
    let mut blocks: BTreeMap<usize, Vec<&(&PlannedTensor, TensorInfo)>> = BTreeMap::new();
    let mut rest = Vec::new();
    for entry in &planned {
        match (needs(entry.0)?, prune_core::block_of(&entry.0.name)) {
            (Needs::Nothing, _) | (_, None) => rest.push(entry),
            (_, Some((block, _))) => blocks.entry(block).or_default().push(entry),
        }
    }
    // Data-free tensors of a block that is run must be replaced before it is run; they come first.
    let calibrated = !blocks.is_empty();
    for (tensor, info) in rest {
        run.tensor(tensor, info, &LayerStats::default(), calibrated)?;
    }
    if calibrated {
        let calibration =
            calibration.ok_or_else(|| Error::NeedsCalibration { what: "this plan".into() })?;
        run.blocks(calibration, &blocks)?;
    }
    run.finish(calibration.filter(|_| calibrated))
}

fn needs(tensor: &PlannedTensor) -> Result<Needs> {
    match &tensor.action {
        Action::Copy => Ok(Needs::Nothing),
        Action::Prune { method, .. } => Ok(pruner(method)?.needs()),
    }
}

/// What will be written for a planned tensor, once it is clear that the source holds it.
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

struct Run<'a, 'p> {
    source: &'a Checkpoint,
    plan: &'a Plan,
    writer: HfWriter,
    records: BTreeMap<String, TensorRecord>,
    /// What later passes of the model see instead of the source.
    replaced: Overlay<'a>,
    progress: &'a mut Progress<'p>,
}

impl Run<'_, '_> {
    fn blocks(
        &mut self,
        calibration: &Calibration<'_>,
        blocks: &BTreeMap<usize, Vec<&(&PlannedTensor, TensorInfo)>>,
    ) -> Result<()> {
        let model = calibration.model;
        let last = blocks.keys().copied().max().unwrap_or(0);
        if last >= model.blocks() {
            let reason = format!("plans block {last}; the model has {}", model.blocks());
            return Err(Error::plan("plan", reason));
        }
        let mut hidden = embed(calibration, self.source)?;
        for index in 0..=last {
            let planned = blocks.get(&index).map(Vec::as_slice).unwrap_or_default();
            if !planned.is_empty() {
                let wanted: BTreeSet<LayerId> =
                    planned.iter().map(|(t, _)| LayerId::from_tensor(&t.name)).collect();
                let block = model.load_block(&self.replaced, index)?;
                let mut seen = observe(&*block, &hidden, &wanted)?;
                drop(block);
                for (tensor, info) in planned {
                    let columns = seen.remove(&LayerId::from_tensor(&tensor.name));
                    self.tensor(tensor, info, &LayerStats { columns, gram: None }, true)?;
                }
            }
            if index < last {
                let block = model.load_block(&self.replaced, index)?;
                forward(&*block, &mut hidden)?;
            }
            let prefix = format!(".{index}.");
            self.replaced.tensors.retain(|name, _| !name.contains(&prefix));
        }
        Ok(())
    }

    /// Does what is planned for one tensor and writes it.
    fn tensor(
        &mut self,
        tensor: &PlannedTensor,
        info: &TensorInfo,
        stats: &LayerStats,
        keep: bool,
    ) -> Result<()> {
        let stored = self.source.read(&tensor.name)?;
        let source_digest = digest(&stored);
        let (bytes, pruned) = match &tensor.action {
            Action::Copy => (stored, None),
            Action::Prune { .. } => {
                let (bytes, record) = self.prune(tensor, info, &stored, stats)?;
                (bytes, Some(record))
            }
        };
        let written = if pruned.is_some() { digest(&bytes) } else { source_digest.clone() };
        self.writer.write_tensor(info, &bytes)?;
        if keep && pruned.is_some() {
            self.replaced.tensors.insert(tensor.name.clone(), (info.clone(), bytes));
        }
        self.records.insert(
            tensor.name.clone(),
            TensorRecord { name: tensor.name.clone(), source_digest, digest: written, pruned },
        );
        (self.progress)(self.records.len(), self.plan.tensors.len(), &tensor.name);
        Ok(())
    }

    fn prune(
        &self,
        tensor: &PlannedTensor,
        info: &TensorInfo,
        stored: &[u8],
        stats: &LayerStats,
    ) -> Result<(Vec<u8>, PrunedRecord)> {
        let Action::Prune { method, pattern, scope, remove } = &tensor.action else {
            return Err(Error::plan(&tensor.name, "is planned as a copy"));
        };
        let shape = info.matrix_shape()?;
        let from = self.source.info(&tensor.name)?.dtype;
        let dense = decode_f32(&tensor.name, from, stored)?;
        let mut weight =
            Array2::from_shape_vec(shape, dense).map_err(|e| Error::plan(&tensor.name, e))?;
        let layer = LayerId::from_tensor(&tensor.name);
        let target = Target {
            layer: &layer,
            pattern: pattern.parse()?,
            scope: scope.parse()?,
            remove: *remove,
            stream: Seed::new(self.plan.recipe.seed).stream(layer.as_str()),
        };
        pruner(method)?.prune(weight.view_mut(), stats, &target)?;
        // Kept zeros of the source may be negative; a checkpoint of ours has none.
        weight.mapv_inplace(|w| if w == 0.0 { 0.0 } else { w });
        let zeros = weight.iter().filter(|w| **w == 0.0).count();
        if zeros < *remove {
            let reason = format!("{zeros} zeros after pruning; {remove} are planned");
            return Err(Error::plan(&tensor.name, reason));
        }
        let bytes = encode_f32(&tensor.name, info.dtype, weight.as_slice().unwrap_or_default())?;
        let dense = decode_f32(&tensor.name, from, stored)?;
        let record = PrunedRecord {
            zeros,
            sparsity: zeros as f64 / weight.len().max(1) as f64,
            tokens: stats.columns.as_ref().map_or(0, ColumnStats::count),
            relative_error: relative_error(&dense, &weight, stats.columns.as_ref()),
        };
        Ok((bytes, record))
    }

    fn finish(mut self, calibration: Option<&Calibration<'_>>) -> Result<Manifest> {
        let mut files = Vec::new();
        for file in self.source.auxiliary_files()? {
            if file.name == MANIFEST {
                continue;
            }
            files.push(FileRecord { name: file.name.clone(), digest: file_digest(&file)? });
            self.writer.copy_file(&file)?;
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            format: "prune-manifest/1".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            plan: self.plan.clone(),
            calibration_digest: calibration.map(|c| digest(&c.windows.bytes())),
            tensors: self.records.into_values().collect(),
            files,
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::plan(MANIFEST, e))?;
        self.writer.add_file(MANIFEST, &json)?;
        self.writer.finish()?;
        Ok(manifest)
    }
}

pub(crate) fn file_digest(file: &AuxiliaryFile) -> Result<String> {
    match &file.contents {
        Contents::Bytes(bytes) => Ok(digest(bytes)),
        Contents::Path(path) => {
            let read = std::fs::read(path);
            Ok(digest(&read.map_err(|source| Error::Io { path: path.clone(), source })?))
        }
    }
}

/// `Σ (W − W')² a / Σ W² a` in f64; 0 for a layer of zeros.
fn relative_error(dense: &[f32], weight: &Array2<f32>, columns: Option<&ColumnStats>) -> f64 {
    let cols = weight.ncols().max(1);
    let ones = vec![1.0; cols];
    let norms = columns.map_or(ones.as_slice(), ColumnStats::squared_norm);
    let (mut lost, mut all) = (0.0, 0.0);
    for (before, after) in dense.chunks(cols).zip(weight.outer_iter()) {
        for ((b, a), norm) in before.iter().zip(after).zip(norms) {
            let (b, d) = (f64::from(*b), f64::from(b - a));
            lost += d * d * norm;
            all += b * b * norm;
        }
    }
    if all == 0.0 { 0.0 } else { lost / all }
}

/// A checkpoint some of whose tensors are replaced by what was written for them.
struct Overlay<'a> {
    base: &'a Checkpoint,
    tensors: HashMap<String, (TensorInfo, Vec<u8>)>,
}

impl TensorSource for Overlay<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        self.base.tensors()
    }

    fn info(&self, name: &str) -> prune_core::Result<&TensorInfo> {
        match self.tensors.get(name) {
            Some((info, _)) => Ok(info),
            None => self.base.info(name),
        }
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let Some((_, bytes)) = self.tensors.get(name) else {
            return self.base.read_at(name, offset, buf);
        };
        let end = offset.checked_add(buf.len());
        let part = end.and_then(|end| bytes.get(offset..end)).ok_or_else(|| {
            prune_core::Error::OutOfRange {
                what: format!("{name}: byte range"),
                found: format!("{offset} + {}", buf.len()),
                expected: format!("within {} bytes", bytes.len()),
            }
        })?;
        buf.copy_from_slice(part);
        Ok(())
    }
}
