use rayon::prelude::*;

use super::Scores;
use super::radix::{Histogram, Radix};
use super::row::{Cut, Kept};
use crate::simd::with_lanes;
use crate::{Mask, Result};

/// The mask in which the layer removes its `remove` lowest.
pub(super) fn select(scores: &Scores<'_>, remove: usize) -> Result<Mask> {
    let Scores { rows, cols, .. } = *scores;
    let mut radix = Radix::new(remove);
    // Both passes also run when nothing goes, since they look at every score.
    radix.end_pass(&histogram(scores, &radix)?);
    let found = radix.end_pass(&histogram(scores, &radix)?);
    let Some(cut) = found.filter(|_| remove > 0) else {
        return Ok(Mask::all_kept(rows, cols));
    };
    let ties = if cut.ties < cut.tied { ties_of_rows(scores, cut)? } else { Vec::new() };
    Mask::build(
        rows,
        cols,
        || vec![0.0; cols],
        |row_scores, row, bits| {
            scores.write(row, row_scores)?;
            let (ties, tied) = ties.get(row).copied().unwrap_or((0, 0));
            with_lanes(Kept { scores: row_scores, cut: Cut { at: cut.at, ties, tied }, bits });
            Ok(())
        },
    )
}

/// One pass over all rows. Counts are integers, so that the order in which threads add them does
/// not matter; of several errors the one of the lowest row is returned.
fn histogram(scores: &Scores<'_>, radix: &Radix) -> Result<Histogram> {
    // A few parts a thread: each has a histogram of its own.
    let part = scores.rows.div_ceil(4 * rayon::current_num_threads()).max(1);
    let count = |first: usize| {
        let mut histogram = radix.histogram();
        let mut row_scores = vec![0.0; scores.cols];
        for row in first..(first + part).min(scores.rows) {
            scores.write(row, &mut row_scores)?;
            histogram.add(&row_scores);
        }
        Ok(histogram)
    };
    (0..scores.rows)
        .into_par_iter()
        .step_by(part)
        .map(count)
        .reduce_with(|a, b| {
            let mut a = a?;
            a.merge(&b?);
            Ok(a)
        })
        .unwrap_or_else(|| Ok(radix.histogram()))
}

/// For each row, how many of its scores that equal the cut go, and how many there are.
fn ties_of_rows(scores: &Scores<'_>, cut: Cut) -> Result<Vec<(usize, usize)>> {
    let count = |row_scores: &mut Vec<f32>, row: usize| {
        scores.write(row, row_scores)?;
        Ok(row_scores.iter().filter(|s| **s == cut.at).count())
    };
    let tied: Result<Vec<usize>> =
        (0..scores.rows).into_par_iter().map_init(|| vec![0.0; scores.cols], count).collect();
    let mut left = cut.ties;
    Ok(tied?
        .into_iter()
        .map(|tied| {
            let ties = tied.min(left);
            left -= ties;
            (ties, tied)
        })
        .collect())
}
