#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Job, Simd};

#[target_feature(enable = "avx2,fma,f16c,popcnt,bmi1,bmi2,lzcnt")]
pub(super) fn avx2<J: Job>(job: J) -> J::Output {
    job.run(Avx2(()))
}

#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi1,bmi2,lzcnt"
)]
pub(super) fn avx512<J: Job>(job: J) -> J::Output {
    job.run(Avx512(()))
}

/// AVX2, FMA, F16C and the bit counts. Made only by [`avx2`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// The same with AVX-512 F, BW, DQ and VL. Made only by [`avx512`].
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// For each byte, where its set bits stand among themselves; 0x80 at the others.
static RANKS: [[i8; 8]; 256] = {
    let mut ranks = [[-128i8; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut lane, mut rank) = (0, 0);
        while lane < 8 {
            if byte >> lane & 1 == 1 {
                ranks[byte][lane] = rank;
                rank += 1;
            }
            lane += 1;
        }
        byte += 1;
    }
    ranks
};

/// Writes `#[inline(always)]` methods whose body is one expression of intrinsics.
macro_rules! operations {
    ($(fn $name:ident $(<const $n:ident: i32>)? ($self:ident $(, $arg:ident: $ty:ty)*)
        $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name $(<const $n: i32>)? ($self $(, $arg: $ty)*) $(-> $out)? {
            // SAFETY: a value of this type is made only where its features are enabled, which is
            // all that these intrinsics ask; those that take a pointer get one from a reference
            // to an array of the size that they read or write, and need no alignment.
            unsafe { $body }
        }
    )*};
}

