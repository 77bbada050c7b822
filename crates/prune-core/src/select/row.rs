use super::{Scores, order, row_share};
use crate::mask::BitWriter;
use crate::simd::{Job, Lanes, with_lanes};
use crate::{Mask, Result};

/// Where the removed end: every score below `at`, and the first `ties` of the `tied` equal to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    pub(super) at: f32,
    pub(super) ties: usize,
    pub(super) tied: usize,
}

/// The mask in which every row removes its share of `remove`.
pub(super) fn select(scores: &Scores<'_>, remove: usize) -> Result<Mask> {
    let Scores { rows, cols, .. } = *scores;
    let scratch = || (vec![0.0; cols], Scratch::default());
    Mask::build(rows, cols, scratch, |(row_scores, scratch), row, bits| {
        scores.write(row, row_scores)?;
        let k = row_share(rows, remove, row);
        with_lanes(AllButLowest { scores: row_scores, k, scratch, bits });
        Ok(())
    })
}

/// Memory that a thread uses again for each row.
#[derive(Default)]
struct Scratch {
    keys: Vec<u32>,
    places: Vec<usize>,
}

/// Appends a bit for each score: 0 for the `k` lowest.
struct AllButLowest<'a, 'b> {
    scores: &'a [f32],
    k: usize,
    scratch: &'a mut Scratch,
    bits: &'a mut BitWriter<'b>,
}

impl Job for AllButLowest<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Self { scores, k, scratch, bits } = self;
        let n = scores.len();
        if k == 0 || k >= n {
            bits.push_run(k == 0, n);
            return;
        }
        match bracket(scores, k, &mut scratch.keys) {
            Some(bracket) => write_bracketed(lanes, scores, bracket, k, scratch, bits),
            None => {
                scratch.keys.clear();
                scratch.keys.extend(scores.iter().map(|s| order::key(*s)));
                let cut = cut(&mut scratch.keys, k);
                Kept { scores, cut, bits }.run(lanes);
            }
        }
    }
}

/// The cut that removes the `k` lowest of `keys`, `1 <= k <= keys.len()`.
fn cut(keys: &mut [u32], k: usize) -> Cut {
    let (lower, &mut at, _) = keys.select_nth_unstable(k - 1);
    let less = lower.iter().filter(|key| **key < at).count();
    let tied = keys.iter().filter(|key| **key == at).count();
    Cut { at: order::score(at), ties: k - less, tied }
}

/// The `k`-th lowest score is at least `low` and below `high`.
#[derive(Debug, Clone, Copy)]
struct Bracket {
    low: f32,
    high: f32,
    below_low: usize,
    below_high: usize,
}

impl Bracket {
    fn inside(&self) -> usize {
        self.below_high - self.below_low
    }

    /// The part that holds rank `k` of the three into which `low` and `high` cut this bracket.
    #[inline(always)]
    fn narrow(&mut self, scores: &[f32], k: usize, low: f32, high: f32) {
        let (below_low, below_high) = count_below(scores, low, high);
        if k <= below_low {
            (self.high, self.below_high) = (low, below_low);
        } else if k <= below_high {
            *self = Bracket { low, high, below_low, below_high };
        } else {
            (self.low, self.below_low) = (high, below_high);
        }
    }
}

/// Rows shorter than this are not worth sampling.
const SAMPLED_FROM: usize = 2048;
const SAMPLE: usize = 128;

/// A bracket of few scores about the `k`-th lowest, or `None` where that is not worth its while: in
/// short rows and where very many scores are equal.
///
/// A sample gives the first bracket (Floyd and Rivest 1975); interpolation between its ends, whose
/// ranks are counted, narrows it. Each step is a pass of comparisons without branches, many times
/// as fast as a partition, and the bracket holds whatever the sample was.
#[inline(always)]
fn bracket(scores: &[f32], k: usize, sample: &mut Vec<u32>) -> Option<Bracket> {
    const FEW: usize = 100;
    let n = scores.len();
    if n < SAMPLED_FROM {
        return None;
    }
    sample.clear();
    sample.extend(scores.iter().step_by(n / SAMPLE).take(SAMPLE).map(|s| order::key(*s)));
    let part = k as f64 / n as f64;
    let rank = part * SAMPLE as f64;
    // Three standard deviations of a sample quantile.
    let margin = 3.0 * (rank * (1.0 - part)).sqrt() + 1.0;
    let first = (rank - margin).max(0.0) as usize;
    let last = ((rank + margin) as usize).min(SAMPLE - 1);
    let high = order::score(*sample.select_nth_unstable(last).1);
    let low = order::score(*sample[..=last].select_nth_unstable(first).1);

    let (low_end, high_end) = (f32::NEG_INFINITY, f32::INFINITY);
    let mut bracket = Bracket { low: low_end, high: high_end, below_low: 0, below_high: n };
    bracket.narrow(scores, k, low, high);
    for _ in 0..4 {
        let (low, high) = (f64::from(bracket.low), f64::from(bracket.high));
        let inside = bracket.inside() as f64;
        let step = (high - low) / inside;
        if bracket.inside() <= FEW || !step.is_finite() {
            break;
        }
        let guess = low + ((k - bracket.below_low) as f64 - 0.5) * step;
        // What interpolation may be off by: curvature, and the scatter of single scores.
        let slack = (0.02 * inside + 1.5 * inside.sqrt()) * step;
        let clamp = |at: f64| (at as f32).clamp(bracket.low, bracket.high);
        bracket.narrow(scores, k, clamp(guess - slack), clamp(guess + slack));
    }
    (bracket.inside() <= n / 8).then_some(bracket)
}

