use std::path::Path;

use ndarray::Array2;
use prune_core::{
    DType, Granularity, QuantizedMatrix, QuantizedParts, TensorInfo, dense_words, unpack_dense,
    unpack_lanes,
};
use serde_json::Value;

use super::config::{Config, Weights};
use crate::Result;
use crate::quantized::{
    LayerReader, LayerTensors, QuantizedLayer, Reader, i32s, scale_format, u32s,
};

/// Reads checkpoints of compressed-tensors: integers here, FP4 by [`Fp4`](super::fp4::Fp4).
#[derive(Debug)]
pub(crate) struct PackedReader {
    config: Config,
}

impl PackedReader {
    pub(crate) fn new(path: &Path, config: &Value) -> Result<Self> {
        Ok(Self { config: Config::parse(path, config)? })
    }
}

/// How codes lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// Without gaps, since 0.18.
    Dense,
    /// Whole codes in each word, before.
    Lanes,
}

impl Packing {
    fn words(self, count: usize, bits: u32) -> Option<usize> {
        match self {
            Packing::Dense => dense_words(count, bits),
            Packing::Lanes => Some(count.div_ceil((32 / bits) as usize)),
        }
    }

    fn unpack(self, words: &[u32], bits: u32, count: usize) -> prune_core::Result<Vec<u8>> {
        match self {
            Packing::Dense => unpack_dense(words, bits, count),
            Packing::Lanes => unpack_lanes(words, bits, count),
        }
    }
}

#[derive(Debug)]
struct PackedLayer {
    info: QuantizedLayer,
    packing: Packing,
    ordered: bool,
}

pub(super) const PACKED: &str = "weight_packed";
pub(super) const SCALE: &str = "weight_scale";
/// The divisor of all scales of NVFP4.
pub(super) const GLOBAL_SCALE: &str = "weight_global_scale";
/// The same of activations, which are delivered as they are.
const INPUT_GLOBAL_SCALE: &str = "input_global_scale";
const ZERO: &str = "weight_zero_point";
const SHAPE: &str = "weight_shape";
const ORDER: &str = "weight_g_idx";

impl Reader for PackedReader {
    fn format(&self) -> &'static str {
        "compressed-tensors"
    }

    fn marker(&self) -> &'static str {
        PACKED
    }

    fn endings(&self) -> &'static [&'static str] {
        &[PACKED, SCALE, ZERO, SHAPE, ORDER, GLOBAL_SCALE, INPUT_GLOBAL_SCALE]
    }

    fn layer(&self, tensors: &LayerTensors<'_>) -> Result<Box<dyn LayerReader>> {
        let weights = match self.config.of(tensors.layer)? {
            Weights::Fp4(kind) => return Ok(Box::new(kind.layer(tensors)?)),
            Weights::Integers(weights) => weights,
        };
        let bits = u32::from(weights.bits);
        let packed = tensors.require(PACKED)?;
        tensors.check_dtype(packed, PACKED, DType::I32)?;
        let (packed_rows, width) = tensors.matrix(packed, PACKED)?;
        let (rows, cols) = original_shape(tensors)?;
        if packed_rows != rows {
            let expected = format!("{rows} rows, as {SHAPE} says");
            return Err(tensors.wrong(PACKED, "shape", format!("{:?}", packed.shape), expected));
        }
        let scale = tensors.require(SCALE)?;
        let format = scale_format(scale.dtype).ok_or_else(|| {
            let expected = "F32, F16 or BF16".to_string();
            tensors.wrong(SCALE, "dtype", scale.dtype.to_string(), expected)
        })?;
        let groups = match weights.granularity {
            Granularity::Group(n) => {
                if !cols.is_multiple_of(n) {
                    let found = format!("{cols} input channels");
                    let expected = format!("a multiple of the group size {n}");
                    return Err(tensors.wrong(SHAPE, "contents", found, expected));
                }
                Some(cols / n)
            }
            Granularity::PerChannel => Some(1),
            _ => None,
        };
        match groups {
            Some(groups) => tensors.check_shape(scale, SCALE, &[rows, groups])?,
            None if scale.numel() == 1 => {}
            None => tensors.check_shape(scale, SCALE, &[1])?,
        }
        let zero = match weights.symmetric {
            true => None,
            false => Some(tensors.require(ZERO)?),
        };
        let zero_words = match (zero, groups) {
            (Some(zero), Some(groups)) => {
                tensors.check_dtype(zero, ZERO, DType::I32)?;
                let (words, found) = tensors.matrix(zero, ZERO)?;
                if found != groups {
                    let expected = format!("{groups} columns");
                    let found = format!("{:?}", zero.shape);
                    return Err(tensors.wrong(ZERO, "shape", found, expected));
                }
                Some(words)
            }
            (Some(zero), None) => {
                tensors.check_dtype(zero, ZERO, DType::I8)?;
                tensors.check_shape(zero, ZERO, &[1])?;
                None
            }
            (None, _) => None,
        };
        // Nothing in the configuration names the variant: the widths do, and where they agree the
        // version of the writer.
        let fits = |p: Packing| {
            p.words(cols, bits) == Some(width)
                && zero_words.is_none_or(|w| p.words(rows, bits) == Some(w))
        };
        let packing = match (fits(Packing::Dense), fits(Packing::Lanes)) {
            (true, true) if self.config.dense == Some(false) => Packing::Lanes,
            (true, _) => Packing::Dense,
            (false, true) => Packing::Lanes,
            (false, false) => {
                let expected = format!(
                    "{} words a row for {cols} codes of {bits} bits, or {} in the packing before \
                     0.18 (and zero points packed likewise)",
                    dense_words(cols, bits).unwrap_or_default(),
                    Packing::Lanes.words(cols, bits).unwrap_or_default(),
                );
                return Err(tensors.wrong(PACKED, "width", width.to_string(), expected));
            }
        };
        let ordered = match tensors.optional(ORDER) {
            None => false,
            Some(index) => {
                tensors.check_dtype(index, ORDER, DType::I32)?;
                tensors.check_shape(index, ORDER, &[cols])?;
                true
            }
        };
        let scheme = weights.scheme(format);
        let info = QuantizedLayer { id: tensors.layer.clone(), rows, cols, scheme };
        Ok(Box::new(PackedLayer { info, packing, ordered }))
    }
}

