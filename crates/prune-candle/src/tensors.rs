//! Between checkpoints, `ndarray` and candle.

use candle_core::{D, Device, Storage, Tensor};
use ndarray::{Array2, Array3, ArrayView2};
use prune_core::{LayerId, TensorSource, check_finite, decode_f32};

use crate::{Error, Result};

/// Is shown the input of the layers that share it.
pub(crate) type Show<'a> = dyn FnMut(&[&LayerId], &Tensor) -> Result<()> + 'a;

/// An error unless `weights` holds tensor `name` with the `expected` shape.
pub(crate) fn check(weights: &dyn TensorSource, name: &str, expected: &[usize]) -> Result<()> {
    let info = weights.info(name)?;
    if info.shape == expected {
        return Ok(());
    }
    Err(Error::Core(prune_core::Error::Shape {
        what: name.to_string(),
        found: info.shape.clone(),
        expected: expected.to_vec(),
    }))
}

/// Tensor `name` in f32.
pub(crate) fn load(weights: &dyn TensorSource, name: &str) -> Result<Tensor> {
    let shape = weights.info(name)?.shape.clone();
    Ok(Tensor::from_vec(weights.read_f32(name)?, shape, &Device::Cpu)?)
}

/// The rows of matrix `name` with these numbers, one after the other, in f32. Reads them alone.
/// `what` says what the numbers are when one is too large.
pub(crate) fn read_rows(
    weights: &dyn TensorSource,
    name: &str,
    what: &str,
    rows: impl IntoIterator<Item = usize>,
) -> prune_core::Result<Vec<f32>> {
    let info = weights.info(name)?;
    let (count, width) = info.matrix_shape()?;
    let mut row = vec![0; width * info.dtype.size()];
    let mut out = Vec::new();
    for index in rows {
        if index >= count {
            return Err(prune_core::Error::OutOfRange {
                what: what.to_string(),
                found: index.to_string(),
                expected: format!("below {count}, the rows of {name}"),
            });
        }
        weights.read_at(name, index * row.len(), &mut row)?;
        out.extend(decode_f32(name, info.dtype, &row)?);
    }
    check_finite(name, &out)?;
    Ok(out)
}

pub(crate) fn to_tensor(matrix: ArrayView2<'_, f32>) -> Result<Tensor> {
    let shape = matrix.dim();
    let values = match matrix.as_slice() {
        Some(values) => values.to_vec(),
        None => matrix.iter().copied().collect(),
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

pub(crate) fn to_array(tensor: Tensor) -> Result<Array2<f32>> {
    let shape = (tensor.dim(0)?, tensor.dim(D::Minus1)?);
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Array2::from_shape_vec(shape, values)
        .map_err(|e| Error::Core(prune_core::Error::external("hidden states", e)))
}

/// A tensor of three dimensions.
pub(crate) fn to_array3(tensor: &Tensor) -> Result<Array3<f32>> {
    Array3::from_shape_vec(tensor.dims3()?, tensor.flatten_all()?.to_vec1::<f32>()?)
        .map_err(|e| Error::Core(prune_core::Error::external("heads of attention", e)))
}

/// The hidden states that leave a block, checked.
pub(crate) fn block_output(name: &str, tensor: Tensor) -> Result<Array2<f32>> {
    let out = to_array(tensor)?;
    if let Some(values) = out.as_slice() {
        check_finite(&format!("output of {name}"), values)?;
    }
    Ok(out)
}

/// Shows a contiguous matrix without copying it.
pub(crate) fn with_view<T>(
    tensor: &Tensor,
    f: impl FnOnce(ArrayView2<'_, f32>) -> Result<T>,
) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    if let Storage::Cpu(cpu) = &*storage
        && let Some((start, end)) = layout.contiguous_offsets()
    {
        let values = &cpu.as_slice::<f32>()?[start..end];
        let view = ArrayView2::from_shape(tensor.dims2()?, values)
            .map_err(|e| Error::Core(prune_core::Error::external("layer input", e)))?;
        return f(view);
    }
    drop(storage);
    f(to_array(tensor.clone())?.view())
}