/// How many scores are below `low` and below `high`.
#[inline(always)]
fn count_below(scores: &[f32], low: f32, high: f32) -> (usize, usize) {
    let (mut below_low, mut below_high) = (0, 0);
    for chunk in scores.chunks(4096) {
        let (mut l, mut h) = (0i32, 0i32);
        for s in chunk {
            l += i32::from(*s < low);
            h += i32::from(*s < high);
        }
        below_low += l as usize;
        below_high += h as usize;
    }
    (below_low, below_high)
}

/// Appends a bit for each score: 0 for the `k` lowest, the last of which is inside the bracket.
#[inline(always)]
fn write_bracketed(
    lanes: impl Lanes,
    scores: &[f32],
    bracket: Bracket,
    k: usize,
    scratch: &mut Scratch,
    bits: &mut BitWriter<'_>,
) {
    let Scratch { keys, places } = scratch;
    let Bracket { low, high, below_low, .. } = bracket;
    keys.clear();
    places.clear();
    let (chunks, tail) = scores.as_chunks::<64>();
    for (c, chunk) in chunks.iter().enumerate() {
        let at_least_high = lanes.at_least(chunk, high);
        bits.push(at_least_high, 64);
        let mut inside = lanes.at_least(chunk, low) & !at_least_high;
        while inside != 0 {
            places.push(64 * c + inside.trailing_zeros() as usize);
            inside &= inside - 1;
        }
    }
    for (i, s) in tail.iter().enumerate() {
        bits.push_run(*s >= high, 1);
        if *s >= low && *s < high {
            places.push(64 * chunks.len() + i);
        }
    }
    keys.extend(places.iter().map(|i| order::key(scores[*i])));
    let Cut { at, mut ties, .. } = cut(keys, k - below_low);
    for &i in &*places {
        let tie = scores[i] == at && ties > 0;
        ties -= usize::from(tie);
        if scores[i] >= at && !tie {
            bits.set_back(scores.len(), i);
        }
    }
}

/// Appends a bit for each score: whether the cut keeps it.
pub(super) struct Kept<'a, 'b> {
    pub(super) scores: &'a [f32],
    pub(super) cut: Cut,
    pub(super) bits: &'a mut BitWriter<'b>,
}

impl Job for Kept<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Self { scores, cut: Cut { at, ties, tied }, bits } = self;
        // A finite score is above `at` where it is at least the next float.
        let above = at.next_up();
        let (chunks, tail) = scores.as_chunks::<64>();
        for chunk in chunks {
            bits.push(lanes.at_least(chunk, above), 64);
        }
        if !tail.is_empty() {
            let word = tail.iter().rev().fold(0, |word, s| word << 1 | u64::from(*s > at));
            bits.push(word, tail.len());
        }
        if ties < tied {
            let tied = scores.iter().enumerate().filter(|(_, s)| **s == at);
            tied.skip(ties).for_each(|(i, _)| bits.set_back(scores.len(), i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;
    use proptest::prelude::*;

    fn kept(scores: &[f32], k: usize) -> Vec<usize> {
        let mask = Mask::build(1, scores.len(), Scratch::default, |scratch, _, bits| {
            with_lanes(AllButLowest { scores, k, scratch, bits });
            Ok(())
        });
        mask.unwrap().kept_indices().collect()
    }

    fn kept_by_sorting(scores: &[f32], k: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*a].partial_cmp(&scores[*b]).unwrap());
        order.drain(..k);
        order.sort_unstable();
        order
    }

    /// Rows that break a sampling selection if anything does.
    fn row_of_kind(kind: usize, n: usize, seed: u64) -> Vec<f32> {
        let mut stream = Seed::new(seed).stream("row");
        (0..n)
            .map(|i| match kind {
                0 => stream.uniform() as f32,
                1 => (stream.uniform() * 4.0).floor() as f32,
                2 => i as f32,
                3 => -(i as f32),
                4 => 1.0,
                // Only what the sample does not see is large.
                5 if i % (n / SAMPLE) == 0 => stream.uniform() as f32,
                5 => 1e30 * stream.uniform() as f32,
                6 => (stream.uniform() as f32 - 0.5) * f32::MAX,
                _ => f32::from_bits((stream.next_u64() >> 40) as u32),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn long_rows_are_cut_as_by_sorting(
            kind in 0usize..8, n in SAMPLED_FROM..SAMPLED_FROM + 700, part in 0.0..=1.0f64,
            seed in any::<u64>(),
        ) {
            let scores = row_of_kind(kind, n, seed);
            let k = (part * n as f64) as usize;
            prop_assert_eq!(kept(&scores, k), kept_by_sorting(&scores, k));
        }

        #[test]
        fn short_rows_are_cut_as_by_sorting(
            scores in proptest::collection::vec(-3i8..3, 1..90), k in 0usize..90,
        ) {
            let scores: Vec<f32> = scores.iter().map(|s| f32::from(*s) * 0.5).collect();
            let k = k.min(scores.len());
            prop_assert_eq!(kept(&scores, k), kept_by_sorting(&scores, k));
        }
    }

    #[test]
    fn a_random_row_needs_few_candidates() {
        let scores = row_of_kind(0, 11008, 3);
        for k in [100, 1101, 5504, 9907, 11000] {
            let found = bracket(&scores, k, &mut Vec::new()).unwrap();
            assert!(found.inside() < 100, "{found:?}");
        }
    }
}
