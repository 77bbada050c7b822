use half::{bf16, f16};
use prune_core::Element;

/// A number in which a matrix of this crate stores its elements: `f32`, `f16` or `bf16`.
///
/// Products are computed in f32 whatever the storage; a half-precision element takes half of the
/// memory that a product has to read.
///
/// ```
/// use prune_kernels::Storage;
/// fn bytes<T: Storage>(elements: usize) -> usize {
///     elements * T::DTYPE.size()
/// }
/// assert_eq!(bytes::<f32>(10), 2 * bytes::<half::bf16>(10));
/// ```
pub trait Storage: Element<Sum = f32> + sealed::Lanes {}

impl Storage for f32 {}
impl Storage for f16 {}
impl Storage for bf16 {}

mod sealed {
    use std::borrow::Cow;

    use half::{bf16, f16};

    use crate::simd::{Simd, half_to_f32};

    /// Loads of stored elements, which are finite, as `f32`.
    pub trait Lanes: Copy {
        /// Without a question for the features of the processor, which `half` asks every time.
        fn one(self) -> f32;
        /// The values, copied unless they are f32.
        fn as_f32(values: &[Self]) -> Cow<'_, [f32]> {
            Cow::Owned(values.iter().map(|v| v.one()).collect())
        }

        fn eight<S: Simd>(simd: S, from: &[Self; 8]) -> S::F;
        fn sixteen<S: Simd>(simd: S, from: &[Self; 16]) -> S::W;
    }

    impl Lanes for f32 {
        #[inline(always)]
        fn one(self) -> f32 {
            self
        }

        fn as_f32(values: &[Self]) -> Cow<'_, [f32]> {
            Cow::Borrowed(values)
        }

        #[inline(always)]
        fn eight<S: Simd>(simd: S, from: &[Self; 8]) -> S::F {
            simd.load(from)
        }

        #[inline(always)]
        fn sixteen<S: Simd>(simd: S, from: &[Self; 16]) -> S::W {
            simd.wide_load(from)
        }
    }

    impl Lanes for f16 {
        #[inline(always)]
        fn one(self) -> f32 {
            half_to_f32(self.to_bits())
        }

        #[inline(always)]
        fn eight<S: Simd>(simd: S, from: &[Self; 8]) -> S::F {
            simd.load_f16(from)
        }

        #[inline(always)]
        fn sixteen<S: Simd>(simd: S, from: &[Self; 16]) -> S::W {
            simd.wide_load_f16(from)
        }
    }

    impl Lanes for bf16 {
        #[inline(always)]
        fn one(self) -> f32 {
            f32::from_bits(u32::from(self.to_bits()) << 16)
        }

        #[inline(always)]
        fn eight<S: Simd>(simd: S, from: &[Self; 8]) -> S::F {
            simd.load_bf16(from)
        }

        #[inline(always)]
        fn sixteen<S: Simd>(simd: S, from: &[Self; 16]) -> S::W {
            simd.wide_load_bf16(from)
        }
    }
}
