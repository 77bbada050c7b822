//! Blocks of 256 weights: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K.

use super::blocks::half;
use super::rows::{Block, field};
use crate::activations::{Activations, Q8SuperBlock, ToSuperBlocks};
use crate::simd::{Selected, Simd};

/// A block of 256: weight `i` of the sixteen weights `j` is
/// `scale · scales[j] · code i − minimum · minima[j]`.
pub(super) trait SuperBlock<const BYTES: usize>: Send + Sync {
    /// Codes `32 part` to `32 part + 31`, below 64.
    fn codes<S: Simd>(simd: S, block: &[u8; BYTES], part: usize) -> S::B;
    fn scales<S: Simd>(simd: S, block: &[u8; BYTES]) -> Scales;
}

pub(super) struct Scales {
    scale: f32,
    minimum: f32,
    scales: [i16; 16],
    minima: [i16; 16],
}

pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// Two bits of each byte, from bit `2 quarter` on.
#[inline(always)]
fn two_bits<S: Simd>(simd: S, bytes: S::B, quarter: usize) -> S::B {
    let shifted = match quarter {
        0 => bytes,
        1 => simd.shift_right::<2>(bytes),
        2 => simd.shift_right::<4>(bytes),
        _ => simd.shift_right::<6>(bytes),
    };
    simd.and(shifted, simd.splat_u8(3))
}

/// Bit `bit` of each byte.
#[inline(always)]
fn one_bit<S: Simd>(simd: S, bytes: S::B, bit: usize) -> S::B {
    let shifted = match bit {
        0 => bytes,
        1 => simd.shift_right::<1>(bytes),
        2 => simd.shift_right::<2>(bytes),
        3 => simd.shift_right::<3>(bytes),
        4 => simd.shift_right::<4>(bytes),
        5 => simd.shift_right::<5>(bytes),
        6 => simd.shift_right::<6>(bytes),
        _ => simd.shift_right::<7>(bytes),
    };
    simd.and(shifted, simd.splat_u8(1))
}

/// The low nibbles of thirty-two bytes for an even part, the high ones for an odd part.
#[inline(always)]
fn nibble<S: Simd>(simd: S, bytes: S::B, part: usize) -> S::B {
    match part % 2 {
        0 => simd.and(bytes, simd.splat_u8(15)),
        _ => simd.shift_right::<4>(bytes),
    }
}

/// Numbers below 128, in words of four.
#[inline(always)]
fn bytes_to_i16(words: [u32; 4]) -> [i16; 16] {
    let mut out = [0; 16];
    for (out, word) in out.chunks_exact_mut(4).zip(words) {
        for (out, byte) in out.iter_mut().zip(word.to_le_bytes()) {
            *out = i16::from(byte);
        }
    }
    out
}

#[inline(always)]
fn words(packed: &[u8; 12]) -> [u32; 3] {
    let word = |at| u32::from_le_bytes(*field(packed, at));
    [word(0), word(4), word(8)]
}

/// Scales and minima of six bits of Q4_K and Q5_K, each for two sixteens.
#[inline(always)]
fn six_bits(packed: &[u8; 12]) -> ([i16; 16], [i16; 16]) {
    // The low six bits of the first eight bytes are four scales and four minima; their high two
    // belong to the four others, whose low four are in the last bytes, scales in the low nibbles.
    let [a, b, c] = words(packed);
    let high = |word: u32| (word >> 6 & 0x0303_0303) << 4;
    let scales = [a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | high(a)];
    let minima = [b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | high(b)];
    (twice(scales), twice(minima))
}

/// Each byte twice.
#[inline(always)]
fn twice(words: [u32; 2]) -> [i16; 16] {
    let mut out = [0; 16];
    for (out, word) in out.chunks_exact_mut(8).zip(words) {
        for (out, byte) in out.chunks_exact_mut(2).zip(word.to_le_bytes()) {
            out[0] = i16::from(byte);
            out[1] = i16::from(byte);
        }
    }
    out
}

impl SuperBlock<84> for Q2K {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 84], part: usize) -> S::B {
        two_bits(simd, simd.load_u8(field(block, 16 + 32 * (part / 4))), part % 4)
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 84]) -> Scales {
        let (mut scales, mut minima) = ([0; 16], [0; 16]);
        for j in 0..16 {
            scales[j] = i16::from(block[j] & 15);
            minima[j] = i16::from(block[j] >> 4);
        }
        Scales { scale: half(simd, block, 80), minimum: half(simd, block, 82), scales, minima }
    }
}

