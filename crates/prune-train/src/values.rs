//! The values of candle tensors as slices, to read and to change in place.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp2, Layout, Storage, Tensor};

use crate::{Error, Result};

/// What `f` makes of the values of a tensor of f32; copies only a tensor that is not contiguous.
///
/// # Errors
/// What `f` returns; a candle error for another type.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use prune_train::with_values;
/// let tensor = Tensor::new(&[1f32, 2.0], &Device::Cpu)?;
/// let sum: f32 = with_values(&tensor, |values| Ok(values.iter().sum()))?;
/// assert_eq!(sum, 3.0);
/// # Ok::<(), prune_train::Error>(())
/// ```
pub fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let Storage::Cpu(cpu) = &*storage
            && let Some((start, end)) = layout.contiguous_offsets()
        {
            return f(&cpu.as_slice::<f32>()?[start..end]);
        }
    }
    f(&tensor.flatten_all()?.to_vec1::<f32>()?)
}

/// Shows `f` the values of `target` to change, and those of `source` to read.
///
/// # Errors
/// What `f` returns; [`prune_core::Error::Shape`] when the two differ in shape.
pub(crate) fn update(
    name: &str,
    target: &Tensor,
    source: &Tensor,
    f: impl FnOnce(&mut [f32], &[f32]) -> Result<()>,
) -> Result<()> {
    if target.dims() != source.dims() {
        return Err(Error::shape(name, source.dims(), target.dims()));
    }
    let source = source.contiguous()?;
    let op = InPlace { work: Cell::new(Some(f)), result: Cell::new(Ok(())) };
    target.inplace_op2(&source, &op)?;
    op.result.into_inner()
}

/// Shows `f` the values of a tensor of f32 to change in place; all that share them see it.
///
/// # Errors
/// What `f` returns.
pub fn change(target: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let op = InPlace {
        work: Cell::new(Some(|values: &mut [f32], _: &[f32]| f(values))),
        result: Cell::new(Ok(())),
    };
    let nothing = Tensor::zeros(0, candle_core::DType::F32, target.device())?;
    target.inplace_op2(&nothing, &op)?;
    op.result.into_inner()
}

struct InPlace<F> {
    work: Cell<Option<F>>,
    result: Cell<Result<()>>,
}

impl<F: FnOnce(&mut [f32], &[f32]) -> Result<()>> InplaceOp2 for InPlace<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> candle_core::Result<()> {
        let range = |layout: &Layout| match layout.contiguous_offsets() {
            Some((start, end)) => Ok(start..end),
            None => candle_core::bail!("a contiguous tensor is needed, found {layout:?}"),
        };
        let (to, from) = (range(target_layout)?, range(source_layout)?);
        let CpuStorage::F32(values) = target else { candle_core::bail!("parameters are f32") };
        let source = &source.as_slice::<f32>()?[from];
        if let Some(work) = self.work.take() {
            self.result.set(work(&mut values[to], source));
        }
        Ok(())
    }
}