/// What both sets do with 256-bit registers.
macro_rules! eight_lanes {
    () => {
        type F = __m256;
        type I = __m256i;
        type H = __m256i;
        type B = __m256i;

        operations! {
            fn splat(self, v: f32) -> __m256 = _mm256_set1_ps(v);
            fn load(self, from: &[f32; 8]) -> __m256 = _mm256_loadu_ps(from.as_ptr());
            fn load_f16(self, from: &[f16; 8]) -> __m256 =
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()));
            fn load_bf16(self, from: &[bf16; 8]) -> __m256 =
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                    _mm_loadu_si128(from.as_ptr().cast()),
                )));
            fn store(self, v: __m256, to: &mut [f32; 8]) = _mm256_storeu_ps(to.as_mut_ptr(), v);
            fn halves(self, low: f32, high: f32) -> __m256 =
                _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low));
            fn add(self, a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
            fn mul(self, a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 =
                _mm256_fmadd_ps(a, b, c);
            fn sum(self, v: __m256) -> f32 = {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            };
            fn repeat4(self, from: &[f32; 4]) -> __m256 = {
                let four = _mm_loadu_ps(from.as_ptr());
                _mm256_set_m128(four, four)
            };
            fn permute4(self, v: __m256, index: __m256i) -> __m256 =
                _mm256_permutevar_ps(v, index);
            fn half(self, bits: u16) -> f32 =
                _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))));

            fn splat_i32(self, v: i32) -> __m256i = _mm256_set1_epi32(v);
            fn halves_i32(self, low: i32, high: i32) -> __m256i =
                _mm256_set_m128i(_mm_set1_epi32(high), _mm_set1_epi32(low));
            fn load_u32(self, from: &[u32; 8]) -> __m256i =
                _mm256_loadu_si256(from.as_ptr().cast());
            fn load_i32(self, from: &[i32; 8]) -> __m256i =
                _mm256_loadu_si256(from.as_ptr().cast());
            fn add_i32(self, a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
            fn sub_i32(self, a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
            fn mul_i32(self, a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
            fn and_i32(self, a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
            fn shift_right_each(self, a: __m256i, counts: __m256i) -> __m256i =
                _mm256_srlv_epi32(a, counts);
            fn to_f32(self, a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);

            fn i8_to_f32(self, a: __m256i) -> [__m256; 4] = {
                let (low, high) = (_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
                [
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(low))),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(high))),
                ]
            };

            fn load_u8(self, from: &[u8; 32]) -> __m256i =
                _mm256_loadu_si256(from.as_ptr().cast());
            fn load_i8(self, from: &[i8; 32]) -> __m256i =
                _mm256_loadu_si256(from.as_ptr().cast());
            fn splat_u8(self, v: u8) -> __m256i = _mm256_set1_epi8(v as i8);
            fn nibbles(self, from: &[u8; 16]) -> __m256i = {
                let low = _mm_loadu_si128(from.as_ptr().cast());
                let both = _mm256_set_m128i(_mm_srli_epi16::<4>(low), low);
                _mm256_and_si256(both, _mm256_set1_epi8(15))
            };
            fn and(self, a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
            fn or(self, a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
            fn xor(self, a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
            fn sub_u8(self, a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi8(a, b);
            fn shift_right<const N: i32>(self, a: __m256i) -> __m256i = _mm256_and_si256(
                _mm256_srli_epi16::<N>(a),
                _mm256_set1_epi8((0xffu32 >> N) as i8),
            );
            fn shift_left<const N: i32>(self, a: __m256i) -> __m256i = _mm256_and_si256(
                _mm256_slli_epi16::<N>(a),
                _mm256_set1_epi8((0xffu32 << N) as i8),
            );
            fn select_u8(self, lanes: u32, byte: u8) -> __m256i = {
                // Byte i of the word to byte lanes 8i to 8i + 7, of which each tests its bit.
                let spread = _mm256_shuffle_epi8(
                    _mm256_set1_epi32(lanes as i32),
                    _mm256_setr_epi64x(
                        0,
                        0x0101_0101_0101_0101,
                        0x0202_0202_0202_0202,
                        0x0303_0303_0303_0303,
                    ),
                );
                let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bits), bits);
                _mm256_and_si256(set, _mm256_set1_epi8(byte as i8))
            };
            fn pairs_u7(self, a: __m256i, b: __m256i) -> __m256i = _mm256_maddubs_epi16(a, b);
            // The magnitude of −128 is 128 as an unsigned byte, and 2 · 128 · 127 fits i16.
            fn pairs_i8(self, a: __m256i, b: __m256i) -> __m256i =
                _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
            fn add_i16(self, a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi16(a, b);
            fn halves_i16(self, low: i16, high: i16) -> __m256i =
                _mm256_set_m128i(_mm_set1_epi16(high), _mm_set1_epi16(low));
            fn load_i16(self, from: &[i16; 16]) -> __m256i =
                _mm256_loadu_si256(from.as_ptr().cast());
            fn pairs_i16(self, a: __m256i, b: __m256i) -> __m256i = _mm256_madd_epi16(a, b);
        }

        #[inline(always)]
        fn bytes(self, a: __m256i) -> __m256i {
            a
        }

        #[inline(always)]
        unsafe fn gather(self, from: &[f32], index: __m256i) -> __m256 {
            // SAFETY: the features as above; the caller keeps every index inside `from` and
            // below 2^31, so that none is negative.
            unsafe { _mm256_i32gather_ps::<4>(from.as_ptr(), index) }
        }
    };
}

impl Simd for Avx2 {
    type W = [__m256; 2];
    type J = [__m256i; 2];

    // Twelve accumulators, two loaded vectors and one splat in sixteen registers.
    const COLUMNS: usize = 6;

    eight_lanes!();

    #[inline(always)]
    fn wide_load_f16(self, from: &[f16; 16]) -> [__m256; 2] {
        let (from, _) = from.as_chunks::<8>();
        [self.load_f16(&from[0]), self.load_f16(&from[1])]
    }

    #[inline(always)]
    fn wide_load_bf16(self, from: &[bf16; 16]) -> [__m256; 2] {
        let (from, _) = from.as_chunks::<8>();
        [self.load_bf16(&from[0]), self.load_bf16(&from[1])]
    }

    operations! {
        fn expand(self, v: __m256, lanes: u8) -> __m256 = {
            let ranks = _mm256_cvtepi8_epi32(_mm_loadl_epi64(
                RANKS[usize::from(lanes)].as_ptr().cast(),
            ));
            // The sign of a rank says that its lane gets zero.
            let moved = _mm256_permutevar8x32_ps(v, ranks);
            _mm256_blendv_ps(moved, _mm256_setzero_ps(), _mm256_castsi256_ps(ranks))
        };
        fn wide_splat(self, v: f32) -> [__m256; 2] = [_mm256_set1_ps(v); 2];
        fn wide_load(self, from: &[f32; 16]) -> [__m256; 2] =
            [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))];
        fn wide_store(self, v: [__m256; 2], to: &mut [f32; 16]) = {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        };
        fn wide_add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] =
            [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
        fn wide_mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] =
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
        fn wide_fold(self, v: [__m256; 2]) -> __m256 = _mm256_add_ps(v[0], v[1]);
        fn wide_splat_i32(self, v: i32) -> [__m256i; 2] = [_mm256_set1_epi32(v); 2];
        fn wide_load_u32(self, from: &[u32; 16]) -> [__m256i; 2] = [
            _mm256_loadu_si256(from.as_ptr().cast()),
            _mm256_loadu_si256(from.as_ptr().add(8).cast()),
        ];
        fn wide_and_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] =
            [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])];
        fn wide_shift_right(self, a: [__m256i; 2], count: i32) -> [__m256i; 2] = {
            let count = _mm_cvtsi32_si128(count);
            [_mm256_srl_epi32(a[0], count), _mm256_srl_epi32(a[1], count)]
        };
        fn wide_to_f32(self, a: [__m256i; 2]) -> [__m256; 2] =
            [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])];
    }
}

