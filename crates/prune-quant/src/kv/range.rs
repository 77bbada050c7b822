use half::f16;
use num_traits::Float;
use serde::{Deserialize, Serialize};

use super::{KvBits, StoredFloat};

/// How the numbers of a group become codes.
///
/// Measured with keys and values of real models the three differ little from 4 bits up; tests that
/// compare with published code need [`KvQuantizer::Released`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvQuantizer {
    /// As a cache with f16 scales stores them: `x̂ = q·s + z` with the offset rounded down and the
    /// scale rounded up to f16, so that the codes span the group and `|x − x̂| ≤ s/2` holds for the
    /// stored scale.
    #[default]
    Half,
    /// The paper's formula in the precision of the data: `z = min`, `s = (max − min)/(2^b − 1)`.
    Full,
    /// KVTuner's released code: signed codes, an integer zero point
    /// `rne(min/s) − qmin`, and a scale of at least `1e-5/(2^b − 1)`. For measurements only; a
    /// cache does not store it.
    Released,
}

impl From<StoredFloat> for KvQuantizer {
    fn from(numbers: StoredFloat) -> Self {
        match numbers {
            StoredFloat::F16 => KvQuantizer::Half,
            StoredFloat::F32 => KvQuantizer::Full,
        }
    }
}

/// The precisions in which quantisation can be simulated: `f32` and `f64`.
pub trait KvFloat: Float + Send + Sync + Into<f64> + 'static {
    /// The nearest integer, halves to the even one.
    fn round_even(self) -> Self;
    /// The nearest value of this precision.
    fn rounded(value: f64) -> Self;
}

impl KvFloat for f32 {
    fn round_even(self) -> Self {
        self.round_ties_even()
    }

    fn rounded(value: f64) -> Self {
        value as f32
    }
}

impl KvFloat for f64 {
    fn round_even(self) -> Self {
        self.round_ties_even()
    }

    fn rounded(value: f64) -> Self {
        value
    }
}

/// Scale and offset of a group: `x̂ = code · scale + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range<T> {
    pub(crate) scale: T,
    pub(crate) offset: T,
}

impl<T: KvFloat> Range<T> {
    /// The range that spans `min..=max` in the precision of `T`. The scale is never 0: a constant
    /// group gets scale 1 and codes 0.
    pub(crate) fn full(min: T, max: T, bits: KvBits) -> Self {
        let levels = f64::from(bits.levels());
        let span = max.into() - min.into();
        let scale = if span > 0.0 {
            T::rounded(span / levels).max(T::min_positive_value())
        } else {
            T::one()
        };
        Self { scale, offset: min }
    }

    /// The same with both numbers representable in f16, rounded outwards.
    pub(crate) fn half(min: T, max: T, bits: KvBits) -> Self {
        let (min, max): (f64, f64) = (min.into(), max.into());
        let offset = f64::from(below(min));
        let span = max - offset;
        let scale =
            if span > 0.0 { f64::from(above(span / f64::from(bits.levels()))) } else { 1.0 };
        Self { scale: T::rounded(scale), offset: T::rounded(offset) }
    }

    pub(crate) fn nearest(self, x: T, levels: T) -> T {
        let code = ((x - self.offset) / self.scale).round_even().max(T::zero()).min(levels);
        code * self.scale + self.offset
    }
}

/// Quantises and restores the numbers of one group.
pub(crate) fn restore<T: KvFloat>(group: &mut [T], bits: KvBits, quantizer: KvQuantizer) {
    if bits == KvBits::Sixteen {
        group.iter_mut().for_each(|x| *x = T::rounded(f16::from_f64((*x).into()).to_f64()));
        return;
    }
    let min = group.iter().copied().fold(T::infinity(), T::min);
    let max = group.iter().copied().fold(T::neg_infinity(), T::max);
    let levels = T::rounded(f64::from(bits.levels()));
    let range = match quantizer {
        KvQuantizer::Half => Range::half(min, max, bits),
        KvQuantizer::Full => Range::full(min, max, bits),
        KvQuantizer::Released => return restore_released(group, min, max, bits),
    };
    group.iter_mut().for_each(|x| *x = range.nearest(*x, levels));
}

fn restore_released<T: KvFloat>(group: &mut [T], min: T, max: T, bits: KvBits) {
    let levels = T::rounded(f64::from(bits.levels()));
    let lowest = T::rounded(-f64::from(1u32 << (bits.width() - 1)));
    let scale = (max - min).max(T::rounded(1e-5)) / levels;
    let zero = (min / scale).round_even() - lowest;
    for x in group {
        let code = (*x / scale - zero).round_even().max(lowest).min(lowest + levels);
        *x = (code + zero) * scale;
    }
}

