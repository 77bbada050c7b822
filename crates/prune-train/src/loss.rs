use rayon::prelude::*;

use crate::{Error, Result, Tally};

/// The cross-entropy of rows of logits: the sum of the losses, the right predictions and the
/// gradient of the mean loss by the logits.
///
/// `logits` is `(rows, classes)` and `targets` holds a class for each row. With `smoothing` s, the
/// target is 1 − s for the class and s / classes more for every class.
///
/// # Errors
/// [`prune_core::Error::Shape`] unless the rows are whole and as many as targets;
/// [`prune_core::Error::OutOfRange`] for a target that is no class, or unless 0 ≤ smoothing < 1.
///
/// ```
/// use prune_train::cross_entropy;
/// let (tally, gradient) = cross_entropy(&[0.0, 0.0, 2.0, 0.0], 2, &[1, 0], 0.0)?;
/// assert!((tally.loss() - (2f64.ln() + (1.0 + (-2f64).exp()).ln()) / 2.0).abs() < 1e-6);
/// // Of equal logits the lower class counts as predicted.
/// assert_eq!((tally.count, tally.correct), (2, 1));
/// assert_eq!(gradient[0], 0.25);
/// # Ok::<(), prune_train::Error>(())
/// ```
pub fn cross_entropy(
    logits: &[f32],
    classes: usize,
    targets: &[u32],
    smoothing: f64,
) -> Result<(Tally, Vec<f32>)> {
    let mut gradient = logits.to_vec();
    let tally = cross_entropy_in_place(&mut gradient, classes, targets, smoothing, targets.len())?;
    Ok((tally, gradient))
}

/// The same, where the gradient takes the place of the logits; it is that of the sum of the losses
/// divided by `count`.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_in_place(
    logits: &mut [f32],
    classes: usize,
    targets: &[u32],
    smoothing: f64,
    count: usize,
) -> Result<Tally> {
    if classes == 0 || logits.len() != classes * targets.len() {
        return Err(Error::shape("logits", &[logits.len()], &[targets.len(), classes]));
    }
    if !(0.0..1.0).contains(&smoothing) {
        return Err(Error::out_of_range("label smoothing", smoothing, "0 <= smoothing < 1"));
    }
    if let Some(target) = targets.iter().find(|t| **t as usize >= classes) {
        return Err(Error::out_of_range("class", target, format!("below {classes}")));
    }
    let inverse = 1.0 / count.max(1) as f32;
    let (own, other) = ((1.0 - smoothing) as f32, (smoothing / classes as f64) as f32);
    let row = |(row, target): (&mut [f32], &u32)| {
        let target = *target as usize;
        let (mut max, mut best) = (f32::NEG_INFINITY, 0);
        for (i, v) in row.iter().enumerate() {
            if *v > max {
                (max, best) = (*v, i);
            }
        }
        let (mut sum, mut mean) = (0f64, 0f64);
        let chosen = row[target] - max;
        for v in row.iter_mut() {
            let shifted = *v - max;
            mean += f64::from(shifted);
            *v = shifted.exp();
            sum += f64::from(*v);
        }
        let log_sum = sum.ln();
        let scale = (1.0 / sum) as f32;
        row.iter_mut().for_each(|v| *v = (*v * scale - other) * inverse);
        row[target] -= own * inverse;
        let mut loss = log_sum - (1.0 - smoothing) * f64::from(chosen);
        // A class of probability 0 has a mean of minus infinity.
        if smoothing > 0.0 {
            loss -= smoothing * mean / classes as f64;
        }
        (loss, usize::from(best == target))
    };
    let rows: Vec<(f64, usize)> = logits.par_chunks_mut(classes).zip(targets).map(row).collect();
    Ok(Tally {
        sum: rows.iter().map(|r| r.0).sum(),
        count: targets.len(),
        correct: rows.iter().map(|r| r.1).sum(),
    })
}