/// What `weight_shape` says: I64, or I32 as the documentation has it.
fn original_shape(tensors: &LayerTensors<'_>) -> Result<(usize, usize)> {
    let info: &TensorInfo = tensors.require(SHAPE)?;
    tensors.check_shape(info, SHAPE, &[2])?;
    let bytes = tensors.read(SHAPE)?;
    let numbers: Vec<i64> = match info.dtype {
        DType::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        DType::I32 => i32s(&bytes).into_iter().map(i64::from).collect(),
        other => {
            return Err(tensors.wrong(SHAPE, "dtype", other.to_string(), "I64 or I32".into()));
        }
    };
    let found = || format!("{numbers:?}");
    match numbers[..] {
        [rows, cols] if rows > 0 && cols > 0 && rows.checked_mul(cols).is_some() => {
            match (usize::try_from(rows), usize::try_from(cols)) {
                (Ok(rows), Ok(cols)) => Ok((rows, cols)),
                _ => Err(tensors.wrong(SHAPE, "contents", found(), "a shape".to_string())),
            }
        }
        _ => Err(tensors.wrong(SHAPE, "contents", found(), "two positive numbers".to_string())),
    }
}

impl LayerReader for PackedLayer {
    fn info(&self) -> &QuantizedLayer {
        &self.info
    }

    fn read(&self, tensors: &LayerTensors<'_>) -> Result<QuantizedMatrix> {
        let QuantizedLayer { rows, cols, scheme, .. } = self.info;
        let bits = scheme.number.bits();
        let packed = u32s(&tensors.read(PACKED)?);
        let mut codes = Vec::with_capacity(rows * cols);
        for row in packed.chunks_exact((packed.len() / rows.max(1)).max(1)) {
            let unpacked = self.packing.unpack(row, bits, cols);
            codes.extend(unpacked.map_err(|e| tensors.invalid(PACKED, e))?);
        }
        let shape = scheme.granularity.scales_shape(rows, cols);
        let array = |ending: &str, values: Vec<f32>| {
            let found = format!("{} numbers", values.len());
            Array2::from_shape_vec(shape, values)
                .map_err(|_| tensors.wrong(ending, "shape", found, format!("{shape:?}")))
        };
        let scales = array(SCALE, tensors.read_f32(SCALE)?)?;
        let zeros = match tensors.optional(ZERO) {
            Some(info) if scheme.zero == prune_core::ZeroPoint::Integer => {
                let middle = 1u8 << (bits - 1);
                let bytes = tensors.read(ZERO)?;
                let zeros = match info.dtype {
                    DType::I8 => bytes.iter().map(|z| z.wrapping_add(middle)).collect(),
                    _ => self.zeros(&u32s(&bytes), shape).map_err(|e| tensors.invalid(ZERO, e))?,
                };
                Some(array(ZERO, zeros.into_iter().map(f32::from).collect())?)
            }
            _ => None,
        };
        let group_index = match self.ordered {
            false => None,
            true => group_index(tensors, shape.1)?,
        };
        let parts = QuantizedParts {
            scheme,
            codes: Array2::from_shape_vec((rows, cols), codes).map_err(|e| {
                tensors.wrong(PACKED, "shape", e.to_string(), format!("{rows} x {cols} codes"))
            })?,
            scales,
            zeros,
            global_scale: None,
            group_index,
            column_scales: None,
        };
        QuantizedMatrix::from_parts(tensors.layer.as_str(), parts)
            .map_err(|e| tensors.invalid(PACKED, e))
    }
}

impl PackedLayer {
    /// Zero points, each column of which is a bitstream along the outputs, row-major.
    fn zeros(&self, words: &[u32], shape: (usize, usize)) -> prune_core::Result<Vec<u8>> {
        let (rows, groups) = shape;
        let bits = self.info.scheme.number.bits();
        let mut zeros = vec![0u8; rows * groups];
        for g in 0..groups {
            let column: Vec<u32> = words.iter().skip(g).step_by(groups).copied().collect();
            for (r, zero) in self.packing.unpack(&column, bits, rows)?.into_iter().enumerate() {
                zeros[r * groups + g] = zero;
            }
        }
        Ok(zeros)
    }
}

/// The group of each input channel; `None` where it follows from the channel's number.
fn group_index(tensors: &LayerTensors<'_>, groups: usize) -> Result<Option<Vec<u32>>> {
    let index = i32s(&tensors.read(ORDER)?);
    // −1 everywhere stands for no order.
    if index.iter().all(|g| *g == -1) {
        return Ok(None);
    }
    let size = index.len() / groups.max(1);
    if index.iter().enumerate().all(|(i, g)| usize::try_from(*g) == Ok(i / size.max(1))) {
        return Ok(None);
    }
    let unsigned: Result<Vec<u32>, _> = index.iter().map(|g| u32::try_from(*g)).collect();
    unsigned.map(Some).map_err(|_| {
        tensors.wrong(ORDER, "contents", "a negative group".into(), "groups from 0 on".into())
    })
}
