//! `XᵀX` on the widest vectors of the processor.

use ndarray::{Array2, ArrayView2, Axis, s};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Tokens whose products are summed in f32, one after the other, before they join the f64 sum.
/// Part of the definition of the result, as is the order of the chunks; the width of the vectors
/// is not.
pub(super) const CHUNK: usize = 128;

/// Bytes of inputs that are packed at a time, unless a chunk takes more.
const PACKED: usize = 16 << 20;

/// Adds `XᵀX` of all `inputs` (`tokens x channels`), one after the other, to the diagonal of `sum`
/// and above it. Below it, entries next to the diagonal change too.
pub(super) fn add_upper(sum: &mut Array2<f64>, inputs: &[ArrayView2<'_, f32>]) {
    let (width, channels) = (Arch::new().dispatch(Width), sum.ncols());
    let panels = channels.div_ceil(width);
    let at_once = (PACKED / (size_of::<f32>() * panels.max(1) * width * CHUNK)).max(1);
    let chunks: Vec<_> =
        inputs.iter().flat_map(|inputs| inputs.axis_chunks_iter(Axis(0), CHUNK)).collect();
    let mut packed = Vec::new();
    for chunks in chunks.chunks(at_once) {
        let ends: Vec<usize> = chunks
            .iter()
            .scan(0, |end, chunk| {
                *end += chunk.nrows() * width;
                Some(*end)
            })
            .collect();
        let stride = ends.last().copied().unwrap_or_default();
        packed.resize(panels * stride, 0.0);
        packed.par_chunks_mut(stride.max(1)).enumerate().for_each(|(panel, packed)| {
            pack(chunks, panel * width, width, packed);
        });
        sum.axis_chunks_iter_mut(Axis(0), width).into_par_iter().enumerate().for_each(
            |(panel, mut rows)| {
                let Some(rows) = rows.as_slice_mut() else { return };
                let (packed, start) = (&packed[panel * stride..], panel * width);
                Arch::new().dispatch(Panel { rows, channels, packed, ends: &ends, start });
            },
        );
    }
}

/// Copies `width` channels of all chunks, token after token. Channels beyond the last are 0.
fn pack(chunks: &[ArrayView2<'_, f32>], start: usize, width: usize, packed: &mut [f32]) {
    let tokens = chunks.iter().flat_map(|chunk| {
        let end = (start + width).min(chunk.ncols());
        (0..chunk.nrows()).map(move |token| chunk.slice(s![token, start..end]))
    });
    for (packed, token) in packed.chunks_mut(width).zip(tokens) {
        let (kept, beyond) = packed.split_at_mut(token.len());
        kept.iter_mut().zip(token).for_each(|(to, from)| *to = *from);
        beyond.fill(0.0);
    }
}

/// Channels of a panel: a few vectors.
struct Width;

impl WithSimd for Width {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        let vectors = if S::F32_LANES == 1 { 4 } else { 3 };
        vectors * S::F32_LANES
    }
}

/// A panel, to be multiplied with itself and with those to its right.
struct Panel<'a> {
    /// The panel's rows of the sum.
    rows: &'a mut [f64],
    /// Columns of the sum.
    channels: usize,
    /// The panel and those to its right.
    packed: &'a [f32],
    /// Where, in a panel, the chunks of tokens end.
    ends: &'a [usize],
    /// First channel of the panel.
    start: usize,
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as there are registers for, beside those of the factors.
        match S::F32_LANES {
            1 => self.add::<S, 4, 4>(simd),
            16 => self.add::<S, 8, 3>(simd),
            _ => self.add::<S, 4, 3>(simd),
        }
    }
}

impl Panel<'_> {
    /// In tiles of `HIGH` rows and `VECTORS` vectors.
    #[inline(always)]
    fn add<S: Simd, const HIGH: usize, const VECTORS: usize>(self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        let Some(&stride) = self.ends.last() else { return };
        let left = &self.packed[..stride];
        for (start, right) in
            (self.start..self.channels).step_by(width).zip(self.packed.chunks(stride))
        {
            let columns = start..(start + width).min(self.channels);
            let mut first = 0;
            for &end in self.ends {
                let (left, right) = (&left[first..end], &right[first..end]);
                for (tile, rows) in self.rows.chunks_mut(HIGH * self.channels).enumerate() {
                    let sums = multiply::<S, HIGH, VECTORS>(simd, left, right, tile);
                    for (row, sums) in rows.chunks_mut(self.channels).zip(&sums) {
                        let sums: &[f32] = pulp::bytemuck::cast_slice(sums);
                        let row = &mut row[columns.clone()];
                        row.iter_mut().zip(sums).for_each(|(to, sum)| *to += f64::from(*sum));
                    }
                }
                first = end;
            }
        }
    }
}

/// `leftᵀ right` over the tokens of two packed chunks, of the `HIGH` channels of `left` that `tile`
/// counts.
#[inline(always)]
fn multiply<S: Simd, const HIGH: usize, const VECTORS: usize>(
    simd: S,
    left: &[f32],
    right: &[f32],
    tile: usize,
) -> [[S::f32s; VECTORS]; HIGH] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; HIGH];
    let tiles = VECTORS * S::F32_LANES / HIGH;
    let left = left.as_chunks::<HIGH>().0.iter().skip(tile).step_by(tiles);
    let right = S::as_simd_f32s(right).0.as_chunks::<VECTORS>().0;
    for (left, right) in left.zip(right) {
        for (sums, left) in sums.iter_mut().zip(left) {
            let left = simd.splat_f32s(*left);
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = simd.mul_add_e_f32s(left, *right, *sum);
            }
        }
    }
    sums
}
