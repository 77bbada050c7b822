mod attention;
mod linear;
mod llama;
mod lora;
mod norm;
mod outliers;
mod rotary;
mod swiglu;
mod tokens;

pub use llama::{Activations, TrainableLlama};
pub use lora::LoraOptions;
pub use outliers::outlier_scores;
pub use tokens::{TokenBatch, TokenWindows};

use candle_core::{CpuStorage, Layout, Result, Tensor};

/// The values of a contiguous tensor within an operation.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => candle_core::bail!("a contiguous tensor is needed, found {layout:?}"),
    }
}

/// What `f` makes of the values of a tensor, with candle's error.
fn read<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    prune_train::with_values(tensor, |values| Ok(f(values)))
        .map_err(|e| candle_core::Error::Msg(e.to_string()))
}
