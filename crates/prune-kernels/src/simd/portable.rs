use std::array::from_fn;

use half::{bf16, f16};

use super::{Job, Simd};

pub(super) fn portable<J: Job>(job: J) -> J::Output {
    job.run(Portable)
}

/// Arrays and loops, which the compiler vectorises with what the target always has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// `v` is finite. One multiplication by 2^112 moves the exponent from its place in half precision,
/// subnormal numbers included, and vectorises, unlike a conversion that asks for the processor's
/// features.
#[inline(always)]
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

impl Simd for Portable {
    type F = [f32; 8];
    type W = [f32; 16];
    type I = [i32; 8];
    type J = [i32; 16];
    type H = [i16; 16];
    type B = [u8; 32];

    const COLUMNS: usize = 2;

    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 8] {
        [v; 8]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> [f32; 8] {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; 8]) -> [f32; 8] {
        from_fn(|i| half_to_f32(from[i].to_bits()))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; 8]) -> [f32; 8] {
        from_fn(|i| f32::from_bits(u32::from(from[i].to_bits()) << 16))
    }

    #[inline(always)]
    fn store(self, v: [f32; 8], to: &mut [f32; 8]) {
        *to = v;
    }

    #[inline(always)]
    fn halves(self, low: f32, high: f32) -> [f32; 8] {
        from_fn(|i| if i < 4 { low } else { high })
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn sum(self, v: [f32; 8]) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    fn repeat4(self, from: &[f32; 4]) -> [f32; 8] {
        from_fn(|i| from[i % 4])
    }

    #[inline(always)]
    fn permute4(self, v: [f32; 8], index: [i32; 8]) -> [f32; 8] {
        from_fn(|i| v[(i & 4) | (index[i] & 3) as usize])
    }

    #[inline(always)]
    fn expand(self, v: [f32; 8], lanes: u8) -> [f32; 8] {
        let mut next = 0;
        from_fn(|i| {
            let set = lanes >> i & 1;
            let value = if set == 1 { v[next & 7] } else { 0.0 };
            next += usize::from(set);
            value
        })
    }

    // The contract is for the sets that do not check.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn gather(self, from: &[f32], index: [i32; 8]) -> [f32; 8] {
        from_fn(|i| from[index[i] as u32 as usize])
    }

    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        half_to_f32(bits)
    }

    #[inline(always)]
    fn wide_splat(self, v: f32) -> [f32; 16] {
        [v; 16]
    }

    #[inline(always)]
    fn wide_load(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }

    #[inline(always)]
    fn wide_load_f16(self, from: &[f16; 16]) -> [f32; 16] {
        from_fn(|i| half_to_f32(from[i].to_bits()))
    }

    #[inline(always)]
    fn wide_load_bf16(self, from: &[bf16; 16]) -> [f32; 16] {
        from_fn(|i| f32::from_bits(u32::from(from[i].to_bits()) << 16))
    }

    #[inline(always)]
    fn wide_store(self, v: [f32; 16], to: &mut [f32; 16]) {
        *to = v;
    }

    #[inline(always)]
    fn wide_add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn wide_mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn wide_fold(self, v: [f32; 16]) -> [f32; 8] {
        from_fn(|i| v[i] + v[i + 8])
    }

    #[inline(always)]
    fn wide_splat_i32(self, v: i32) -> [i32; 16] {
        [v; 16]
    }

    #[inline(always)]
    fn wide_load_u32(self, from: &[u32; 16]) -> [i32; 16] {
        from_fn(|i| from[i] as i32)
    }

    #[inline(always)]
    fn wide_and_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn wide_shift_right(self, a: [i32; 16], count: i32) -> [i32; 16] {
        from_fn(|i| (a[i] as u32).wrapping_shr(count as u32) as i32)
    }

    #[inline(always)]
    fn wide_to_f32(self, a: [i32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] as f32)
    }

    #[inline(always)]
    fn splat_i32(self, v: i32) -> [i32; 8] {
        [v; 8]
    }

    #[inline(always)]
    fn halves_i32(self, low: i32, high: i32) -> [i32; 8] {
        from_fn(|i| if i < 4 { low } else { high })
    }

    #[inline(always)]
    fn load_u32(self, from: &[u32; 8]) -> [i32; 8] {
        from_fn(|i| from[i] as i32)
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; 8]) -> [i32; 8] {
        *from
    }

    #[inline(always)]
    fn add_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn mul_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|i| a[i].wrapping_mul(b[i]))
    }

    #[inline(always)]
    fn and_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn shift_right_each(self, a: [i32; 8], counts: [i32; 8]) -> [i32; 8] {
        from_fn(|i| (a[i] as u32).wrapping_shr(counts[i] as u32) as i32)
    }

    #[inline(always)]
    fn to_f32(self, a: [i32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] as f32)
    }

    #[inline(always)]
    fn bytes(self, a: [i32; 8]) -> [u8; 32] {
        from_fn(|i| (a[i / 4] >> (8 * (i % 4))) as u8)
    }

    #[inline(always)]
    fn i8_to_f32(self, a: [u8; 32]) -> [[f32; 8]; 4] {
        from_fn(|p| from_fn(|i| f32::from(a[8 * p + i] as i8)))
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; 32]) -> [u8; 32] {
        *from
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; 32]) -> [u8; 32] {
        from_fn(|i| from[i] as u8)
    }

    #[inline(always)]
    fn splat_u8(self, v: u8) -> [u8; 32] {
        [v; 32]
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> [u8; 32] {
        from_fn(|i| if i < 16 { from[i] & 15 } else { from[i - 16] >> 4 })
    }

    #[inline(always)]
    fn and(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn xor(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i] ^ b[i])
    }

    #[inline(always)]
    fn sub_u8(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i] >> N)
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i] << N)
    }

    #[inline(always)]
    fn select_u8(self, lanes: u32, byte: u8) -> [u8; 32] {
        from_fn(|i| (lanes >> i & 1) as u8 * byte)
    }

    #[inline(always)]
    fn pairs_u7(self, a: [u8; 32], b: [u8; 32]) -> [i16; 16] {
        self.pairs_i8(a, b)
    }

    #[inline(always)]
    fn pairs_i8(self, a: [u8; 32], b: [u8; 32]) -> [i16; 16] {
        let product = |i: usize| i16::from(a[i] as i8) * i16::from(b[i] as i8);
        from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1)))
    }

    #[inline(always)]
    fn add_i16(self, a: [i16; 16], b: [i16; 16]) -> [i16; 16] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn halves_i16(self, low: i16, high: i16) -> [i16; 16] {
        from_fn(|i| if i < 8 { low } else { high })
    }

    #[inline(always)]
    fn load_i16(self, from: &[i16; 16]) -> [i16; 16] {
        *from
    }

    #[inline(always)]
    fn pairs_i16(self, a: [i16; 16], b: [i16; 16]) -> [i32; 8] {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(half_to_f32(bits).to_bits(), half.to_f32().to_bits());
            }
        }
    }
}
