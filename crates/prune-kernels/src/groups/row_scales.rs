use std::ops::Range;

use super::GroupKernel;
use crate::simd::Simd;
use crate::storage::Storage;

/// The scales and zero points of one row in f32.
pub(super) struct RowScales {
    pub(super) scales: Vec<f32>,
    pub(super) minus_zeros: Vec<f32>,
    /// Halves of a unit in a group.
    halves: usize,
}

impl RowScales {
    pub(super) fn new<T: Storage>(matrix: &GroupKernel<T>) -> Self {
        let middle = (1u32 << (matrix.bits - 1)) as f32;
        Self {
            scales: vec![0.0; matrix.groups],
            minus_zeros: vec![-middle; matrix.groups],
            halves: 2 * matrix.group / matrix.unit(),
        }
    }

    #[inline(always)]
    pub(super) fn fill<S: Simd, T: Storage>(
        &mut self,
        simd: S,
        matrix: &GroupKernel<T>,
        row: usize,
        spans: &Range<usize>,
    ) {
        let groups = match self.halves.is_multiple_of(2) {
            true => spans.clone(),
            false => {
                let end = (2 * spans.end).div_ceil(self.halves).min(matrix.groups);
                2 * spans.start / self.halves..end
            }
        };
        let of_row = row * matrix.groups + groups.start..row * matrix.groups + groups.end;
        widen(simd, &matrix.scales[of_row.clone()], &mut self.scales[groups.clone()], 1.0);
        if let Some(zeros) = &matrix.zeros {
            widen(simd, &zeros[of_row], &mut self.minus_zeros[groups], -1.0);
        }
    }

    /// For each word of a unit.
    #[inline(always)]
    pub(super) fn of_span<S: Simd>(&self, simd: S, span: usize) -> (S::F, S::F) {
        if self.halves.is_multiple_of(2) {
            return (simd.splat(self.scales[span]), simd.splat(self.minus_zeros[span]));
        }
        // A group may end in the middle of a unit, and the last one before the padding does.
        let last = self.scales.len() - 1;
        let (low, high) = (2 * span / self.halves, ((2 * span + 1) / self.halves).min(last));
        let halves = |values: &[f32]| (values[low], values[high]);
        let (scale, minus_zero) = (halves(&self.scales), halves(&self.minus_zeros));
        (simd.halves(scale.0, scale.1), simd.halves(minus_zero.0, minus_zero.1))
    }
}

/// Writes `factor` times each value.
#[inline(always)]
fn widen<S: Simd, T: Storage>(simd: S, from: &[T], to: &mut [f32], factor: f32) {
    let (from, last_from) = from.as_chunks::<8>();
    let (to, last_to) = to.as_chunks_mut::<8>();
    for (from, to) in from.iter().zip(to) {
        simd.store(simd.mul(T::eight(simd, from), simd.splat(factor)), to);
    }
    for (from, to) in last_from.iter().zip(last_to) {
        *to = factor * from.one();
    }
}
