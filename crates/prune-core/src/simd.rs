//! The widest vectors that the processor has, chosen when the program runs.
//!
//! No operation here rounds, so that the bits of a result do not depend on the processor.

/// Runs `f` compiled for the widest vectors. Only what is inlined into `f` gains by it.
#[inline(always)]
pub(crate) fn widest<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Runs `job` as [`widest`] does, handing it the comparisons of those vectors.
#[inline(always)]
pub(crate) fn with_lanes<J: Job>(job: J) -> J::Output {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        if let Some(lanes) = pulp::x86::V4::try_new() {
            return lanes.vectorize(
                #[inline(always)]
                || job.run(lanes),
            );
        }
        if let Some(lanes) = pulp::x86::V3::try_new() {
            return lanes.vectorize(
                #[inline(always)]
                || job.run(lanes),
            );
        }
    }
    widest(
        #[inline(always)]
        || job.run(Portable),
    )
}

/// What [`with_lanes`] runs; mark `run` `#[inline(always)]`.
pub(crate) trait Job {
    type Output;

    fn run(self, lanes: impl Lanes) -> Self::Output;
}

/// Comparisons that compilers do not find by themselves.
pub(crate) trait Lanes: Copy {
    /// Bit `i` says whether score `i` is at least `limit`; not for NaN.
    fn at_least(self, scores: &[f32; 64], limit: f32) -> u64;

    /// Bit `i` says whether `a[i]` is at least `b[i]`; not for NaN.
    fn at_least_each(self, a: &[f32; 64], b: &[f32; 64]) -> u64;

    /// At `i`, the score at `i ^ distance`; `distance < 16`.
    fn partners(self, scores: &[f32; 64], distance: usize) -> [f32; 64];
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
impl Lanes for pulp::x86::V4 {
    #[inline(always)]
    fn at_least(self, scores: &[f32; 64], limit: f32) -> u64 {
        let scores: &[pulp::f32x16; 4] = pulp::bytemuck::cast_ref(scores);
        let limit = self.splat_f32x16(limit);
        let word = |i: usize| u64::from(self.cmp_ge_f32x16(scores[i], limit).0) << (16 * i);
        word(0) | word(1) | word(2) | word(3)
    }

    #[inline(always)]
    fn at_least_each(self, a: &[f32; 64], b: &[f32; 64]) -> u64 {
        let a: &[pulp::f32x16; 4] = pulp::bytemuck::cast_ref(a);
        let b: &[pulp::f32x16; 4] = pulp::bytemuck::cast_ref(b);
        let word = |i: usize| u64::from(self.cmp_ge_f32x16(a[i], b[i]).0) << (16 * i);
        word(0) | word(1) | word(2) | word(3)
    }

