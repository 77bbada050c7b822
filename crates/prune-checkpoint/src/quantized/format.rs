use prune_core::{LayerId, QuantScheme, QuantizedMatrix, TensorInfo};
use serde_json::Value;

use crate::Result;
use crate::awq::AwqFormat;
use crate::compressed_tensors::CompressedTensors;
use crate::gptq::GptqFormat;

/// How quantised layers are written to a Hugging Face directory.
///
/// [`QuantizedWriter`](crate::QuantizedWriter) writes whole models with it.
pub trait QuantFormat: Send + Sync + std::fmt::Debug {
    /// Its name: `compressed-tensors`.
    fn name(&self) -> &'static str;

    /// The tensors that take the place of the weight of one layer (`rows x cols`).
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for a shape or scheme that the format cannot hold.
    fn plan(
        &self,
        layer: &LayerId,
        rows: usize,
        cols: usize,
        scheme: &QuantScheme,
    ) -> Result<Vec<TensorInfo>>;

    /// Those tensors with their bytes, in the order of the plan.
    ///
    /// # Errors
    /// As [`QuantFormat::plan`]; [`Error::Tensor`](crate::Error::Tensor) for an order of groups or scales of columns that
    /// the format has no place for.
    fn encode(
        &self,
        layer: &LayerId,
        matrix: &QuantizedMatrix,
    ) -> Result<Vec<(TensorInfo, Vec<u8>)>>;

    /// What `quantization_config` in `config.json` says about these layers; `dense` are linear
    /// layers that stay as they are.
    ///
    /// # Errors
    /// [`Error::Plan`](crate::Error::Plan) for schemes that one file of this format cannot hold side by side.
    fn config(&self, layers: &[(LayerId, QuantScheme)], dense: &[LayerId]) -> Result<Value>;

    /// Further files that readers of the format look for.
    ///
    /// # Errors
    /// As [`QuantFormat::config`].
    fn files(&self, _layers: &[(LayerId, QuantScheme)]) -> Result<Vec<(&'static str, Value)>> {
        Ok(Vec::new())
    }
}

/// A format: its name, a line on it, and how to make it. Adding one adds a line here.
type Entry = (&'static str, &'static str, fn() -> Box<dyn QuantFormat>);

const ENTRIES: [Entry; 5] = [
    ("compressed-tensors", "vLLM, transformers; 2 to 8 bits, NVFP4, MXFP4, mixed", || {
        Box::new(CompressedTensors)
    }),
    ("gptq", "GPTQ v2: GPTQModel, vLLM; 2 to 8 bits, order of activations", || {
        Box::new(GptqFormat::V2)
    }),
    (
        "gptq-v1",
        "GPTQ v1: AutoGPTQ and older readers; 2, 3, 4, 8 bits; no zero points of 0",
        || Box::new(GptqFormat::V1),
    ),
    ("gptq-p", "GPTQ in bit planes: GPTQModel; 2 to 8 bits, mixed", || {
        Box::new(GptqFormat::Planar)
    }),
    ("awq", "AWQ gemm: AutoAWQ, vLLM; 4 bits", || Box::new(AwqFormat)),
];

/// Name and summary of every format that [`quant_format`] makes.
///
/// ```
/// use prune_checkpoint::{QUANT_FORMATS, quant_format};
/// for (name, summary) in QUANT_FORMATS {
///     println!("{name:20} {summary}");
///     assert_eq!(quant_format(name).expect("listed").name(), *name);
/// }
/// ```
pub const QUANT_FORMATS: &[(&str, &str)] = &{
    let mut list = [("", ""); ENTRIES.len()];
    let mut i = 0;
    while i < list.len() {
        list[i] = (ENTRIES[i].0, ENTRIES[i].1);
        i += 1;
    }
    list
};

/// The format of that name, or `None` when [`QUANT_FORMATS`] does not list it.
///
/// ```
/// use prune_checkpoint::quant_format;
/// use prune_core::LayerId;
///
/// let gptq = quant_format("gptq").expect("listed");
/// let scheme = "int4 g128 asym".parse()?;
/// let plan = gptq.plan(&LayerId::new("up_proj"), 11008, 4096, &scheme)?;
/// // Codes, scales, zero points and the group of every input channel.
/// assert_eq!(plan.iter().map(|t| t.nbytes()).sum::<usize>(), 23_441_408);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn quant_format(name: &str) -> Option<Box<dyn QuantFormat>> {
    ENTRIES.iter().find(|(n, _, _)| *n == name).map(|(_, _, make)| make())
}

/// Checks that a matrix has what was planned for it, before it is encoded.
pub(crate) fn check_extras(format: &str, layer: &LayerId, matrix: &QuantizedMatrix) -> Result<()> {
    check_column_scales(format, layer, matrix)?;
    match matrix.global_scale() {
        None => Ok(()),
        Some(_) => {
            let found = "a scale of the whole matrix".to_string();
            Err(super::refuse(format, layer, found, "none"))
        }
    }
}

/// Checks that a matrix has no scales of columns, before it is encoded.
pub(crate) fn check_column_scales(
    format: &str,
    layer: &LayerId,
    matrix: &QuantizedMatrix,
) -> Result<()> {
    match matrix.column_scales() {
        None => Ok(()),
        Some(_) => {
            let found = "scales of input channels".to_string();
            let expected = "none; fold them into the layer before and quantise again";
            Err(super::refuse(format, layer, found, expected))
        }
    }
}
