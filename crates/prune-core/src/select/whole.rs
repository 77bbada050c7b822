use rayon::prelude::*;

use super::{Scores, order, row_share};
use crate::mask::BitWriter;
use crate::{Error, Mask, Result, Scope};

/// The indices of the `k` lowest of `scores`, ascending; the lower index first among equals.
/// O(n). `what` names the scores in errors.
///
/// # Errors
/// [`Error::NotFinite`]; [`Error::OutOfRange`] when there are fewer than `k`.
///
/// ```
/// use prune_core::k_smallest;
/// assert_eq!(k_smallest("heads", &[0.5, 2.0, 0.1, 0.5], 2)?, [0, 2]);
/// assert!(k_smallest("heads", &[f64::NAN], 1).is_err());
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn k_smallest(what: &str, scores: &[f64], k: usize) -> Result<Vec<usize>> {
    if let Some(index) = scores.iter().position(|s| !s.is_finite()) {
        return Err(Error::NotFinite {
            what: what.to_string(),
            index,
            value: scores[index].to_string(),
        });
    }
    if k > scores.len() {
        let expected = format!("at most {}", scores.len());
        return Err(Error::out_of_range(format!("{what} (number to remove)"), k, expected));
    }
    let flags = smallest(scores, k);
    Ok(flags.iter().enumerate().filter(|(_, removed)| **removed).map(|(i, _)| i).collect())
}

/// Which of `scores` are the `k` lowest. Finite scores, `k` at most their number.
fn smallest(scores: &[f64], k: usize) -> Vec<bool> {
    if k == 0 {
        return vec![false; scores.len()];
    }
    let mut keys: Vec<u64> = scores.iter().map(|s| order::key64(*s)).collect();
    let (lower, &mut at, _) = keys.select_nth_unstable(k - 1);
    let mut ties = k - lower.iter().filter(|key| **key < at).count();
    scores
        .iter()
        .map(|s| {
            let key = order::key64(*s);
            let tie = key == at && ties > 0;
            ties -= usize::from(tie);
            key < at || tie
        })
        .collect()
}

/// The mask without the `remove` blocks of lowest sum.
pub(super) fn select_blocks(
    scores: &Scores<'_>,
    (height, width): (usize, usize),
    scope: Scope,
    remove: usize,
) -> Result<Mask> {
    let (high, wide) = (scores.rows / height, scores.cols / width);
    let mut sums = vec![0.0f64; high * wide];
    sums.par_chunks_mut(wide)
        .enumerate()
        .map_init(
            || vec![0.0; scores.cols],
            |row_scores, (block_row, sums)| {
                for row in block_row * height..(block_row + 1) * height {
                    scores.write(row, row_scores)?;
                    for (sum, part) in sums.iter_mut().zip(row_scores.chunks_exact(width)) {
                        *sum = part.iter().fold(*sum, |sum, s| sum + f64::from(*s));
                    }
                }
                Ok(())
            },
        )
        .find_first(Result::is_err)
        .unwrap_or(Ok(()))?;
    let removed = match scope {
        Scope::PerRow => {
            let row_of_blocks = |(r, sums)| smallest(sums, row_share(high, remove, r));
            sums.chunks_exact(wide).enumerate().flat_map(row_of_blocks).collect()
        }
        _ => smallest(&sums, remove),
    };
    Mask::build(
        scores.rows,
        scores.cols,
        || (),
        |(), row, bits| {
            let first = row / height * wide;
            write_runs(&removed[first..first + wide], width, bits);
            Ok(())
        },
    )
}

/// Rows whose columns are summed by one thread. Part of the definition of a column's score: the
/// sums of such parts are added in order.
const ROWS_SUMMED: usize = 64;

/// The mask without the `remove` columns of lowest sum.
pub(super) fn select_columns(scores: &Scores<'_>, remove: usize) -> Result<Mask> {
    let parts: Result<Vec<Vec<f64>>> = (0..scores.rows)
        .into_par_iter()
        .step_by(ROWS_SUMMED)
        .map(|first| {
            let mut row_scores = vec![0.0; scores.cols];
            let mut sums = vec![0.0f64; scores.cols];
            for row in first..(first + ROWS_SUMMED).min(scores.rows) {
                scores.write(row, &mut row_scores)?;
                sums.iter_mut().zip(&row_scores).for_each(|(sum, s)| *sum += f64::from(*s));
            }
            Ok(sums)
        })
        .collect();
    let mut sums = vec![0.0f64; scores.cols];
    for part in parts? {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    let removed = smallest(&sums, remove);
    Mask::build(
        scores.rows,
        scores.cols,
        || (),
        |(), _, bits| {
            write_runs(&removed, 1, bits);
            Ok(())
        },
    )
}

fn write_runs(removed: &[bool], width: usize, bits: &mut BitWriter<'_>) {
    removed.iter().for_each(|removed| bits.push_run(!removed, width));
}
