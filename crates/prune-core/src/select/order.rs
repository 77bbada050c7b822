use crate::simd::widest;

/// A number whose order is that of the finite score, `-0.0` and `+0.0` alike.
#[inline]
pub(super) fn key(score: f32) -> u32 {
    // Adding +0.0 turns -0.0 into +0.0 and changes nothing else.
    let bits = (score + 0.0).to_bits();
    bits ^ ((bits as i32 >> 31) as u32 | 0x8000_0000)
}

/// The score of a key.
pub(super) fn score(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 0x8000_0000 } else { !key })
}

/// As [`key`], for sums in f64.
pub(super) fn key64(score: f64) -> u64 {
    let bits = (score + 0.0).to_bits();
    bits ^ ((bits as i64 >> 63) as u64 | 1 << 63)
}

/// The index of the first NaN or infinity.
pub(super) fn first_not_finite(scores: &[f32]) -> Option<usize> {
    // All exponent bits set means NaN or infinity; without an early exit the loop vectorises.
    const EXPONENT: u32 = 0x7f80_0000;
    let bad = widest(
        #[inline(always)]
        || scores.iter().fold(false, |bad, s| bad | (s.to_bits() & EXPONENT == EXPONENT)),
    );
    if bad { scores.iter().position(|s| !s.is_finite()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_order_as_scores_do(a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(a.is_finite() && b.is_finite());
            prop_assert_eq!(key(a).cmp(&key(b)), a.partial_cmp(&b).unwrap());
            prop_assert_eq!(key64(a.into()).cmp(&key64(b.into())), a.partial_cmp(&b).unwrap());
            prop_assert_eq!(score(key(a)), a);
        }
    }

    #[test]
    fn zeros_of_both_signs_are_equal() {
        assert_eq!(key(0.0), key(-0.0));
        assert_eq!(key64(0.0), key64(-0.0));
        assert!(key(-f32::MIN_POSITIVE) < key(0.0) && key(0.0) < key(f32::from_bits(1)));
    }

    #[test]
    fn the_first_offender_is_found() {
        let mut scores = vec![1.0; 100];
        assert_eq!(first_not_finite(&scores), None);
        scores[70] = f32::NAN;
        scores[40] = f32::NEG_INFINITY;
        assert_eq!(first_not_finite(&scores), Some(40));
    }
}