    #[inline(always)]
    fn partners(self, scores: &[f32; 64], distance: usize) -> [f32; 64] {
        let scores: &[pulp::f32x16; 4] = pulp::bytemuck::cast_ref(scores);
        let places: [i32; 16] = std::array::from_fn(|i| (i ^ distance) as i32);
        let place = |i: usize| -> pulp::f32x16 {
            pulp::cast(
                self.avx512f._mm512_permutexvar_ps(pulp::cast(places), pulp::cast(scores[i])),
            )
        };
        pulp::cast([place(0), place(1), place(2), place(3)])
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
impl Lanes for pulp::x86::V3 {
    #[inline(always)]
    fn at_least(self, scores: &[f32; 64], limit: f32) -> u64 {
        let scores: &[pulp::f32x8; 8] = pulp::bytemuck::cast_ref(scores);
        let limit = self.splat_f32x8(limit);
        (0..8).fold(0, |word, i| {
            let signs = pulp::cast(self.cmp_ge_f32x8(scores[i], limit));
            word | u64::from(self.avx._mm256_movemask_ps(signs) as u8) << (8 * i)
        })
    }

    #[inline(always)]
    fn at_least_each(self, a: &[f32; 64], b: &[f32; 64]) -> u64 {
        let a: &[pulp::f32x8; 8] = pulp::bytemuck::cast_ref(a);
        let b: &[pulp::f32x8; 8] = pulp::bytemuck::cast_ref(b);
        (0..8).fold(0, |word, i| {
            let signs = pulp::cast(self.cmp_ge_f32x8(a[i], b[i]));
            word | u64::from(self.avx._mm256_movemask_ps(signs) as u8) << (8 * i)
        })
    }

    #[inline(always)]
    fn partners(self, scores: &[f32; 64], distance: usize) -> [f32; 64] {
        let scores: &[pulp::f32x8; 8] = pulp::bytemuck::cast_ref(scores);
        let places: [i32; 8] = std::array::from_fn(|i| ((i ^ distance) % 8) as i32);
        let eights: [pulp::f32x8; 8] = std::array::from_fn(|i| {
            let from = pulp::cast(scores[i ^ (distance / 8)]);
            pulp::cast(self.avx2._mm256_permutevar8x32_ps(from, pulp::cast(places)))
        });
        pulp::cast(eights)
    }
}

/// For processors without lanes of their own here.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    #[inline(always)]
    fn at_least(self, scores: &[f32; 64], limit: f32) -> u64 {
        let mut bytes = [0; 64];
        for i in 0..64 {
            bytes[i] = u8::from(scores[i] >= limit);
        }
        pack(&bytes)
    }

    #[inline(always)]
    fn at_least_each(self, a: &[f32; 64], b: &[f32; 64]) -> u64 {
        let mut bytes = [0; 64];
        for i in 0..64 {
            bytes[i] = u8::from(a[i] >= b[i]);
        }
        pack(&bytes)
    }

    #[inline(always)]
    fn partners(self, scores: &[f32; 64], distance: usize) -> [f32; 64] {
        std::array::from_fn(|i| scores[i ^ distance])
    }
}

/// 64 bytes that are 0 or 1 as the bits of a word, the first as the lowest.
#[inline(always)]
fn pack(bytes: &[u8; 64]) -> u64 {
    // The product moves bit 0 of byte i to bit 56 + i; no two of its terms meet.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let mut word = 0;
    for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
        word |= (u64::from_le_bytes(*eight).wrapping_mul(GATHER) >> 56) << (8 * i);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that lanes do with a row.
    struct All<'a>(&'a [f32; 64], f32, usize);

    impl Job for All<'_> {
        type Output = (u64, u64, [f32; 64]);

        fn run(self, lanes: impl Lanes) -> Self::Output {
            let partners = lanes.partners(self.0, self.2);
            (lanes.at_least(self.0, self.1), lanes.at_least_each(self.0, &partners), partners)
        }
    }

    proptest! {
        #[test]
        fn all_lanes_do_alike(
            scores in proptest::collection::vec(-4i8..4, 64), limit in -4i8..4, distance in 0usize..16,
        ) {
            let scores: [f32; 64] = std::array::from_fn(|i| f32::from(scores[i]) * 0.5);
            let limit = f32::from(limit) * 0.5;
            let word = |f: &dyn Fn(usize) -> bool| (0..64).fold(0, |w, i| w | u64::from(f(i)) << i);
            let expected = (
                word(&|i| scores[i] >= limit),
                word(&|i| scores[i] >= scores[i ^ distance]),
                std::array::from_fn(|i| scores[i ^ distance]),
            );
            let all = || All(&scores, limit, distance);
            prop_assert_eq!(all().run(Portable), expected);
            prop_assert_eq!(with_lanes(all()), expected);
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            if let Some(lanes) = pulp::x86::V3::try_new() {
                prop_assert_eq!(all().run(lanes), expected);
            }
        }
    }

    #[test]
    fn packing_keeps_the_order_of_bytes() {
        for i in 0..64 {
            let mut bytes = [0; 64];
            bytes[i] = 1;
            assert_eq!(pack(&bytes), 1 << i);
        }
        assert_eq!(pack(&[1; 64]), u64::MAX);
    }
}
