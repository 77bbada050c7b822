//! Eight-bit and four-bit floating-point numbers and power-of-two scales.

/// The FP8 E4M3 code nearest to `value`, ties to even, saturating at ±448.
///
/// Sign 1, exponent 4 (bias 7), mantissa 3; no infinities, 0x7f and 0xff are NaN (the "FN" variant
/// of the OCP 8-bit specification, `float8_e4m3fn` in PyTorch). Smallest normal 2⁻⁶, smallest
/// subnormal 2⁻⁹. NaN stays NaN.
///
/// ```
/// use prune_core::{decode_e4m3, encode_e4m3};
/// assert_eq!(encode_e4m3(0.1), 0x1d);
/// assert_eq!(decode_e4m3(0x1d), 0.1015625);
/// assert_eq!(encode_e4m3(1.0e9), 0x7e);
/// ```
pub fn encode_e4m3(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    sign(value) << 7 | magnitude::<3, -6>(value).min(0x7e) as u8
}

/// The value of an FP8 E4M3 code: NaN for 0x7f and 0xff.
pub fn decode_e4m3(code: u8) -> f32 {
    if code & 0x7f == 0x7f { f32::NAN } else { signed(code >> 7, value::<3, -6>(code & 0x7f)) }
}

/// The FP8 E5M2 code nearest to `value`, ties to even, saturating at ±57344.
///
/// Sign 1, exponent 5 (bias 15), mantissa 2, laid out as in IEEE 754: 0x7c is infinity and above it
/// are NaNs. Smallest normal 2⁻¹⁴, smallest subnormal 2⁻¹⁶. NaN stays NaN.
///
/// ```
/// use prune_core::{decode_e5m2, encode_e5m2};
/// assert_eq!(encode_e5m2(0.1), 0x2e);
/// assert_eq!(decode_e5m2(0x2e), 0.09375);
/// assert_eq!(decode_e5m2(0x7c), f32::INFINITY);
/// ```
pub fn encode_e5m2(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    sign(value) << 7 | magnitude::<2, -14>(value).min(0x7b) as u8
}

/// The value of an FP8 E5M2 code, infinities and NaN included.
pub fn decode_e5m2(code: u8) -> f32 {
    let magnitude = match code & 0x7f {
        0x7c => f32::INFINITY,
        0x7d.. => f32::NAN,
        finite => value::<2, -14>(finite),
    };
    signed(code >> 7, magnitude)
}

/// The FP4 E2M1 code (0 to 15) nearest to `value`, ties to the even code, saturating at ±6.
///
/// The magnitudes of codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign. −0 is kept.
/// NaN has no code and gives 0.
///
/// ```
/// use prune_core::{decode_e2m1, encode_e2m1};
/// assert_eq!([0.25, 0.75, 2.5, 5.0, -9.0].map(encode_e2m1), [0, 2, 4, 6, 15]);
/// assert_eq!(decode_e2m1(13), -3.0);
/// ```
pub fn encode_e2m1(value: f32) -> u8 {
    if value.is_nan() {
        return 0;
    }
    sign(value) << 3 | magnitude::<1, 0>(value).min(7) as u8
}

/// The value of an FP4 E2M1 code; only the low four bits of `code` count.
pub fn decode_e2m1(code: u8) -> f32 {
    signed(code >> 3 & 1, value::<1, 0>(code & 7))
}

