use crate::{Error, Result};

/// The Jensen–Shannon distance of two lists, each taken as probabilities after division by its
/// sum: √(½ KL(p‖m) + ½ KL(q‖m)) with natural logarithms, within 0 and √ln 2.
///
/// WeightWatcher's `rand_distance` is this distance between the ascending eigenvalues of a weight
/// and those of its elements shuffled.
///
/// # Errors
/// [`Error::Length`] for lists of different lengths; [`Error::NotAnEigenvalue`] for negative
/// numbers, NaN and infinity; [`Error::DegenerateSpectrum`] for a list that sums to zero.
///
/// ```
/// use prune_spectral::jensen_shannon_distance;
/// let d = jensen_shannon_distance(&[1.0, 2.0, 3.0, 4.0], &[1.0, 1.0, 4.0, 4.0])?;
/// assert!((d - 0.109903).abs() < 1e-6);
/// # Ok::<(), prune_spectral::Error>(())
/// ```
pub fn jensen_shannon_distance(p: &[f64], q: &[f64]) -> Result<f64> {
    if p.len() != q.len() {
        return Err(Error::Length { what: "the second list", found: q.len(), expected: p.len() });
    }
    for list in [p, q] {
        if let Some(index) = list.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::NotAnEigenvalue { index, value: list[index] });
        }
    }
    let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
    if !(sum_p > 0.0 && sum_q > 0.0) {
        return Err(Error::DegenerateSpectrum { reason: "every eigenvalue is zero" });
    }
    let mut divergence = 0.0;
    for (p, q) in p.iter().zip(q) {
        let (p, q) = (p / sum_p, q / sum_q);
        let m = (p + q) / 2.0;
        for probability in [p, q] {
            if probability > 0.0 {
                divergence += probability * (probability / m).ln() / 2.0;
            }
        }
    }
    Ok(divergence.max(0.0).sqrt())
}
