use std::path::Path;

use ndarray::Array2;
use prune_core::{
    DType, Granularity, NumberFormat, QuantScheme, QuantizedMatrix, QuantizedParts, ZeroPoint,
};
use serde_json::Value;

use super::config::Config;
use super::format::GptqFormat;
use crate::Result;
use crate::quantized::{
    LayerReader, LayerTensors, QuantizedLayer, Reader, i32s, scale_format, u32s,
};

/// Reads GPTQ checkpoints: v1, v2 and in bit planes.
#[derive(Debug)]
pub(crate) struct GptqReader {
    config: Config,
}

impl GptqReader {
    pub(crate) fn new(path: &Path, config: &Value) -> Result<Self> {
        Ok(Self { config: Config::parse(path, config)? })
    }
}

#[derive(Debug)]
struct GptqLayer {
    info: QuantizedLayer,
    groups: usize,
    version: GptqFormat,
    has_index: bool,
}

const WEIGHT: &str = "qweight";
const ZEROS: &str = "qzeros";
const SCALES: &str = "scales";
const INDEX: &str = "g_idx";

impl Reader for GptqReader {
    fn format(&self) -> &'static str {
        "gptq"
    }

    fn marker(&self) -> &'static str {
        WEIGHT
    }

    fn endings(&self) -> &'static [&'static str] {
        &[WEIGHT, ZEROS, SCALES, INDEX]
    }

    fn layer(&self, tensors: &LayerTensors<'_>) -> Result<Box<dyn LayerReader>> {
        let weight = tensors.require(WEIGHT)?;
        tensors.check_dtype(weight, WEIGHT, DType::I32)?;
        let (words, rows) = tensors.matrix(weight, WEIGHT)?;
        let index = tensors.optional(INDEX);
        if let Some(index) = index {
            tensors.check_dtype(index, INDEX, DType::I32)?;
        }
        // Single layers may have other bits than the configuration says ("dynamic"): the length of
        // the index gives the columns, and these the bits.
        let cols = match index.map(|i| &i.shape[..]) {
            Some([cols]) => *cols,
            Some(other) => {
                let expected = "one dimension".to_string();
                return Err(tensors.wrong(INDEX, "shape", format!("{other:?}"), expected));
            }
            None => words.saturating_mul(32) / self.config.bits as usize,
        };
        let bits = match words.saturating_mul(32).checked_div(cols) {
            Some(bits @ 2..=8) if bits * cols == words * 32 => bits,
            _ => {
                let expected = format!("in · bits / 32 rows of words for {cols} input channels");
                return Err(tensors.wrong(
                    WEIGHT,
                    "shape",
                    format!("{:?}", weight.shape),
                    expected,
                ));
            }
        };
        let scales = tensors.require(SCALES)?;
        let format = scale_format(scales.dtype).ok_or_else(|| {
            let expected = "F16, BF16 or F32".to_string();
            tensors.wrong(SCALES, "dtype", scales.dtype.to_string(), expected)
        })?;
        let (groups, scale_cols) = tensors.matrix(scales, SCALES)?;
        if scale_cols != rows || groups == 0 || groups > cols.max(1) {
            let expected = format!("groups x {rows}");
            return Err(tensors.wrong(SCALES, "shape", format!("{:?}", scales.shape), expected));
        }
        let zeros = tensors.require(ZEROS)?;
        tensors.check_dtype(zeros, ZEROS, DType::I32)?;
        let zero_words = (rows * bits).div_ceil(32);
        tensors.check_shape(zeros, ZEROS, &[groups, zero_words])?;
        let size = match self.config.group {
            // As configured, where that gives the groups that there are.
            Some(n) if cols.div_ceil(n) == groups => n,
            _ => cols.div_ceil(groups),
        };
        if cols.div_ceil(size) != groups {
            let expected = format!("as many rows as groups divide {cols} input channels");
            return Err(tensors.wrong(SCALES, "shape", format!("{:?}", scales.shape), expected));
        }
        let scheme = QuantScheme {
            number: NumberFormat::Int { bits: bits as u8 },
            granularity: match groups {
                1 if index.is_none() || self.config.group.is_none() => Granularity::PerChannel,
                _ => Granularity::Group(size),
            },
            zero: ZeroPoint::Integer,
            scale: format,
        };
        let info = QuantizedLayer { id: tensors.layer.clone(), rows, cols, scheme };
        let version = self.config.version;
        Ok(Box::new(GptqLayer { info, groups, version, has_index: index.is_some() }))
    }
}

impl LayerReader for GptqLayer {
    fn info(&self) -> &QuantizedLayer {
        &self.info
    }

    fn read(&self, tensors: &LayerTensors<'_>) -> Result<QuantizedMatrix> {
        let QuantizedLayer { rows, cols, scheme, .. } = self.info;
        let bits = scheme.number.bits();
        let words = u32s(&tensors.read(WEIGHT)?);
        let mut codes = Array2::<u8>::zeros((rows, cols));
        for (r, mut row) in codes.outer_iter_mut().enumerate() {
            let column: Vec<u32> = words.iter().skip(r).step_by(rows).copied().collect();
            let unpacked = self.version.unpack(&column, bits, cols);
            let unpacked = unpacked.map_err(|e| tensors.invalid(WEIGHT, e))?;
            row.iter_mut().zip(unpacked).for_each(|(code, value)| *code = value);
        }
        let words = u32s(&tensors.read(ZEROS)?);
        let mask = ((1u32 << bits) - 1) as u8;
        let mut zeros = Array2::<f32>::zeros((rows, self.groups));
        for (g, row) in words.chunks_exact((words.len() / self.groups).max(1)).enumerate() {
            let unpacked = self.version.unpack(row, bits, rows);
            let unpacked = unpacked.map_err(|e| tensors.invalid(ZEROS, e))?;
            for (r, zero) in unpacked.into_iter().enumerate() {
                let more = self.version.zero_offset(bits);
                zeros[[r, g]] = f32::from(zero.wrapping_add(more) & mask);
            }
        }
        let stored = tensors.read_f32(SCALES)?;
        let scales = Array2::from_shape_fn((rows, self.groups), |(r, g)| stored[g * rows + r]);
        let group_index = match self.has_index {
            false => None,
            true => self.group_index(tensors)?,
        };
        let parts = QuantizedParts {
            scheme,
            codes,
            scales,
            zeros: Some(zeros),
            global_scale: None,
            group_index,
            column_scales: None,
        };
        QuantizedMatrix::from_parts(tensors.layer.as_str(), parts)
            .map_err(|e| tensors.invalid(WEIGHT, e))
    }
}

impl GptqLayer {
    /// The group of each input channel; `None` where it follows from the channel's number.
    fn group_index(&self, tensors: &LayerTensors<'_>) -> Result<Option<Vec<u32>>> {
        let index = i32s(&tensors.read(INDEX)?);
        let mut out = Vec::with_capacity(index.len());
        for g in &index {
            match u32::try_from(*g) {
                Ok(known) if (known as usize) < self.groups => out.push(known),
                _ => {
                    let expected = format!("groups below {}", self.groups);
                    return Err(tensors.wrong(INDEX, "contents", g.to_string(), expected));
                }
            }
        }
        let Granularity::Group(size) = self.info.scheme.granularity else { return Ok(None) };
        let natural = out.iter().enumerate().all(|(i, g)| *g as usize == i / size);
        Ok((!natural).then_some(out))
    }
}