impl Simd for Avx512 {
    type W = __m512;
    type J = __m512i;

    // As many independent chains as hide the latency of the multiplication, and some.
    const COLUMNS: usize = 12;

    eight_lanes!();

    operations! {
        // Not `vexpandps`: with the load of `v` in it, it is microcode on some processors.
        fn expand(self, v: __m256, lanes: u8) -> __m256 = {
            let ranks = _mm256_cvtepi8_epi32(_mm_loadl_epi64(
                RANKS[usize::from(lanes)].as_ptr().cast(),
            ));
            _mm256_maskz_permutexvar_ps(lanes, ranks, v)
        };
        fn wide_splat(self, v: f32) -> __m512 = _mm512_set1_ps(v);
        fn wide_load(self, from: &[f32; 16]) -> __m512 = _mm512_loadu_ps(from.as_ptr());
        fn wide_load_f16(self, from: &[f16; 16]) -> __m512 =
            _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
        fn wide_load_bf16(self, from: &[bf16; 16]) -> __m512 =
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                _mm256_loadu_si256(from.as_ptr().cast()),
            )));
        fn wide_store(self, v: __m512, to: &mut [f32; 16]) =
            _mm512_storeu_ps(to.as_mut_ptr(), v);
        fn wide_add(self, a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn wide_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 =
            _mm512_fmadd_ps(a, b, c);
        fn wide_fold(self, v: __m512) -> __m256 =
            _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
        fn wide_splat_i32(self, v: i32) -> __m512i = _mm512_set1_epi32(v);
        fn wide_load_u32(self, from: &[u32; 16]) -> __m512i =
            _mm512_loadu_si512(from.as_ptr().cast());
        fn wide_and_i32(self, a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        fn wide_shift_right(self, a: __m512i, count: i32) -> __m512i =
            _mm512_srl_epi32(a, _mm_cvtsi32_si128(count));
        fn wide_to_f32(self, a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
    }
}
