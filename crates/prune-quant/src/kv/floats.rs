use half::f16;
use half::slice::HalfFloatSliceExt;

use super::StoredFloat;

/// A fixed number of floats in a [`StoredFloat`] format.
#[derive(Debug, Clone)]
pub(crate) enum Floats {
    F16(Box<[f16]>),
    F32(Box<[f32]>),
}

impl Floats {
    pub(crate) fn zeros(format: StoredFloat, len: usize) -> Self {
        match format {
            StoredFloat::F16 => Floats::F16(vec![f16::ZERO; len].into()),
            StoredFloat::F32 => Floats::F32(vec![0.0; len].into()),
        }
    }

    /// Rounds `values` and puts them at `first`.
    pub(crate) fn put(&mut self, first: usize, values: &[f32]) {
        let range = first..first + values.len();
        match self {
            Floats::F16(all) => all[range].convert_from_f32_slice(values),
            Floats::F32(all) => all[range].copy_from_slice(values),
        }
    }

    /// Writes the values from `first` on to `out`.
    pub(crate) fn get(&self, first: usize, out: &mut [f32]) {
        match self {
            Floats::F16(all) => all[first..first + out.len()].convert_to_f32_slice(out),
            Floats::F32(all) => out.copy_from_slice(&all[first..first + out.len()]),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Floats::F16(all) => all.len() * size_of::<f16>(),
            Floats::F32(all) => all.len() * size_of::<f32>(),
        }
    }
}
