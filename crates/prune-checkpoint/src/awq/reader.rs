use std::path::Path;

use ndarray::Array2;
use prune_core::{
    DType, Granularity, NumberFormat, QuantScheme, QuantizedMatrix, QuantizedParts, ZeroPoint,
    unpack_awq,
};
use serde_json::Value;

use crate::quantized::{LayerReader, LayerTensors, QuantizedLayer, Reader, scale_format, u32s};
use crate::{Error, Result};

/// Reads AWQ `gemm` checkpoints.
#[derive(Debug)]
pub(crate) struct AwqReader {
    /// `None` for whole rows.
    group: Option<usize>,
}

impl AwqReader {
    pub(crate) fn new(path: &Path, config: &Value) -> Result<Self> {
        let pick = |names: [&str; 2]| {
            names.iter().map(|n| &config[*n]).find(|v| !v.is_null()).unwrap_or(&Value::Null)
        };
        let wrong = |field: &str, found: &Value, expected: &str| Error::Field {
            path: path.to_path_buf(),
            field: format!("{field} of quantization_config"),
            found: found.to_string().chars().take(60).collect(),
            expected: expected.to_string(),
        };
        let version = config["version"].as_str().unwrap_or("gemm").to_ascii_lowercase();
        if version != "gemm" {
            return Err(Error::Unsupported {
                path: path.to_path_buf(),
                what: format!("the AWQ version `{}`", version.chars().take(60).collect::<String>()),
                instead: "`gemm` is read".to_string(),
            });
        }
        let bits = pick(["bits", "w_bit"]);
        if bits.as_u64() != Some(4) {
            return Err(wrong("bits", bits, "4"));
        }
        let size = pick(["group_size", "q_group_size"]);
        let group = match size.as_i64() {
            Some(-1) => None,
            Some(n) if n > 0 => Some(usize::try_from(n).unwrap_or(usize::MAX)),
            _ => return Err(wrong("group_size", size, "-1 or at least 1")),
        };
        if config["zero_point"].as_bool() == Some(false) {
            return Err(wrong("zero_point", &config["zero_point"], "true"));
        }
        Ok(Self { group })
    }
}

#[derive(Debug)]
struct AwqLayer {
    info: QuantizedLayer,
    groups: usize,
}

const WEIGHT: &str = "qweight";
const ZEROS: &str = "qzeros";
const SCALES: &str = "scales";

impl Reader for AwqReader {
    fn format(&self) -> &'static str {
        "awq"
    }

    fn marker(&self) -> &'static str {
        WEIGHT
    }

    fn endings(&self) -> &'static [&'static str] {
        &[WEIGHT, ZEROS, SCALES]
    }

    fn layer(&self, tensors: &LayerTensors<'_>) -> Result<Box<dyn LayerReader>> {
        let weight = tensors.require(WEIGHT)?;
        tensors.check_dtype(weight, WEIGHT, DType::I32)?;
        let (cols, words) = tensors.matrix(weight, WEIGHT)?;
        let rows = words.saturating_mul(8);
        let groups = match self.group {
            None => 1,
            Some(n) if cols.is_multiple_of(n) => cols / n,
            Some(n) => {
                let expected = format!("a multiple of the group size {n} as rows");
                return Err(tensors.wrong(
                    WEIGHT,
                    "shape",
                    format!("{:?}", weight.shape),
                    expected,
                ));
            }
        };
        let zeros = tensors.require(ZEROS)?;
        tensors.check_dtype(zeros, ZEROS, DType::I32)?;
        tensors.check_shape(zeros, ZEROS, &[groups, words])?;
        let scales = tensors.require(SCALES)?;
        tensors.check_shape(scales, SCALES, &[groups, rows])?;
        let scale = scale_format(scales.dtype).ok_or_else(|| {
            let expected = "F16, BF16 or F32".to_string();
            tensors.wrong(SCALES, "dtype", scales.dtype.to_string(), expected)
        })?;
        let scheme = QuantScheme {
            number: NumberFormat::Int { bits: 4 },
            granularity: self.group.map_or(Granularity::PerChannel, Granularity::Group),
            zero: ZeroPoint::Integer,
            scale,
        };
        let info = QuantizedLayer { id: tensors.layer.clone(), rows, cols, scheme };
        Ok(Box::new(AwqLayer { info, groups }))
    }
}

impl LayerReader for AwqLayer {
    fn info(&self) -> &QuantizedLayer {
        &self.info
    }

    fn read(&self, tensors: &LayerTensors<'_>) -> Result<QuantizedMatrix> {
        let QuantizedLayer { rows, cols, scheme, .. } = self.info;
        let unpack = |ending: &str, lines: usize| -> Result<Vec<u8>> {
            let words = u32s(&tensors.read(ending)?);
            let mut out = Vec::with_capacity(lines * rows);
            for line in words.chunks_exact((words.len() / lines.max(1)).max(1)) {
                out.extend(unpack_awq(line, rows).map_err(|e| tensors.invalid(ending, e))?);
            }
            out.resize(lines * rows, 0);
            Ok(out)
        };
        let codes = unpack(WEIGHT, cols)?;
        let zeros = unpack(ZEROS, self.groups)?;
        let scales = tensors.read_f32(SCALES)?;
        let shape = (rows, self.groups);
        let parts = QuantizedParts {
            scheme,
            codes: Array2::from_shape_fn((rows, cols), |(r, c)| codes[c * rows + r]),
            scales: Array2::from_shape_fn(shape, |(r, g)| scales[g * rows + r]),
            zeros: Some(Array2::from_shape_fn(shape, |(r, g)| f32::from(zeros[g * rows + r]))),
            global_scale: None,
            group_index: None,
            column_scales: None,
        };
        QuantizedMatrix::from_parts(tensors.layer.as_str(), parts)
            .map_err(|e| tensors.invalid(WEIGHT, e))
    }
}
