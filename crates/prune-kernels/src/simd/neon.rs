#![allow(unsafe_code)]

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::{Job, Simd};

// The feature belongs to the target itself, so closures may stand around intrinsics here.

#[target_feature(enable = "neon")]
pub(super) fn neon<J: Job>(job: J) -> J::Output {
    job.run(Neon(()))
}

/// Advanced SIMD. Made only by [`neon`].
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// For each byte, the bytes of the `f32` that go to the lanes whose bit is set, in order; 0xff,
/// which a table look-up turns into zero, for the others.
static PLACES: [[u8; 32]; 256] = {
    let mut places = [[0xffu8; 32]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut lane, mut rank) = (0, 0);
        while lane < 8 {
            if byte >> lane & 1 == 1 {
                let mut i = 0;
                while i < 4 {
                    places[byte][4 * lane + i] = 4 * rank + i as u8;
                    i += 1;
                }
                rank += 1;
            }
            lane += 1;
        }
        byte += 1;
    }
    places
};

/// Writes `#[inline(always)]` methods whose body is one expression of intrinsics.
macro_rules! operations {
    ($(fn $name:ident $(<const $n:ident: i32>)? ($self:ident $(, $arg:ident: $ty:ty)*)
        $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name $(<const $n: i32>)? ($self $(, $arg: $ty)*) $(-> $out)? {
            // SAFETY: a value of this type is made only where its feature is enabled, which is
            // all that these intrinsics ask; those that take a pointer get one from a reference
            // to an array of at least the size that they read or write.
            unsafe { $body }
        }
    )*};
}

type F = [float32x4_t; 2];
type W = [float32x4_t; 4];
type I = [int32x4_t; 2];
type J = [int32x4_t; 4];
type H = [int16x8_t; 2];
type B = [uint8x16_t; 2];

impl Simd for Neon {
    type F = F;
    type W = W;
    type I = I;
    type J = J;
    type H = H;
    type B = B;

    // Twenty-four accumulators and four loaded vectors in thirty-two registers.
    const COLUMNS: usize = 6;

