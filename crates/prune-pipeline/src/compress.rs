use ndarray::{Array2, ArrayD};
use prune_checkpoint::{Hasher, ModelSource};
use prune_core::{
    ColumnStats, DType, Factor, FactorKind, LayerId, LayerStats, Seed, Target, TensorInfo,
    decode_f32, encode_f32,
};

use crate::fold::Folding;
use crate::manifest::{FactorRecord, FactoredRecord, PrunedRecord, TensorRecord};
use crate::method::Method;
use crate::output_error::output_error;
use crate::plan::{Action, PlannedTensor};
use crate::quantize::rows_in;
use crate::schedule::PIECE;
use crate::sink::Sink;
use crate::store::Store;
use crate::targets::Drift;
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
    /// The factors that are written for it.
    pub(crate) factors: &'a [TensorInfo],
    pub(crate) stats: &'a LayerStats,
    /// Where the layer is fitted to the outputs of the dense model.
    pub(crate) drift: Option<&'a Drift>,
    /// Scales of channels that are folded into the layer before.
    pub(crate) folding: &'a Folding,
}

impl Job<'_> {
    /// Does what is planned for the tensor, piece by piece, and hands it to the sink.
    pub(crate) fn run(&self) -> Result<TensorRecord> {
        match &self.tensor.action {
            Action::Copy => self.copy(),
            Action::Prune { .. } => self.prune(),
            Action::Factorise { .. } => self.factorise(),
            Action::Quantize { method, scheme, keep_zeros } => {
                self.quantize(method, scheme, *keep_zeros)
            }
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
        let (Action::Prune { pattern, scope, remove, .. }, Some(Method::Pruner(pruner))) =
            (&self.tensor.action, Method::of(&self.tensor.action)?)
        else {
            return Err(Error::plan(name, "is not planned to be pruned"));
        };
        let (dense, source_digest) = self.read()?;
        let shape = self.output()?.matrix_shape()?;
        let mut weight = Array2::from_shape_vec(shape, dense).map_err(|e| Error::plan(name, e))?;
        let layer = LayerId::from_tensor(name);
        self.retarget(&layer, &mut weight)?;
        let target = Target {
            layer: &layer,
            pattern: pattern.parse()?,
            scope: scope.parse()?,
            remove: *remove,
            stream: self.seed.stream(layer.as_str()),
        };
        let pruned = pruner.prune(weight.view_mut(), self.stats, &target)?;
        // Kept zeros of the source may be negative; a checkpoint of ours has none.
        let (mut zeros, nothing) = (0, rounds_to_zero(self.output()?.dtype));
        weight.map_inplace(|w| {
            let zero = w.abs() <= nothing;
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

    /// Factors first, rounded as they are stored; then the product of what was stored.
    fn factorise(&self) -> Result<TensorRecord> {
        let name = &self.tensor.name;
        let (
            Action::Factorise { pattern, scope, remove, .. },
            Some(Method::Factoriser(factoriser)),
        ) = (&self.tensor.action, Method::of(&self.tensor.action)?)
        else {
            return Err(Error::plan(name, "is not planned to be factorised"));
        };
        let (dense, source_digest) = self.read()?;
        let shape = self.output()?.matrix_shape()?;
        let mut weight = Array2::from_shape_vec(shape, dense).map_err(|e| Error::plan(name, e))?;
        let layer = LayerId::from_tensor(name);
        self.retarget(&layer, &mut weight)?;
        let target = Target {
            layer: &layer,
            pattern: pattern.parse()?,
            scope: scope.parse()?,
            remove: *remove,
            stream: self.seed.stream(layer.as_str()),
        };
        let found = factoriser.factorise(weight.view(), self.stats, &target)?;
        drop((weight, found.weight));
        let (mut records, mut stored, mut zeros) = (Vec::new(), Vec::new(), 0);
        for (info, factor) in self.factors.iter().zip(found.factors) {
            let bytes = encode_factor(info, &factor)?;
            self.sink.write_factor(info, &bytes)?;
            records.push(FactorRecord {
                name: info.name.clone(),
                digest: prune_checkpoint::digest(&bytes),
            });
            let factor = decode_factor(info, factor.role, factor.kind, &bytes)?;
            if factor.kind == FactorKind::Sparse {
                zeros = factor.values.iter().filter(|v| **v == 0.0).count();
            }
            stored.push(factor);
        }
        let mut product = factoriser.product(&stored, target.pattern)?;
        drop(stored);
        let nothing = rounds_to_zero(self.output()?.dtype);
        product.map_inplace(|w| *w = if w.abs() <= nothing { 0.0 } else { *w });
        let dense = |first: usize, count: usize| self.rows(first, count, shape.1);
        let error = output_error(&dense, &rows_in(product.view()), product.dim(), self.stats)?;
        let size = product.len().max(1) as f64;
        let kept = product.len() - *remove;
        let record = FactoredRecord {
            core_sparsity: *remove as f64 / size,
            zeros,
            parameters: found.parameters,
            overhead: found.parameters.saturating_sub(kept) as f64 / size,
            tokens: self.stats.columns.as_ref().map_or(0, ColumnStats::count),
            loss: found.loss,
            relative_error: error.written,
            dead_columns: found.report.dead_columns,
            iterations: found.report.iterations,
            notes: found.report.notes,
            factors: records,
        };
        let digest = self.write(product.as_slice().unwrap_or_default())?;
        Ok(TensorRecord::new(name, source_digest, digest).factored(record))
    }

    /// Moves the weight to the one that gives the outputs of the dense model, where that is wanted.
    fn retarget(&self, layer: &LayerId, weight: &mut Array2<f32>) -> Result<()> {
        match (self.drift, &self.stats.gram) {
            (Some(drift), Some(gram)) => drift.retarget(layer, weight, gram),
            _ => Ok(()),
        }
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

/// The bytes of a factor as its tensor stores it. Zeros have no sign.
fn encode_factor(info: &TensorInfo, factor: &Factor) -> Result<Vec<u8>> {
    if factor.values.shape() != info.shape {
        let found = factor.values.shape();
        return Err(Error::plan(&info.name, format!("is {found:?}; planned as {:?}", info.shape)));
    }
    if factor.kind == FactorKind::Indices {
        return Ok(factor.values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect());
    }
    let nothing = rounds_to_zero(info.dtype);
    let values: Vec<f32> =
        factor.values.iter().map(|v| if v.abs() <= nothing { 0.0 } else { *v }).collect();
    Ok(encode_f32(&info.name, info.dtype, &values)?)
}

/// The largest number that a dtype rounds to zero, of which it would keep the sign.
fn rounds_to_zero(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 2f32.powi(-25),
        DType::BF16 => 2f32.powi(-134),
        _ => 0.0,
    }
}

/// The factor that a tensor stores.
pub(crate) fn decode_factor(
    info: &TensorInfo,
    role: &'static str,
    kind: FactorKind,
    bytes: &[u8],
) -> Result<Factor> {
    let values = match kind {
        FactorKind::Indices => {
            let (numbers, _) = bytes.as_chunks::<4>();
            numbers.iter().map(|b| i32::from_le_bytes(*b) as f32).collect()
        }
        FactorKind::Dense | FactorKind::Sparse => decode_f32(&info.name, info.dtype, bytes)?,
    };
    let values = ArrayD::from_shape_vec(info.shape.clone(), values)
        .map_err(|e| Error::plan(&info.name, e))?;
    Ok(Factor { role, kind, values })
}
