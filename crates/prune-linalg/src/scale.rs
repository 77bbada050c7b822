use ndarray::ArrayView2;
use num_traits::Float;

use crate::Real;

/// The power of two by which the elements of `a` are multiplied before a decomposition: 1 unless
/// products of elements would leave the range of the type. Powers of two change no digit.
pub(crate) fn into_range<T: Real>(a: ArrayView2<'_, T>) -> T {
    of_largest(a.iter().fold(T::zero(), |m: T, v| Float::max(m, Float::abs(*v))))
}

/// [`into_range`] of a matrix whose largest element has this modulus.
pub(crate) fn of_largest<T: Real>(largest: T) -> T {
    let smallest = <T as Float>::min_positive_value();
    let low = Float::sqrt(Float::sqrt(smallest));
    if largest == T::zero() || (largest > low && largest < Float::recip(low)) {
        return T::one();
    }
    let exponent = |v: T| Float::log2(v).to_i32().unwrap_or(0);
    // Subnormal values have exponents whose reciprocals are infinite.
    let limit = -exponent(smallest);
    Float::powi(T::one() + T::one(), (-exponent(largest)).clamp(-limit, limit))
}
