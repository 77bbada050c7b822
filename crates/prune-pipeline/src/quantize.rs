use ndarray::{Array2, ArrayView2, CowArray, s};
use prune_checkpoint::{GgufType, Hasher};
use prune_core::{
    ColumnStats, DType, LayerId, Mask, QuantReport, QuantTarget, Quantized, QuantizedMatrix,
    check_finite, decode_f32, encode_f32,
};

use crate::compress::Job;
use crate::fold::{scale, scaled_stats, scales_channels, without_scales};
use crate::manifest::{QuantizedRecord, TensorRecord};
use crate::output_error::output_error;
use crate::plan::Action;
use crate::plan_quantized::{KEEP, quantizer};
use crate::schedule::PIECE;
use crate::store::{Store, gguf_kind_of};
use crate::{Error, Result};

/// Rows of a matrix that are dequantised at a time.
const ROWS: usize = 64;

impl Job<'_> {
    /// Quantises a layer and stores its codes.
    pub(crate) fn quantize(
        &self,
        method: &str,
        scheme: &str,
        keep_zeros: bool,
    ) -> Result<TensorRecord> {
        let name = &self.tensor.name;
        let (dense, source_digest) = self.read()?;
        let [rows, cols] = self.tensor.shape[..] else {
            return Err(Error::plan(name, "is no matrix"));
        };
        let weight =
            Array2::from_shape_vec((rows, cols), dense).map_err(|e| Error::plan(name, e))?;
        let layer = LayerId::from_tensor(name);
        let scheme = scheme.parse()?;
        let columns = self.folding.columns.get(&layer).map(Vec::as_slice);
        let row_scales = self.folding.rows.get(name).map(Vec::as_slice);
        let folds = !matches!(self.store, Store::Dense) && scales_channels(method);
        let mask = keep_zeros.then(|| Mask::of_nonzeros(weight.view()));
        let Quantized { matrix, report } = match method {
            KEEP => match self.source.read_quantized(&layer)? {
                Some(matrix) if matrix.scheme() == scheme => matrix.into(),
                Some(matrix) => {
                    let reason = format!("is {}; planned as {scheme}", matrix.scheme());
                    return Err(Error::plan(name, reason));
                }
                None => return Err(Error::plan(name, "has no codes in the source to keep")),
            },
            _ => {
                let target = QuantTarget { layer: &layer, scheme, keep: mask.as_ref() };
                let quantizer = match folds {
                    true => without_scales(method, &layer),
                    false => quantizer(method)?,
                };
                let scaled = columns.map(|s| scaled_stats(self.stats, s)).transpose()?;
                let stats = scaled.as_ref().unwrap_or(self.stats);
                let mut scaled = CowArray::from(weight.view());
                if columns.is_some() || row_scales.is_some() {
                    let mut own = weight.clone();
                    scale(&mut own, columns, row_scales);
                    scaled = own.into();
                }
                quantizer.quantize(scaled.view(), stats, &target)?
            }
        };
        let relative_error = self.quantization_error(&weight, &matrix, (columns, row_scales))?;
        drop(weight);
        let bytes = matrix.nbytes();
        let bits_per_weight = matrix.bits_per_weight();
        let digest = self.store_matrix(matrix)?;
        let QuantReport { loss, damping, damping_raised, dead_columns, mut notes } = report;
        if let Some(mask) = mask {
            notes.push(format!("{} zeros kept", mask.removed()));
        }
        let record = QuantizedRecord {
            bytes,
            bits_per_weight,
            tokens: self.stats.columns.as_ref().map_or(0, ColumnStats::count),
            relative_error,
            loss,
            damping,
            damping_raised,
            dead_columns,
            notes,
        };
        Ok(TensorRecord::new(name, source_digest, digest).quantized(record))
    }

    /// The error against the weight as it was, what is folded elsewhere taken back.
    fn quantization_error(
        &self,
        weight: &Array2<f32>,
        matrix: &QuantizedMatrix,
        (columns, row_scales): (Option<&[f32]>, Option<&[f32]>),
    ) -> Result<f64> {
        let before =
            |first: usize, count: usize| Ok(weight.slice(s![first..first + count, ..]).to_owned());
        let after = |first: usize, count: usize| {
            let mut rows = rows_of(matrix, first, count);
            for (i, mut row) in rows.outer_iter_mut().enumerate() {
                if let Some(columns) = columns {
                    row.iter_mut().zip(columns).for_each(|(w, s)| *w /= s);
                }
                if let Some(scales) = row_scales {
                    row *= scales[(first + i) % scales.len().max(1)];
                }
            }
            rows
        };
        Ok(output_error(&before, &after, weight.dim(), self.stats)?.written)
    }

    /// Hands a matrix to the sink; returns the digest of its stored bytes.
    fn store_matrix(&self, matrix: QuantizedMatrix) -> Result<String> {
        let mut hash = Hasher::default();
        if !matches!(self.store, Store::Dense) {
            let parts = self.store.encode(self.tensor, &matrix)?;
            drop(matrix);
            for (info, bytes) in parts {
                hash.update(&bytes);
                self.sink.write_part(&info, 0, &bytes)?;
            }
            return Ok(hash.finish());
        }
        let info = self.output()?;
        let mut offset = 0;
        for first in (0..matrix.rows()).step_by(ROWS) {
            let mut part = rows_of(&matrix, first, ROWS.min(matrix.rows() - first));
            // A checkpoint of ours has no negative zeros.
            part.mapv_inplace(|w| if w == 0.0 { 0.0 } else { w });
            let values = part.as_slice().unwrap_or_default();
            let bytes = encode_f32(&info.name, info.dtype, values)?;
            hash.update(&bytes);
            self.sink.write_part(info, offset, &bytes)?;
            offset += bytes.len();
        }
        Ok(hash.finish())
    }

    /// Divides a norm by the scales of the layers after it.
    pub(crate) fn fold(&self) -> Result<TensorRecord> {
        let name = &self.tensor.name;
        let (mut values, source_digest) = self.read()?;
        if let Some(scales) = self.folding.rows.get(name) {
            if scales.len() != values.len() {
                let reason = format!("has {} elements for {} scales", values.len(), scales.len());
                return Err(Error::plan(name, reason));
            }
            values.iter_mut().zip(scales).for_each(|(v, s)| *v /= s);
        }
        let digest = match self.store {
            Store::Gguf => {
                let bytes = encode_f32(name, DType::F32, &values)?;
                self.sink.write_part(self.output()?, 0, &bytes)?;
                prune_checkpoint::digest(&bytes)
            }
            _ => self.write(&values)?,
        };
        Ok(TensorRecord::new(name, source_digest, digest))
    }

    /// Stores a tensor in a GGUF file, piece by piece.
    pub(crate) fn encode(&self) -> Result<TensorRecord> {
        let name = &self.tensor.name;
        let kind = gguf_kind_of(&self.tensor.action)?
            .ok_or_else(|| Error::plan(name, "has no type in the GGUF file"))?;
        let info = self.output()?;
        let source = self.source.info(name)?.clone();
        let row = source.shape.last().copied().unwrap_or(1).max(1);
        let step = (PIECE / (4 * row)).max(1) * row;
        let in_block = self.in_block();
        let mut before = Hasher::default();
        let mut after = Hasher::default();
        let (mut error, mut energy) = (0.0, 0.0);
        let mut offset = 0;
        let mut bytes = Vec::new();
        for first in (0..source.numel()).step_by(step) {
            let count = step.min(source.numel() - first);
            bytes.resize(count * source.dtype.size(), 0);
            self.source.read_at(name, first * source.dtype.size(), &mut bytes)?;
            before.update(&bytes);
            let values = decode_f32(name, source.dtype, &bytes)?;
            check_finite(name, &values)?;
            let stored = match kind {
                GgufType::Plain(dtype) => encode_f32(name, dtype, &values)?,
                GgufType::Blocks(block) => {
                    let stored = block.encode(name, &values)?;
                    let (e, all) = squares(&values, &block.decode(name, &stored)?);
                    error += e;
                    energy += all;
                    stored
                }
            };
            after.update(&stored);
            match in_block {
                true => self.sink.write_part(info, offset, &stored)?,
                // Nothing that is run later reads it.
                false => self.sink.copy_part(info, offset, &stored)?,
            }
            offset += stored.len();
        }
        let record = TensorRecord::new(name, before.finish(), after.finish());
        Ok(match kind {
            GgufType::Plain(_) => record,
            GgufType::Blocks(_) => record.quantized(QuantizedRecord {
                bytes: info.nbytes(),
                bits_per_weight: 8.0 * info.nbytes() as f64 / source.numel().max(1) as f64,
                relative_error: if energy > 0.0 { error / energy } else { 0.0 },
                ..QuantizedRecord::default()
            }),
        })
    }

    fn in_block(&self) -> bool {
        prune_core::block_of(&self.tensor.name).is_some()
            && matches!(self.tensor.action, Action::Encode { .. })
    }
}

/// Squared errors and squares, in the order of the elements.
fn squares(before: &[f32], after: &[f32]) -> (f64, f64) {
    let mut sums = [[0f64; 8]; 2];
    for (i, (a, b)) in before.iter().zip(after).enumerate() {
        let (a, b) = (f64::from(*a), f64::from(*b));
        sums[0][i % 8] += (a - b) * (a - b);
        sums[1][i % 8] += a * a;
    }
    (sums[0].iter().sum(), sums[1].iter().sum())
}

/// Rows of a matrix as they are dequantised.
pub(crate) fn rows_of(matrix: &QuantizedMatrix, first: usize, count: usize) -> Array2<f32> {
    let mut part = Array2::zeros((count, matrix.cols()));
    for (i, mut row) in part.outer_iter_mut().enumerate() {
        if let Some(row) = row.as_slice_mut() {
            matrix.dequantize_row(first + i, row);
        }
    }
    part
}

/// Rows of a matrix in memory, as [`output_error`] asks for them.
pub(crate) fn rows_in<'a>(
    weight: ArrayView2<'a, f32>,
) -> impl Fn(usize, usize) -> Array2<f32> + Sync + 'a {
    move |first, count| weight.slice(s![first..first + count, ..]).to_owned()
}