/// The largest half that is not above `x`, for `|x|` of at most 65504.
pub(crate) fn below(x: f64) -> f16 {
    let half = f16::from_f64(x);
    if half.to_f64() > x { -next_above(-half) } else { half }
}

/// The smallest half that is not below `x`, for `|x|` of at most 65504.
pub(crate) fn above(x: f64) -> f16 {
    -below(-x)
}

/// The next half towards +∞.
fn next_above(x: f16) -> f16 {
    let bits = x.to_bits();
    f16::from_bits(match bits {
        0x8000 => 0x0001,
        b if b & 0x8000 == 0 => b + 1,
        b => b - 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_outwards_and_by_one_step_at_most() {
        for x in [0.0, -0.0, 1e-9, -1e-9, 0.1, -0.1, 1.0, 300.1, -300.1, 65503.0, -65504.0, 6e-8] {
            let (low, high) = (below(x).to_f64(), above(x).to_f64());
            assert!(low <= x && x <= high, "{low} {x} {high}");
            let exact = f16::from_f64(x).to_f64() == x;
            assert_eq!(low == high, exact, "{x}");
            assert!(high - low <= (x.abs() / 1024.0).max(6e-8), "{x}");
        }
    }

    /// KVTuner's quantiser (babe775) on the matrix `sin(7 i + 3 j)`, computed with numpy in f64:
    /// codes, what is added to them, and the step give the numbers back.
    #[test]
    fn released_groups_have_the_codes_and_zero_points_of_the_reference() {
        let four = (
            KvBits::Four,
            [0.046102, 0.105843, 0.080067, 0.026884],
            [2.0, 1.0, 1.0, 3.0],
            [
                [-2.0, 1.0, -8.0, 7.0],
                [-6.0, 5.0, -8.0, 7.0],
                [7.0, -8.0, 4.0, -5.0],
                [3.0, -3.0, -8.0, 7.0],
            ],
            1.695393e-4,
        );
        let two = (
            KvBits::Two,
            [0.230511, 0.529214, 0.400336, 0.134419],
            [1.0; 4],
            [
                [-1.0, 0.0, -2.0, 1.0],
                [-2.0, 0.0, -2.0, 1.0],
                [1.0, -2.0, 0.0, -2.0],
                [0.0, -1.0, -2.0, 1.0],
            ],
            1.128154e-2,
        );
        for (bits, steps, added, codes, error) in [four, two] {
            let mut squares = 0.0;
            for g in 0..4 {
                let x: [f64; 4] = std::array::from_fn(|j| {
                    (7.0 * (g / 2) as f64 + 3.0 * (4 * (g % 2) + j) as f64).sin()
                });
                let mut y = x;
                restore(&mut y, bits, KvQuantizer::Released);
                for ((y, x), code) in y.into_iter().zip(x).zip(codes[g]) {
                    let want = (code + added[g]) * steps[g];
                    assert!((y - want).abs() < 1e-5, "{bits:?} {g}: {y} {want}");
                    squares += (y - x) * (y - x);
                }
            }
            assert!((squares / 16.0 / error - 1.0).abs() < 1e-6, "{bits:?}: {}", squares / 16.0);
        }
    }

    /// The least step is 1e-5 over the levels, beside which a constant is so large that f32 leaves it
    /// a few of its last bits.
    #[test]
    fn released_constants_err_by_few_last_bits() {
        for x in [300.0f32, -300.0, 1.0, 1e-3, 0.0] {
            let mut group = [x; 8];
            restore(&mut group, KvBits::Four, KvQuantizer::Released);
            let bound = (4.0 * f32::EPSILON * x.abs()).max(0.5 * 1e-5 / 15.0);
            assert!(group.iter().all(|y| (x - y).abs() <= bound), "{x}: {}", group[0]);
            let mut group = [f64::from(x); 8];
            restore(&mut group, KvBits::Four, KvQuantizer::Released);
            assert!(group.iter().all(|y| (f64::from(x) - y).abs() <= 0.5001e-5 / 15.0));
        }
    }

    #[test]
    fn a_constant_group_gets_scale_one_and_is_restored() {
        for x in [0.0f32, 0.5, -3.0] {
            let range = Range::full(x, x, KvBits::Two);
            assert_eq!((range.scale, range.offset), (1.0, x));
            let mut group = [x; 4];
            restore(&mut group, KvBits::Two, KvQuantizer::Half);
            assert_eq!(group, [x; 4]);
        }
    }
}
