use ndarray::Array2;
use prune_checkpoint::{Hasher, ModelSource};
use prune_core::{
    ColumnStats, DType, LayerId, LayerStats, Seed, Target, TensorInfo, decode_f32, encode_f32,
};

use crate::fold::Folding;
use crate::manifest::{PrunedRecord, TensorRecord};
use crate::output_error::output_error;
use crate::plan::{Action, PlannedTensor, pruner};
use crate::quantize::rows_in;
use crate::schedule::PIECE;
use crate::sink::Sink;
use crate::store::Store;
use crate::{Error, Result};

/// What is needed to do one tensor of a plan.
pub(crate) struct Job<'a> {
    pub(crate) source: &'a dyn ModelSource,
    pub(crate) sink: &'a dyn Sink,
    pub(crate) store: &'a Store,
    pub(crate) seed: Seed,
    pub(crate) tensor: &'a PlannedTensor,
    /// What is written.
    pub(crate) outputs: &'a [TensorInfo],
    pub(crate) stats: &'a LayerStats,
    /// Scales of channels that are folded into the layer before.
    pub(crate) folding: &'a Folding,
}

impl Job<'_> {
    /// Does what is planned for the tensor, piece by piece, and hands it to the sink.
    pub(crate) fn run(&self) -> Result<TensorRecord> {
        match &self.tensor.action {
            Action::Copy => self.copy(),
            Action::Prune { .. } => self.prune(),
            Action::Quantize { method, scheme } => self.quantize(method, scheme),
            Action::Fold { .. } => self.fold(),
            Action::Encode { .. } => self.encode(),
        }
    }

    pub(crate) fn output(&self) -> Result<&TensorInfo> {
        self.outputs.first().ok_or_else(|| Error::plan(&self.tensor.name, "is not stored"))
    }

    fn copy(&self) -> Result<TensorRecord> {
        let info = self.output()?;
        let mut hash = Hasher::default();
        let mut piece = vec![0; PIECE.min(info.nbytes())];
        let mut offset = 0;
        while offset < info.nbytes() {
            let part = PIECE.min(info.nbytes() - offset);
            let part = &mut piece[..part];
            self.source.read_at(&info.name, offset, part)?;
            hash.update(part);
            self.sink.copy_part(info, offset, part)?;
            offset += part.len();
        }
        let digest = hash.finish();
        Ok(TensorRecord::new(&info.name, digest.clone(), digest))
    }

    fn prune(&self) -> Result<TensorRecord> {
        let name = &self.tensor.name;
        let Action::Prune { method, pattern, scope, remove } = &self.tensor.action else {
            return Err(Error::plan(name, "is planned as a copy"));
        };
        let (dense, source_digest) = self.read()?;
        let shape = self.output()?.matrix_shape()?;
        let mut weight = Array2::from_shape_vec(shape, dense).map_err(|e| Error::plan(name, e))?;
        let layer = LayerId::from_tensor(name);
        let target = Target {
            layer: &layer,
            pattern: pattern.parse()?,
            scope: scope.parse()?,
            remove: *remove,
            stream: self.seed.stream(layer.as_str()),
        };
        let pruned = pruner(method)?.prune(weight.view_mut(), self.stats, &target)?;
        // Kept zeros of the source may be negative; a checkpoint of ours has none.
        let mut zeros = 0;
        weight.map_inplace(|w| {
            let zero = *w == 0.0;
            *w = if zero { 0.0 } else { *w };
            zeros += usize::from(zero);
        });
        if zeros < *remove {
            let reason = format!("{zeros} zeros after pruning; {remove} are planned");
            return Err(Error::plan(name, reason));
        }
        let dense = |first: usize, count: usize| self.rows(first, count, shape.1);
        let error = output_error(&dense, &rows_in(weight.view()), weight.dim(), self.stats)?;
        let size = weight.len().max(1) as f64;
        let record = PrunedRecord {
            target_sparsity: *remove as f64 / size,
            sparsity: zeros as f64 / size,
            zeros,
            tokens: self.stats.columns.as_ref().map_or(0, ColumnStats::count),
            mask_error: error.masked,
            relative_error: error.written,
            damping: pruned.report.damping,
            damping_raised: pruned.report.damping_raised,
            dead_columns: pruned.report.dead_columns,
            iterations: pruned.report.iterations,
            notes: pruned.report.notes,
        };
        let digest = self.write(weight.as_slice().unwrap_or_default())?;
        Ok(TensorRecord::new(name, source_digest, digest).pruned(record))
    }

    fn stored_dtype(&self) -> Result<DType> {
        Ok(self.source.info(&self.tensor.name)?.dtype)
    }

    /// The tensor as f32, and the digest of its stored bytes.
    pub(crate) fn read(&self) -> Result<(Vec<f32>, String)> {
        let name = &self.tensor.name;
        let dtype = self.stored_dtype()?;
        let elements = self.tensor.shape.iter().product::<usize>();
        let bytes = elements * dtype.size();
        let mut values = Vec::with_capacity(elements);
        let mut hash = Hasher::default();
        let mut piece = vec![0; PIECE.min(bytes)];
        let mut offset = 0;
        while offset < bytes {
            let part = PIECE.min(bytes - offset);
            let part = &mut piece[..part];
            self.source.read_at(name, offset, part)?;
            hash.update(part);
            values.extend(decode_f32(name, dtype, part)?);
            offset += part.len();
        }
        Ok((values, hash.finish()))
    }

    /// Rows of the tensor as they were before.
    fn rows(&self, first: usize, count: usize, cols: usize) -> Result<Array2<f32>> {
        let name = &self.tensor.name;
        let dtype = self.stored_dtype()?;
        let mut bytes = vec![0; count * cols * dtype.size()];
        self.source.read_at(name, first * cols * dtype.size(), &mut bytes)?;
        let values = decode_f32(name, dtype, &bytes)?;
        Array2::from_shape_vec((count, cols), values).map_err(|e| Error::plan(name, e))
    }

    /// Hands the values to the sink; returns the digest of the bytes.
    pub(crate) fn write(&self, values: &[f32]) -> Result<String> {
        let info = self.output()?;
        let dtype = info.dtype;
        let mut hash = Hasher::default();
        let mut offset = 0;
        for part in values.chunks(PIECE / dtype.size()) {
            let bytes = encode_f32(&self.tensor.name, dtype, part)?;
            hash.update(&bytes);
            self.sink.write_part(info, offset, &bytes)?;
            offset += bytes.len();
        }
        Ok(hash.finish())
    }
}
