use ndarray::ArrayView2;
use prune_core::{Fidelity, Mask, Pattern, Result, Scope, Target, k_smallest, row_share, select};
use rayon::prelude::*;

/// How the weights that go are chosen.
pub(super) enum Removal<'a> {
    /// By `w² / U_jj²` on weights that already make up for what went before: for N:M when the
    /// first column of a group is reached, else when a block of columns is reached.
    Adaptive { target: &'a Target<'a>, fidelity: Fidelity },
    /// As a mask says.
    Fixed(&'a Mask),
}

/// One block of columns, in the order in which they are pruned.
pub(super) struct Columns<'a> {
    /// The weights so far, `out_features x columns`.
    pub(super) weights: ArrayView2<'a, f32>,
    /// `1 / U_jj` of each column; 0 for a dead one, so that its weights go first.
    pub(super) sensitivity: &'a [f32],
    /// The columns are `start..start + columns` of `total` in the order.
    pub(super) start: usize,
    pub(super) total: usize,
}

impl Columns<'_> {
    /// The part of `count` that falls to this block. Shares of all blocks sum to `count`.
    fn share(&self, count: usize) -> usize {
        row_share_between(self.total, count, self.start, self.start + self.weights.ncols())
    }

    fn score(&self, row: usize, column: usize) -> f32 {
        let s = self.weights[[row, column]] * self.sensitivity[column];
        s * s
    }

    /// The weights of the block that stay, for all patterns but N:M.
    pub(super) fn choose(&self, target: &Target<'_>, fidelity: Fidelity) -> Result<Mask> {
        match (target.pattern, target.scope, fidelity) {
            (Pattern::Unstructured, Scope::PerLayer, Fidelity::Released) => {
                Ok(self.below_threshold(target.remove))
            }
            (Pattern::Unstructured, Scope::PerRow, _) => self.by_rows(target, 1, 1),
            (Pattern::Block { rows, cols }, Scope::PerRow, _) => self.by_rows(target, rows, cols),
            (pattern, _, _) => {
                let unit = match pattern {
                    Pattern::Block { rows, cols } => rows * cols,
                    Pattern::Channels => self.weights.nrows(),
                    _ => 1,
                };
                let remove = self.share(target.remove / unit) * unit;
                select(&Target { remove, ..target.clone() }, self.weights.dim(), &|row, scores| {
                    let weights = self.weights.row(row);
                    for ((s, w), by) in scores.iter_mut().zip(weights).zip(self.sensitivity) {
                        *s = (w * by) * (w * by);
                    }
                    Ok(())
                })
            }
        }
    }

    /// The released code's rule: everything up to the `⌊sparsity · weights⌋`-th score from 0 goes,
    /// that one and its equals included.
    fn below_threshold(&self, remove: usize) -> Mask {
        let (rows, cols) = self.weights.dim();
        let mut scores: Vec<f32> =
            (0..rows).flat_map(|r| (0..cols).map(move |c| self.score(r, c))).collect();
        let rank = (scores.len() as u128 * remove as u128 / (rows * self.total) as u128) as usize;
        let rank = rank.min(scores.len() - 1);
        let threshold = *scores.select_nth_unstable_by(rank, f32::total_cmp).1;
        Mask::from_fn(rows, cols, |r, c| self.score(r, c) > threshold)
    }

    /// Each row of `high x wide` blocks gives up its part of its own share.
    fn by_rows(&self, target: &Target<'_>, high: usize, wide: usize) -> Result<Mask> {
        let (rows, cols) = self.weights.dim();
        let what = format!("{} (scores)", target.layer);
        let units = target.remove / (high * wide);
        let removed: Vec<Vec<usize>> = (0..rows / high)
            .into_par_iter()
            .map(|row| {
                let scores: Vec<f64> = (0..cols / wide)
                    .map(|block| {
                        let mut sum = 0.0;
                        for r in row * high..(row + 1) * high {
                            for c in block * wide..(block + 1) * wide {
                                sum += f64::from(self.score(r, c));
                            }
                        }
                        sum
                    })
                    .collect();
                let count = row_share(rows / high, units, row);
                k_smallest(&what, &scores, self.share(count))
            })
            .collect::<Result<_>>()?;
        let mut mask = Mask::all_kept(rows, cols);
        for (row, blocks) in removed.into_iter().enumerate() {
            for block in blocks {
                for r in row * high..(row + 1) * high {
                    (block * wide..(block + 1) * wide).for_each(|c| mask.remove(r, c));
                }
            }
        }
        Ok(mask)
    }
}

/// `⌊end·count/total⌋ − ⌊start·count/total⌋`.
fn row_share_between(total: usize, count: usize, start: usize, end: usize) -> usize {
    let at = |i: usize| (i as u128 * count as u128 / total as u128) as usize;
    at(end) - at(start)
}

/// Marks the `m − n` lowest of a group of `m` weights as gone, the lower index first among equals.
pub(super) fn choose_group(weights: &[f32], sensitivity: &[f32], n: usize, gone: &mut [bool]) {
    let m = weights.len();
    let score = |i: usize| {
        let s = weights[i] * sensitivity[i];
        s * s
    };
    for (i, gone) in gone.iter_mut().enumerate() {
        let of_i = score(i);
        let lower = (0..m)
            .filter(|&j| {
                let of_j = score(j);
                of_j < of_i || (of_j == of_i && j < i)
            })
            .count();
        *gone = lower < m - n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lower_of_equals_goes_first() {
        let mut gone = [false; 4];
        choose_group(&[1.0, -1.0, 1.0, 1.0], &[1.0; 4], 2, &mut gone);
        assert_eq!(gone, [true, true, false, false]);
        choose_group(&[3.0, -1.0, 2.0, 1.0], &[0.0, 1.0, 1.0, 1.0], 2, &mut gone);
        assert_eq!(gone, [true, true, false, false]);
    }

    proptest! {
        #[test]
        fn shares_of_blocks_sum_to_the_count_and_fit(
            total in 1usize..300, block in 1usize..40, part in 0.0..=1.0f64,
        ) {
            let count = (part * total as f64) as usize;
            let shares: Vec<usize> = (0..total)
                .step_by(block)
                .map(|start| row_share_between(total, count, start, (start + block).min(total)))
                .collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), count);
            prop_assert!(shares.iter().all(|s| *s <= block));
        }
    }
}
