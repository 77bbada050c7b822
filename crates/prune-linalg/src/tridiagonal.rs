//! Eigenvalues of a symmetric tridiagonal matrix without vectors: the square-root-free QL
//! iteration of Pal, Walker and Kahan (Parlett, "The Symmetric Eigenvalue Problem", section 8.15).
//!
//! It needs one division and no square root a step, where the iteration that also updates vectors
//! needs a rotation; for windows of a hundred rows that halves the cost of a spectrum.

use num_traits::Float;

use crate::{Error, Real, Result};

/// Replaces `diagonal` by the eigenvalues, ascending; `off` is the off-diagonal, one shorter.
pub(crate) fn eigenvalues<T: Real>(diagonal: &mut [T], off: &mut [T]) -> Result<()> {
    let n = diagonal.len();
    let largest =
        diagonal.iter().chain(off.iter()).fold(T::zero(), |m: T, v| Float::max(m, Float::abs(*v)));
    if n < 2 || largest == T::zero() {
        return Ok(());
    }
    // Off-diagonal elements are squared: keep them within the range of the type.
    diagonal.iter_mut().for_each(|d| *d /= largest);
    off.iter_mut().for_each(|e| *e = (*e / largest) * (*e / largest));
    let mut budget = 30 * n;
    let mut start = 0;
    while start < n {
        // An unreduced block, start..=end.
        let mut end = start;
        while end + 1 < n && !negligible(off[end], diagonal[end], diagonal[end + 1]) {
            end += 1;
        }
        if end + 1 < n {
            off[end] = T::zero();
        }
        let (d, e) = (&mut diagonal[start..=end], &mut off[start..end]);
        // Small eigenvalues come out at the front; a graded block must have its small end there.
        if Float::abs(d[d.len() - 1]) < Float::abs(d[0]) {
            d.reverse();
            e.reverse();
        }
        iterate(d, e, &mut budget)?;
        start = end + 1;
    }
    diagonal.iter_mut().for_each(|d| *d *= largest);
    diagonal.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    Ok(())
}

/// Whether an off-diagonal element, squared, is zero beside its neighbours on the diagonal.
fn negligible<T: Real>(squared: T, a: T, b: T) -> bool {
    squared <= T::epsilon() * T::epsilon() * Float::abs(a * b)
        || squared < <T as Float>::min_positive_value()
}

/// Diagonalises an unreduced block; `e` holds squares.
fn iterate<T: Real>(d: &mut [T], e: &mut [T], budget: &mut usize) -> Result<()> {
    let two = T::one() + T::one();
    let last = d.len() - 1;
    let mut l = 0;
    while l <= last {
        let mut m = l;
        while m < last && !negligible(e[m], d[m], d[m + 1]) {
            m += 1;
        }
        if m < last {
            e[m] = T::zero();
        }
        if m == l {
            l += 1;
            continue;
        }
        if m == l + 1 {
            [d[l], d[m]] = two_by_two(d[l], Float::sqrt(e[l]), d[m]);
            e[l] = T::zero();
            l += 2;
            continue;
        }
        if *budget == 0 {
            return Err(Error::NoConvergence { operation: "symmetric eigenvalue decomposition" });
        }
        *budget -= 1;
        // Wilkinson's shift.
        let root = Float::sqrt(e[l]);
        let half = (d[l + 1] - d[l]) / (two * root);
        let hypotenuse = Float::hypot(half, T::one());
        let shift = d[l] - root / (half + Float::copysign(hypotenuse, half));
        let (mut cosine, mut sine) = (T::one(), T::zero());
        let mut gamma = d[m] - shift;
        let mut p = gamma * gamma;
        for i in (l..m).rev() {
            let b = e[i];
            let r = p + b;
            if i + 1 != m {
                e[i + 1] = sine * r;
            }
            let previous = cosine;
            let inverse = Float::recip(r);
            cosine = p * inverse;
            sine = b * inverse;
            let old = gamma;
            gamma = cosine * (d[i] - shift) - sine * old;
            d[i + 1] = old + (d[i] - gamma);
            p = if cosine == T::zero() { previous * b } else { gamma * gamma / cosine };
        }
        e[l] = sine * p;
        d[l] = shift + gamma;
    }
    Ok(())
}

/// The eigenvalues of `[[a, b], [b, c]]`.
fn two_by_two<T: Real>(a: T, b: T, c: T) -> [T; 2] {
    let two = T::one() + T::one();
    let (sum, root) = (a + c, Float::hypot(a - c, two * b));
    if sum == T::zero() {
        return [root / two, -root / two];
    }
    // The eigenvalue of larger modulus first; the other from the determinant.
    let first = if sum < T::zero() { (sum - root) / two } else { (sum + root) / two };
    let (large, small) = if Float::abs(a) > Float::abs(c) { (a, c) } else { (c, a) };
    [first, (large / first) * small - (b / first) * b]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eigenvalues -n, -n + 2, .. n of the Kac matrix of size n + 1, symmetrised.
    #[test]
    fn kac_matrices_have_integer_eigenvalues() {
        for n in [1usize, 2, 3, 10, 51, 200] {
            let mut d = vec![0.0f64; n + 1];
            let mut e: Vec<f64> = (0..n).map(|i| (((i + 1) * (n - i)) as f64).sqrt()).collect();
            eigenvalues(&mut d, &mut e).unwrap();
            for (k, v) in d.iter().enumerate() {
                let expected = 2.0 * k as f64 - n as f64;
                assert!((v - expected).abs() < 1e-13 * n as f64, "{n}: {v} for {expected}");
            }
        }
    }

    #[test]
    fn small_eigenvalues_of_graded_matrices_keep_their_digits() {
        // Diagonal 1, 1e-4, 1e-8, ..: the off-diagonal elements change eigenvalues by a
        // hundred-millionth of each.
        for reversed in [false, true] {
            let mut d: Vec<f64> = (0..8).map(|k| 10f64.powi(-4 * k)).collect();
            let mut e: Vec<f64> = (0..7).map(|k| 10f64.powi(-4 * k - 6)).collect();
            let expected: Vec<f64> = d.iter().rev().copied().collect();
            if reversed {
                d.reverse();
                e.reverse();
            }
            eigenvalues(&mut d, &mut e).unwrap();
            for (v, expected) in d.iter().zip(&expected) {
                assert!((v / expected - 1.0).abs() < 1e-3, "{v} for {expected}");
            }
        }
    }

    #[test]
    fn zeros_and_diagonal_matrices_are_fine() {
        let mut d = vec![3.0f32, -1.0, 2.0];
        eigenvalues(&mut d, &mut [0.0, 0.0]).unwrap();
        assert_eq!(d, [-1.0, 2.0, 3.0]);
        let mut d = vec![0.0f64; 3];
        eigenvalues(&mut d, &mut [0.0, 0.0]).unwrap();
        assert_eq!(d, [0.0; 3]);
        let mut d = vec![0.0f64; 2];
        eigenvalues(&mut d, &mut [2.0]).unwrap();
        assert_eq!(d, [-2.0, 2.0]);
    }
}
