use ndarray::{Array2, ArrayView2, Axis};
use prune_core::{
    Error, LayerId, Mask, Pattern, Result, Scope, Seed, Target, check_finite, count_to_remove,
    select,
};
use rayon::prelude::*;

use super::assignment::maximise;

/// By what channels are ranked before they are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChannelImportance {
    /// The sum of their scores.
    #[default]
    Sum,
    /// The sum of those of their scores that an unstructured mask of the same sparsity keeps, by
    /// row or by layer; among equals, the channel of which it removes fewer is worth less.
    Retained(Scope),
}

/// What is done after channels are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Refinement {
    /// Nothing.
    None,
    /// For each place in the groups, the channels that stand there are assigned to the groups anew,
    /// best for the scores that are kept.
    #[default]
    Whole,
    /// As [`Refinement::Whole`] within this many runs of groups, which do not exchange channels;
    /// time falls with their number. The fast mode of the released code has 4 to 16.
    Parts(usize),
}

/// How [`permute_channels`] looks for an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PermuteOptions {
    /// By what channels are ranked.
    pub importance: ChannelImportance,
    /// What follows.
    pub refinement: Refinement,
}

/// An order of input channels, and what its N:M groups keep.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelPermutation {
    order: Vec<usize>,
    kept: Vec<f64>,
}

impl ChannelPermutation {
    /// The channel that stands at each place.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The place of each channel.
    pub fn places(&self) -> Vec<usize> {
        let mut places = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(place, &channel)| places[channel] = place);
        places
    }

    /// The sum of kept scores: in the stored order, after dealing, and after each reassignment.
    /// From the second on it never falls.
    pub fn kept(&self) -> &[f64] {
        &self.kept
    }

    /// A matrix with its columns in this order.
    ///
    /// # Errors
    /// [`Error::Shape`] when it has another number of columns.
    pub fn apply(&self, matrix: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        if matrix.ncols() != self.order.len() {
            return Err(Error::Shape {
                what: "columns to permute".to_string(),
                found: matrix.shape().to_vec(),
                expected: vec![matrix.nrows(), self.order.len()],
            });
        }
        Ok(matrix.select(Axis(1), &self.order))
    }
}

/// An order of the columns of `scores` (`out_features x in_features`, at least 0, finite) in which
/// keeping the `n` best of every `m` keeps more (Zhang et al., ICLR 2024, section 3.3).
///
/// Channels are sorted by importance, cut into `m` quantiles and dealt out so that each group gets
/// one of each, every second quantile backwards. This usually helps and may not. Then, place by
/// place, the channels are reassigned to the groups by an optimal linear assignment, which never
/// hurts: O(rows · (cols/m)² · m) additions and O((cols/m)³) for the assignment.
///
/// # Errors
/// [`Error::PatternShape`], [`Error::OutOfRange`] for n:m or a number of parts that does not
/// divide the groups, [`Error::NotFinite`].
///
/// ```
/// use ndarray::array;
/// use prune_unstructured::{PermuteOptions, permute_channels};
/// // The two best channels stand in one group of which one is kept.
/// let scores = array![[9.0, 8.0, 1.0, 2.0], [7.0, 9.0, 2.0, 1.0]];
/// let found = permute_channels(scores.view(), 1, 2, &PermuteOptions::default())?;
/// assert_eq!((found.kept()[0], found.kept()[1]), (22.0, 33.0));
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn permute_channels(
    scores: ArrayView2<'_, f32>,
    n: usize,
    m: usize,
    options: &PermuteOptions,
) -> Result<ChannelPermutation> {
    let (rows, cols) = scores.dim();
    let pattern = Pattern::nm(n, m)?;
    pattern.check_shape("scores", rows, cols)?;
    let scores = scores.as_standard_layout();
    check_finite("scores", scores.as_slice().unwrap_or_default())?;
    let groups = cols / m;
    let parts = match options.refinement {
        Refinement::None => 0,
        Refinement::Whole => 1,
        Refinement::Parts(parts) => parts,
    };
    if let Refinement::Parts(parts) = options.refinement
        && (parts == 0 || !groups.is_multiple_of(parts))
    {
        return Err(Error::OutOfRange {
            what: "parts of a channel permutation".to_string(),
            found: parts.to_string(),
            expected: format!("a divisor of the number of groups, {groups}"),
        });
    }
    // A channel becomes a row: every step below reads whole channels.
    let channels = scores.t().as_standard_layout().into_owned();
    let stored: Vec<usize> = (0..cols).collect();
    let mut kept = vec![kept_score(&channels, &stored, n, m)];
    let mut order = deal(&ranking(scores.view(), &channels, n, m, options.importance)?, m);
    kept.push(kept_score(&channels, &order, n, m));
    if parts > 0 && groups > 0 {
        for lane in 0..m {
            for run in order.chunks_mut(cols / parts) {
                reassign(&channels, run, lane, n, m);
            }
            kept.push(kept_score(&channels, &order, n, m));
        }
    }
    Ok(ChannelPermutation { order, kept })
}

