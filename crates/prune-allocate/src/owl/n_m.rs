use prune_core::{Error, Result};

/// How many weights of every group of `m` each block removes, around `remove` of `m`: the N:M form
/// of [`Owl`](crate::Owl).
///
/// ```text
/// δ = λ · (D − min D) / (max D − min D), less its mean over blocks
/// removed = remove − round(δ), ties to even, at most m − 1
/// ```
///
/// `scores` are the outlier percentages D, one a block. The paper uses λ = 2 with 4 of 8; there a
/// block removes 2 to 6 of 8. The counts average to about `remove`, not exactly. Blocks of equal
/// score remove `remove`. A result of 0 means that the block stays dense.
///
/// # Errors
/// [`Error::OutOfRange`] unless `1 <= remove < m <= 16` and λ is finite and not negative;
/// [`Error::NotFinite`] with the index of the block.
///
/// ```
/// use prune_allocate::owl_n_m;
/// assert_eq!(owl_n_m(&[2.0, 1.0, 0.5, 0.25, 3.0], 4, 8, 2.0)?, [4, 4, 5, 5, 3]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn owl_n_m(scores: &[f64], remove: usize, m: usize, lambda: f64) -> Result<Vec<usize>> {
    if remove == 0 || remove >= m || m > 16 {
        return Err(Error::OutOfRange {
            what: "removed of every group".to_string(),
            found: format!("{remove} of {m}"),
            expected: "1 <= removed < m <= 16".to_string(),
        });
    }
    if !(lambda.is_finite() && lambda >= 0.0) {
        return Err(Error::OutOfRange {
            what: "owl lambda".to_string(),
            found: lambda.to_string(),
            expected: "finite and at least 0".to_string(),
        });
    }
    if let Some(index) = scores.iter().position(|s| !s.is_finite()) {
        return Err(Error::NotFinite {
            what: "outlier percentages of the blocks".to_string(),
            index,
            value: scores[index].to_string(),
        });
    }
    let shifts: Vec<f64> = crate::groups::unit_range(scores).iter().map(|u| lambda * u).collect();
    let mean = shifts.iter().sum::<f64>() / shifts.len().max(1) as f64;
    let most = (m - 1) as f64;
    Ok(shifts
        .iter()
        .map(|shift| (remove as f64 - (shift - mean).round_ties_even()).clamp(0.0, most) as usize)
        .collect())
}