impl SuperBlock<110> for Q3K {
    /// The third bit is set where the reference does not subtract 4; here 4 is subtracted always.
    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 110], part: usize) -> S::B {
        let low = two_bits(simd, simd.load_u8(field(block, 32 + 32 * (part / 4))), part % 4);
        let high = one_bit(simd, simd.load_u8(field(block, 0)), part);
        simd.or(low, simd.shift_left::<2>(high))
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 110]) -> Scales {
        // Sixteen low halves of four bits, the first eight in the low nibbles; then two high bits
        // for each, four to a byte.
        let [a, b, c] = words(field(block, 96));
        let high = |shift: u32| (c >> shift & 0x0303_0303) << 4;
        let mut scales = bytes_to_i16([
            a & 0x0f0f_0f0f | high(0),
            b & 0x0f0f_0f0f | high(2),
            a >> 4 & 0x0f0f_0f0f | high(4),
            b >> 4 & 0x0f0f_0f0f | high(6),
        ]);
        let mut minima = [0; 16];
        for j in 0..16 {
            scales[j] -= 32;
            minima[j] = 4 * scales[j];
        }
        let scale = half(simd, block, 108);
        Scales { scale, minimum: scale, scales, minima }
    }
}

impl SuperBlock<144> for Q4K {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 144], part: usize) -> S::B {
        nibble(simd, simd.load_u8(field(block, 16 + 32 * (part / 2))), part)
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 144]) -> Scales {
        let (scales, minima) = six_bits(field(block, 4));
        Scales { scale: half(simd, block, 0), minimum: half(simd, block, 2), scales, minima }
    }
}

impl SuperBlock<176> for Q5K {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 176], part: usize) -> S::B {
        let low = nibble(simd, simd.load_u8(field(block, 48 + 32 * (part / 2))), part);
        let high = one_bit(simd, simd.load_u8(field(block, 16)), part);
        simd.or(low, simd.shift_left::<4>(high))
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 176]) -> Scales {
        let (scales, minima) = six_bits(field(block, 4));
        Scales { scale: half(simd, block, 0), minimum: half(simd, block, 2), scales, minima }
    }
}

impl SuperBlock<210> for Q6K {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[u8; 210], part: usize) -> S::B {
        let (half, quarter) = (part / 4, part % 4);
        let low = simd.load_u8(field(block, 64 * half + 32 * (quarter % 2)));
        let low = nibble(simd, low, quarter / 2);
        let high = two_bits(simd, simd.load_u8(field(block, 128 + 32 * half)), quarter);
        simd.or(low, simd.shift_left::<4>(high))
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 210]) -> Scales {
        let (mut scales, mut minima) = ([0; 16], [0; 16]);
        for j in 0..16 {
            scales[j] = i16::from(block[192 + j] as i8);
            minima[j] = 32 * scales[j];
        }
        let scale = half(simd, block, 208);
        Scales { scale, minimum: scale, scales, minima }
    }
}

/// A [`SuperBlock`] as a [`Block`].
pub(super) struct Super<F>(F);

impl<const BYTES: usize, F: SuperBlock<BYTES>> Block<BYTES, 256> for Super<F> {
    type Input = Q8SuperBlock;
    type Scales = Scales;

    fn input(selected: Selected, x: &[f32], _: Activations) -> Vec<Q8SuperBlock> {
        selected.run(ToSuperBlocks { x })
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; BYTES]) -> Scales {
        F::scales(simd, block)
    }

    #[inline(always)]
    fn weights<S: Simd>(simd: S, block: &[u8; BYTES], scales: &Scales, part: usize) -> [S::F; 4] {
        let Scales { scale, minimum, scales, minima } = scales;
        let mut weights = simd.i8_to_f32(F::codes(simd, block, part));
        for p in 0..4 {
            let j = 2 * part + p / 2;
            let scale = simd.splat(scale * f32::from(scales[j]));
            let minimum = simd.splat(-(minimum * f32::from(minima[j])));
            weights[p] = simd.mul_add(weights[p], scale, minimum);
        }
        weights
    }

    #[inline(always)]
    fn add_products<S: Simd, const N: usize>(
        simd: S,
        block: &[u8; BYTES],
        x: [&Q8SuperBlock; N],
        mut totals: [S::F; N],
    ) -> [S::F; N] {
        let Scales { scale, minimum, scales, minima } = F::scales(simd, block);
        let mut products = [simd.splat_i32(0); N];
        for part in 0..8 {
            let codes = F::codes(simd, block, part);
            let scales = simd.halves_i16(scales[2 * part], scales[2 * part + 1]);
            for j in 0..N {
                let x = &x[j].codes.as_chunks::<32>().0[part];
                let pairs = simd.pairs_u7(codes, simd.load_i8(x));
                products[j] = simd.add_i32(products[j], simd.pairs_i16(pairs, scales));
            }
        }
        let minima = simd.load_i16(&minima);
        for j in 0..N {
            let shift = simd.to_f32(simd.pairs_i16(minima, simd.load_i16(&x[j].sums)));
            let products = simd.to_f32(products[j]);
            let shift_scale = simd.splat(-(minimum * x[j].scale));
            totals[j] = simd.mul_add(products, simd.splat(scale * x[j].scale), totals[j]);
            totals[j] = simd.mul_add(shift, shift_scale, totals[j]);
        }
        totals
    }
}