/// Channels by ascending importance, the lower first among equals.
fn ranking(
    scores: ArrayView2<'_, f32>,
    channels: &Array2<f32>,
    n: usize,
    m: usize,
    importance: ChannelImportance,
) -> Result<Vec<usize>> {
    let mask = match importance {
        ChannelImportance::Sum => Mask::all_kept(scores.nrows(), scores.ncols()),
        ChannelImportance::Retained(scope) => {
            let layer = LayerId::new("scores");
            let target = Target {
                layer: &layer,
                pattern: Pattern::Unstructured,
                scope,
                remove: count_to_remove(scores.len(), 1.0 - n as f64 / m as f64)?,
                stream: Seed::new(0).stream("scores"),
            };
            select(&target, scores.dim(), &|row, out| {
                out.iter_mut().zip(scores.row(row)).for_each(|(o, s)| *o = *s);
                Ok(())
            })?
        }
    };
    let keys: Vec<(f64, usize)> = channels
        .outer_iter()
        .enumerate()
        .map(|(c, channel)| {
            let kept = |r: &usize| mask.is_kept(*r, c);
            let removed = channel.len() - (0..channel.len()).filter(kept).count();
            let sum = (0..channel.len()).filter(kept).map(|r| f64::from(channel[r])).sum();
            (sum, removed)
        })
        .collect();
    let mut order: Vec<usize> = (0..channels.nrows()).collect();
    order.sort_by(|&a, &b| keys[a].0.total_cmp(&keys[b].0).then(keys[a].1.cmp(&keys[b].1)));
    Ok(order)
}

/// Deals ranked channels out to groups of `m`: each place takes one quantile, every second one
/// backwards.
fn deal(ranked: &[usize], m: usize) -> Vec<usize> {
    let groups = ranked.len() / m;
    let mut order = vec![0; ranked.len()];
    for lane in 0..m {
        for group in 0..groups {
            let rank = if lane % 2 == 0 { group } else { groups - 1 - group };
            order[group * m + lane] = ranked[lane * groups + rank];
        }
    }
    order
}

/// The sum of the `n` best of every `m`, by groups in order.
fn kept_score(channels: &Array2<f32>, order: &[usize], n: usize, m: usize) -> f64 {
    let of_group = |group: &[usize]| {
        let mut sum = 0.0;
        let mut values = vec![0.0f32; m];
        for row in 0..channels.ncols() {
            values.iter_mut().zip(group).for_each(|(v, &c)| *v = channels[[c, row]]);
            values.sort_unstable_by(|a, b| b.total_cmp(a));
            sum += values[..n].iter().map(|v| f64::from(*v)).sum::<f64>();
        }
        sum
    };
    let sums: Vec<f64> = order.par_chunks(m).map(of_group).collect();
    sums.iter().sum()
}

/// Assigns the channels at place `lane` of the groups in `run` to these groups anew.
fn reassign(channels: &Array2<f32>, run: &mut [usize], lane: usize, n: usize, m: usize) {
    let groups = run.len() / m;
    let rows = channels.ncols();
    // With the others of the group sorted, a channel adds max(its score, the n-th best of them) to
    // the sum of the n - 1 best: the sum does not depend on the channel and drops out.
    let values: Vec<Vec<f64>> = run
        .par_chunks(m)
        .map(|group| {
            let mut others = vec![0.0f32; m - 1];
            let limits: Vec<f32> = (0..rows)
                .map(|row| {
                    let rest = group.iter().enumerate().filter(|(place, _)| *place != lane);
                    others.iter_mut().zip(rest).for_each(|(o, (_, &c))| *o = channels[[c, row]]);
                    others.sort_unstable_by(|a, b| b.total_cmp(a));
                    others[n - 1]
                })
                .collect();
            (0..groups)
                .map(|from| sum_of_larger(&limits, channels.row(run[from * m + lane]).as_slice()))
                .collect()
        })
        .collect();
    let assigned = maximise(groups, |group, from| values[group][from]);
    let before: Vec<usize> = (0..groups).map(|g| run[g * m + lane]).collect();
    for (group, from) in assigned.into_iter().enumerate() {
        run[group * m + lane] = before[from];
    }
}

/// `Σ max(a, b)`: lanes of 16 in f32 over runs of 1024, runs in f64.
fn sum_of_larger(a: &[f32], b: Option<&[f32]>) -> f64 {
    let mut sum = 0.0;
    for (a, b) in a.chunks(1024).zip(b.unwrap_or_default().chunks(1024)) {
        let mut lanes = [0.0f32; 16];
        let (a, a_rest) = a.as_chunks::<16>();
        let (b, b_rest) = b.as_chunks::<16>();
        for (a, b) in a.iter().zip(b) {
            for i in 0..16 {
                lanes[i] += if a[i] > b[i] { a[i] } else { b[i] };
            }
        }
        sum += lanes.iter().map(|l| f64::from(*l)).sum::<f64>();
        sum += a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(a.max(*b))).sum::<f64>();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_dealt_out_in_a_snake() {
        let ranked: Vec<usize> = (0..12).collect();
        assert_eq!(deal(&ranked, 4), [0, 5, 6, 11, 1, 4, 7, 10, 2, 3, 8, 9]);
    }
}
