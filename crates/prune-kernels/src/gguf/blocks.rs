//! Blocks of 32 weights: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

use super::rows::{Block, field};
use crate::activations::{Activations, Q8Block, ToBlocks};
use crate::simd::{Selected, Simd};

/// A block of 32: weight `i` is `scale · (code i − OFFSET) + minimum`.
pub(super) trait SmallBlock<const BYTES: usize>: Send + Sync {
    /// Whether codes are signed bytes; otherwise they are below 32.
    const SIGNED: bool = false;
    const OFFSET: i32 = 0;
    const HAS_MINIMUM: bool = false;

    fn codes<S: Simd>(simd: S, block: &[u8; BYTES]) -> S::B;
    fn scale<S: Simd>(simd: S, block: &[u8; BYTES]) -> f32;
    /// Of formats that have one.
    #[inline(always)]
    fn minimum<S: Simd>(_: S, _: &[u8; BYTES]) -> f32 {
        0.0
    }
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;

/// The half-precision number at byte `at`.
#[inline(always)]
pub(super) fn half<S: Simd, const BYTES: usize>(simd: S, block: &[u8; BYTES], at: usize) -> f32 {
    simd.half(u16::from_le_bytes(*field(block, at)))
}

/// Nibbles, each with the bit of its number in `high` as the fifth.
#[inline(always)]
fn five_bits<S: Simd>(simd: S, nibbles: &[u8; 16], high: &[u8; 4]) -> S::B {
    simd.or(simd.nibbles(nibbles), simd.select_u8(u32::from_le_bytes(*high), 16))
}

impl SmallBlock<18> for Q4_0 {
    const OFFSET: i32 = 8;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 18]) -> S::B {
        simd.nibbles(field(block, 2))
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, block: &[u8; 18]) -> f32 {
        half(simd, block, 0)
    }
}

impl SmallBlock<20> for Q4_1 {
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 20]) -> S::B {
        simd.nibbles(field(block, 4))
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, block: &[u8; 20]) -> f32 {
        half(simd, block, 0)
    }

    #[inline(always)]
    fn minimum<S: Simd>(simd: S, block: &[u8; 20]) -> f32 {
        half(simd, block, 2)
    }
}

impl SmallBlock<22> for Q5_0 {
    const OFFSET: i32 = 16;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 22]) -> S::B {
        five_bits(simd, field(block, 6), field(block, 2))
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, block: &[u8; 22]) -> f32 {
        half(simd, block, 0)
    }
}

impl SmallBlock<24> for Q5_1 {
    const HAS_MINIMUM: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 24]) -> S::B {
        five_bits(simd, field(block, 8), field(block, 4))
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, block: &[u8; 24]) -> f32 {
        half(simd, block, 0)
    }

    #[inline(always)]
    fn minimum<S: Simd>(simd: S, block: &[u8; 24]) -> f32 {
        half(simd, block, 2)
    }
}

impl SmallBlock<34> for Q8_0 {
    const SIGNED: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 34]) -> S::B {
        simd.load_u8(field(block, 2))
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, block: &[u8; 34]) -> f32 {
        half(simd, block, 0)
    }
}

/// A [`SmallBlock`] as a [`Block`].
pub(super) struct Small<F>(F);

impl<const BYTES: usize, F: SmallBlock<BYTES>> Block<BYTES, 32> for Small<F> {
    type Input = Q8Block;
    /// Scale and minimum.
    type Scales = (f32, f32);

    fn input(selected: Selected, x: &[f32], activations: Activations) -> Vec<Q8Block> {
        selected.run(ToBlocks { x, precision: activations })
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; BYTES]) -> (f32, f32) {
        (F::scale(simd, block), F::minimum(simd, block))
    }

    #[inline(always)]
    fn weights<S: Simd>(simd: S, block: &[u8; BYTES], scales: &(f32, f32), _: usize) -> [S::F; 4] {
        let codes = simd.sub_u8(F::codes(simd, block), simd.splat_u8(F::OFFSET as u8));
        let mut weights = simd.i8_to_f32(codes);
        let (scale, minimum) = (simd.splat(scales.0), simd.splat(scales.1));
        for p in 0..4 {
            weights[p] = simd.mul_add(weights[p], scale, minimum);
        }
        weights
    }

    #[inline(always)]
    fn add_products<S: Simd, const N: usize>(
        simd: S,
        block: &[u8; BYTES],
        x: [&Q8Block; N],
        mut totals: [S::F; N],
    ) -> [S::F; N] {
        let codes = F::codes(simd, block);
        let (scale, minimum) = (F::scale(simd, block), F::minimum(simd, block));
        let ones = simd.halves_i16(1, 1);
        for j in 0..N {
            let of_x = simd.load_i8(&x[j].codes);
            let pairs = match F::SIGNED {
                true => simd.pairs_i8(codes, of_x),
                false => simd.pairs_u7(codes, of_x),
            };
            let mut products = simd.pairs_i16(pairs, ones);
            if F::OFFSET != 0 {
                let sums = simd.load_i32(&x[j].sums);
                let shift = simd.mul_i32(sums, simd.splat_i32(F::OFFSET));
                products = simd.sub_i32(products, shift);
            }
            let products = simd.to_f32(products);
            totals[j] = simd.mul_add(products, simd.splat(scale * x[j].scale), totals[j]);
            if F::HAS_MINIMUM {
                // An eighth in each lane; exact.
                let minimum = simd.splat(minimum * x[j].sum * 0.125);
                totals[j] = simd.add(totals[j], minimum);
            }
        }
        totals
    }
}