    operations! {
        fn splat(self, v: f32) -> F = [vdupq_n_f32(v); 2];
        fn load(self, from: &[f32; 8]) -> F =
            [vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))];
        fn load_f16(self, from: &[f16; 8]) -> F = {
            let bits = vld1q_u16(from.as_ptr().cast());
            [
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(bits))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(bits))),
            ]
        };
        fn load_bf16(self, from: &[bf16; 8]) -> F = {
            let bits = vld1q_u16(from.as_ptr().cast());
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(bits))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(bits))),
            ]
        };
        fn store(self, v: F, to: &mut [f32; 8]) = {
            vst1q_f32(to.as_mut_ptr(), v[0]);
            vst1q_f32(to.as_mut_ptr().add(4), v[1]);
        };
        fn halves(self, low: f32, high: f32) -> F = [vdupq_n_f32(low), vdupq_n_f32(high)];
        fn add(self, a: F, b: F) -> F = [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])];
        fn mul(self, a: F, b: F) -> F = [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])];
        fn mul_add(self, a: F, b: F, c: F) -> F =
            [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])];
        fn sum(self, v: F) -> f32 = {
            let four = vaddq_f32(v[0], v[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vpadds_f32(two)
        };
        fn repeat4(self, from: &[f32; 4]) -> F = [vld1q_f32(from.as_ptr()); 2];
        fn permute4(self, v: F, index: I) -> F = {
            // Lane i of four is bytes 4i to 4i + 3.
            let three = vdupq_n_u32(3);
            let place = |index| {
                let index = vandq_u32(vreinterpretq_u32_s32(index), three);
                let first = vmulq_n_u32(index, 0x0404_0404);
                vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x0302_0100)))
            };
            let pick = |v, index| {
                vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), place(index)))
            };
            [pick(v[0], index[0]), pick(v[1], index[1])]
        };
        fn expand(self, v: F, lanes: u8) -> F = {
            let table = uint8x16x2_t(vreinterpretq_u8_f32(v[0]), vreinterpretq_u8_f32(v[1]));
            let places = PLACES[usize::from(lanes)].as_ptr();
            [
                vreinterpretq_f32_u8(vqtbl2q_u8(table, vld1q_u8(places))),
                vreinterpretq_f32_u8(vqtbl2q_u8(table, vld1q_u8(places.add(16)))),
            ]
        };
        fn half(self, bits: u16) -> f32 =
            vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))));

        fn wide_splat(self, v: f32) -> W = [vdupq_n_f32(v); 4];
        fn wide_load(self, from: &[f32; 16]) -> W = {
            let p = from.as_ptr();
            [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))]
        };
        fn wide_store(self, v: W, to: &mut [f32; 16]) = {
            vst1q_f32(to.as_mut_ptr(), v[0]);
            vst1q_f32(to.as_mut_ptr().add(4), v[1]);
            vst1q_f32(to.as_mut_ptr().add(8), v[2]);
            vst1q_f32(to.as_mut_ptr().add(12), v[3]);
        };
        fn wide_add(self, a: W, b: W) -> W = [
            vaddq_f32(a[0], b[0]),
            vaddq_f32(a[1], b[1]),
            vaddq_f32(a[2], b[2]),
            vaddq_f32(a[3], b[3]),
        ];
        fn wide_mul_add(self, a: W, b: W, c: W) -> W = [
            vfmaq_f32(c[0], a[0], b[0]),
            vfmaq_f32(c[1], a[1], b[1]),
            vfmaq_f32(c[2], a[2], b[2]),
            vfmaq_f32(c[3], a[3], b[3]),
        ];
        fn wide_fold(self, v: W) -> F = [vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3])];
        fn wide_splat_i32(self, v: i32) -> J = [vdupq_n_s32(v); 4];
        fn wide_load_u32(self, from: &[u32; 16]) -> J = {
            let p: *const i32 = from.as_ptr().cast();
            [vld1q_s32(p), vld1q_s32(p.add(4)), vld1q_s32(p.add(8)), vld1q_s32(p.add(12))]
        };
        fn wide_and_i32(self, a: J, b: J) -> J = [
            vandq_s32(a[0], b[0]),
            vandq_s32(a[1], b[1]),
            vandq_s32(a[2], b[2]),
            vandq_s32(a[3], b[3]),
        ];
        fn wide_shift_right(self, a: J, count: i32) -> J = {
            // A left shift by a negative count.
            let by = vdupq_n_s32(-count);
            a.map(|a| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), by)))
        };
        fn wide_to_f32(self, a: J) -> W = a.map(|a| vcvtq_f32_s32(a));

        fn splat_i32(self, v: i32) -> I = [vdupq_n_s32(v); 2];
        fn halves_i32(self, low: i32, high: i32) -> I = [vdupq_n_s32(low), vdupq_n_s32(high)];
        fn load_u32(self, from: &[u32; 8]) -> I =
            [vld1q_s32(from.as_ptr().cast()), vld1q_s32(from.as_ptr().add(4).cast())];
        fn load_i32(self, from: &[i32; 8]) -> I =
            [vld1q_s32(from.as_ptr()), vld1q_s32(from.as_ptr().add(4))];
        fn add_i32(self, a: I, b: I) -> I = [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1])];
        fn sub_i32(self, a: I, b: I) -> I = [vsubq_s32(a[0], b[0]), vsubq_s32(a[1], b[1])];
        fn mul_i32(self, a: I, b: I) -> I = [vmulq_s32(a[0], b[0]), vmulq_s32(a[1], b[1])];
        fn and_i32(self, a: I, b: I) -> I = [vandq_s32(a[0], b[0]), vandq_s32(a[1], b[1])];
        fn shift_right_each(self, a: I, counts: I) -> I = {
            // A left shift by a negative count.
            let shift = |a, n| {
                vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vnegq_s32(n)))
            };
            [shift(a[0], counts[0]), shift(a[1], counts[1])]
        };
        fn to_f32(self, a: I) -> F = [vcvtq_f32_s32(a[0]), vcvtq_f32_s32(a[1])];

        fn bytes(self, a: I) -> B = [vreinterpretq_u8_s32(a[0]), vreinterpretq_u8_s32(a[1])];
        fn i8_to_f32(self, a: B) -> [F; 4] = {
            let eight = |a| {
                let a = vmovl_s8(a);
                [
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))),
                    vcvtq_f32_s32(vmovl_s16(vget_high_s16(a))),
                ]
            };
            let (a, b) = (vreinterpretq_s8_u8(a[0]), vreinterpretq_s8_u8(a[1]));
            [
                eight(vget_low_s8(a)),
                eight(vget_high_s8(a)),
                eight(vget_low_s8(b)),
                eight(vget_high_s8(b)),
            ]
        };

        fn load_u8(self, from: &[u8; 32]) -> B =
            [vld1q_u8(from.as_ptr()), vld1q_u8(from.as_ptr().add(16))];
        fn load_i8(self, from: &[i8; 32]) -> B =
            [vld1q_u8(from.as_ptr().cast()), vld1q_u8(from.as_ptr().add(16).cast())];
        fn splat_u8(self, v: u8) -> B = [vdupq_n_u8(v); 2];
        fn nibbles(self, from: &[u8; 16]) -> B = {
            let both = vld1q_u8(from.as_ptr());
            [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)]
        };
        fn and(self, a: B, b: B) -> B = [vandq_u8(a[0], b[0]), vandq_u8(a[1], b[1])];
        fn or(self, a: B, b: B) -> B = [vorrq_u8(a[0], b[0]), vorrq_u8(a[1], b[1])];
        fn xor(self, a: B, b: B) -> B = [veorq_u8(a[0], b[0]), veorq_u8(a[1], b[1])];
        fn sub_u8(self, a: B, b: B) -> B = [vsubq_u8(a[0], b[0]), vsubq_u8(a[1], b[1])];
        // By a register, for the immediate form has no shift by zero.
        fn shift_right<const N: i32>(self, a: B) -> B = {
            let n = vdupq_n_s8(-N as i8);
            [vshlq_u8(a[0], n), vshlq_u8(a[1], n)]
        };
        fn shift_left<const N: i32>(self, a: B) -> B = {
            let n = vdupq_n_s8(N as i8);
            [vshlq_u8(a[0], n), vshlq_u8(a[1], n)]
        };
        fn select_u8(self, lanes: u32, byte: u8) -> B = {
            let bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let [a, b, c, d] = lanes.to_le_bytes();
            let byte = vdupq_n_u8(byte);
            let select = |low, high| {
                let spread = vcombine_u8(vdup_n_u8(low), vdup_n_u8(high));
                vandq_u8(vtstq_u8(spread, bits), byte)
            };
            [select(a, b), select(c, d)]
        };
        fn pairs_i8(self, a: B, b: B) -> H = {
            let pairs = |a, b| {
                let (a, b) = (vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b));
                let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
                vpaddq_s16(low, vmull_high_s8(a, b))
            };
            [pairs(a[0], b[0]), pairs(a[1], b[1])]
        };
        fn add_i16(self, a: H, b: H) -> H = [vaddq_s16(a[0], b[0]), vaddq_s16(a[1], b[1])];
        fn halves_i16(self, low: i16, high: i16) -> H = [vdupq_n_s16(low), vdupq_n_s16(high)];
        fn load_i16(self, from: &[i16; 16]) -> H =
            [vld1q_s16(from.as_ptr()), vld1q_s16(from.as_ptr().add(8))];
        fn pairs_i16(self, a: H, b: H) -> I = {
            let pairs = |a, b| {
                let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
                vpaddq_s32(low, vmull_high_s16(a, b))
            };
            [pairs(a[0], b[0]), pairs(a[1], b[1])]
        };
    }

    #[inline(always)]
    fn wide_load_f16(self, from: &[f16; 16]) -> W {
        let (from, _) = from.as_chunks::<8>();
        let ([a, b], [c, d]) = (self.load_f16(&from[0]), self.load_f16(&from[1]));
        [a, b, c, d]
    }

    #[inline(always)]
    fn wide_load_bf16(self, from: &[bf16; 16]) -> W {
        let (from, _) = from.as_chunks::<8>();
        let ([a, b], [c, d]) = (self.load_bf16(&from[0]), self.load_bf16(&from[1]));
        [a, b, c, d]
    }

    #[inline(always)]
    fn pairs_u7(self, a: B, b: B) -> H {
        self.pairs_i8(a, b)
    }

    #[inline(always)]
    unsafe fn gather(self, from: &[f32], index: I) -> F {
        let mut lanes = [0i32; 8];
        let mut values = [0f32; 8];
        // SAFETY: the feature as above; both arrays hold eight.
        unsafe {
            vst1q_s32(lanes.as_mut_ptr(), index[0]);
            vst1q_s32(lanes.as_mut_ptr().add(4), index[1]);
        }
        for (value, lane) in values.iter_mut().zip(lanes) {
            // SAFETY: the caller keeps every index inside `from`.
            *value = unsafe { *from.get_unchecked(lane as u32 as usize) };
        }
        self.load(&values)
    }
}