/// The value 2^(code − 127) of an E8M0 scale: NaN for 255.
///
/// ```
/// use prune_core::decode_e8m0;
/// assert_eq!([126, 127, 129].map(decode_e8m0), [0.5, 1.0, 4.0]);
/// ```
pub fn decode_e8m0(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The E8M0 code of the power of two nearest to the magnitude of a finite `value` (halfway goes
/// up), clamped to 0..=254.
///
/// ```
/// use prune_core::encode_e8m0;
/// assert_eq!([0.5, 1.0, 1.4, 1.5].map(encode_e8m0), [126, 127, 127, 128]);
/// ```
pub fn encode_e8m0(value: f32) -> u8 {
    let bits = value.abs().to_bits();
    // The halfway point between 2^-127, which is subnormal, and 2^-126.
    if bits < 0x0060_0000 {
        return 0;
    }
    // Rounding at bit 22 of the f32 carries into the exponent when the mantissa is 1.5 or more.
    ((bits + (1 << 22)) >> 23).min(254) as u8
}

fn sign(value: f32) -> u8 {
    u8::from(value.is_sign_negative())
}

fn signed(sign: u8, magnitude: f32) -> f32 {
    if sign == 1 { -magnitude } else { magnitude }
}

/// Exponent and mantissa of |value| with `M` mantissa bits and smallest normal `2^E`, as one
/// number: subnormals, carries from rounding and the implicit bit come out right by addition. Not
/// limited to the range of the format.
fn magnitude<const M: i32, const E: i32>(value: f32) -> u32 {
    let a = f64::from(value.abs());
    if a.is_infinite() {
        return u32::MAX;
    }
    let exponent = (((a.to_bits() >> 52) as i32) - 1023).max(E);
    // Exact: a power of two in f64, with an exponent far from its limits.
    let steps = (a * power_of_two(M - exponent)).round_ties_even() as u32;
    (((exponent - E) as u32) << M) + steps
}

fn value<const M: i32, const E: i32>(code: u8) -> f32 {
    let (field, mantissa) = (i32::from(code >> M), u32::from(code) & ((1 << M) - 1));
    let (exponent, steps) =
        if field == 0 { (E, mantissa) } else { (field - 1 + E, mantissa + (1 << M)) };
    (f64::from(steps) * power_of_two(exponent - M)) as f32
}

/// Exactly 2^exponent, for exponents of normal numbers.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ml_dtypes` 0.5.
    #[test]
    fn e4m3_matches_the_reference_vectors() {
        for (value, code, back) in [
            (0.1, 0x1d, 0.101_562_5),
            (-0.3, 0xaa, -0.3125),
            (17.0, 0x58, 16.0),
            (19.0, 0x5a, 20.0),
            (1.0625, 0x38, 1.0),
            (1.1875, 0x3a, 1.25),
            (2f32.powi(-10), 0x00, 0.0),
            (1.0001 * 2f32.powi(-10), 0x01, 2f32.powi(-9)),
            (0.0175, 0x09, 0.017_578_125),
            (447.0, 0x7e, 448.0),
            (464.0, 0x7e, 448.0),
            (480.0, 0x7e, 448.0), // saturated here, NaN in ml_dtypes
        ] {
            assert_eq!(encode_e4m3(value), code, "{value}");
            assert_eq!(decode_e4m3(code), back, "{value}");
        }
    }

    /// `ml_dtypes` 0.5.
    #[test]
    fn e5m2_matches_the_reference_vectors() {
        for (value, code, back) in [
            (0.1, 0x2e, 0.09375),
            (1.125, 0x3c, 1.0),
            (1.375, 0x3e, 1.5),
            (61439.0, 0x7b, 57344.0),
            (61440.0, 0x7b, 57344.0), // saturated here, infinite in ml_dtypes
            (2f32.powi(-16), 0x01, 2f32.powi(-16)),
            (2f32.powi(-17), 0x00, 0.0),
        ] {
            assert_eq!(encode_e5m2(value), code, "{value}");
            assert_eq!(decode_e5m2(code), back, "{value}");
        }
    }

    #[test]
    fn encoding_undoes_decoding_for_every_code() {
        let e4m3 = (0..=255u8).filter(|c| !decode_e4m3(*c).is_nan());
        assert_eq!(e4m3.clone().count(), 254);
        e4m3.for_each(|c| assert_eq!(encode_e4m3(decode_e4m3(c)), c));
        let e5m2 = (0..=255u8).filter(|c| decode_e5m2(*c).is_finite());
        assert_eq!(e5m2.clone().count(), 248);
        e5m2.for_each(|c| assert_eq!(encode_e5m2(decode_e5m2(c)), c));
        // Two more are infinities, which are read but saturate when they are written.
        assert_eq!((0..=255u8).filter(|c| !decode_e5m2(*c).is_nan()).count(), 250);
        assert_eq!(decode_e5m2(0xfc), f32::NEG_INFINITY);
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(encode_e5m2), [0x7b, 0xfb]);
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(encode_e4m3), [0x7e, 0xfe]);
        assert!(decode_e4m3(encode_e4m3(f32::NAN)).is_nan());
        assert!(decode_e5m2(encode_e5m2(f32::NAN)).is_nan());
        (0..16u8).for_each(|c| assert_eq!(encode_e2m1(decode_e2m1(c)), c));
        (0..255u8).for_each(|c| assert_eq!(encode_e8m0(decode_e8m0(c)), c));
    }

    #[test]
    fn e2m1_ties_go_to_the_even_code() {
        let ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
        assert_eq!(ties.map(|v| decode_e2m1(encode_e2m1(v))), [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]);
        assert_eq!(encode_e2m1(-0.0), 8);
        let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (code, level) in levels.into_iter().enumerate() {
            assert_eq!(decode_e2m1(code as u8), level);
            assert_eq!(decode_e2m1(code as u8 | 8).to_bits(), (-level).to_bits());
        }
        assert_eq!(encode_e2m1(f32::INFINITY), 7);
    }

    #[test]
    fn relative_error_of_normals_is_bounded() {
        for i in 0..20_000 {
            let v = 0.016 * (1.0 + 0.000_5 * i as f32).powi(4).min(27_000.0);
            assert!((decode_e4m3(encode_e4m3(v)) - v).abs() <= v / 16.0, "{v}");
            assert!((decode_e5m2(encode_e5m2(v)) - v).abs() <= v / 8.0, "{v}");
        }
    }
}
