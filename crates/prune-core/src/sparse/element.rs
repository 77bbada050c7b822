use std::fmt;
use std::ops::AddAssign;

use half::{bf16, f16};
use num_traits::Float;

use crate::DType;

/// A number that a sparse matrix can hold: `f64`, `f32`, `f16` or `bf16`.
///
/// ```
/// use prune_core::{DType, Element};
/// fn bytes<T: Element>() -> usize {
///     T::DTYPE.size()
/// }
/// assert_eq!(<f32 as Element>::DTYPE, DType::F32);
/// assert_eq!(bytes::<half::bf16>(), 2);
/// assert_eq!(half::f16::narrow(half::f16::ONE.widen() + 0.5).to_f32(), 1.5);
/// ```
pub trait Element: Float + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The type in which products are summed: `f64` for `f64`, `f32` for the others.
    type Sum: Float + AddAssign;

    /// The name of the type in files.
    const DTYPE: DType;

    /// The same value in the type of sums; exact.
    fn widen(self) -> Self::Sum;

    /// A sum rounded to the nearest element, ties to even; infinite where it overflows.
    fn narrow(sum: Self::Sum) -> Self;
}

impl Element for f64 {
    type Sum = f64;
    const DTYPE: DType = DType::F64;

    fn widen(self) -> f64 {
        self
    }

    fn narrow(sum: f64) -> f64 {
        sum
    }
}

impl Element for f32 {
    type Sum = f32;
    const DTYPE: DType = DType::F32;

    fn widen(self) -> f32 {
        self
    }

    fn narrow(sum: f32) -> f32 {
        sum
    }
}

impl Element for f16 {
    type Sum = f32;
    const DTYPE: DType = DType::F16;

    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(sum: f32) -> f16 {
        f16::from_f32(sum)
    }
}

impl Element for bf16 {
    type Sum = f32;
    const DTYPE: DType = DType::BF16;

    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(sum: f32) -> bf16 {
        bf16::from_f32(sum)
    }
}
