use std::ops::RangeInclusive;

use super::{Scores, order, row_share};
use crate::mask::BitWriter;
use crate::simd::widest;
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
        widest(|| write_all_but_lowest(row_scores, k, scratch, bits));
        Ok(())
    })
}

/// Memory that a thread uses again for each row.
#[derive(Default)]
struct Scratch {
    keys: Vec<u32>,
    words: Vec<Split>,
}

/// Where 64 scores lie: bit `i` speaks of score `i`.
#[derive(Clone, Copy)]
struct Split {
    /// Above the bracket.
    above: u64,
    /// In the bracket.
    inside: u64,
}

/// Appends a bit for each score: 0 for the `k` lowest.
#[inline(always)]
fn write_all_but_lowest(scores: &[f32], k: usize, scratch: &mut Scratch, bits: &mut BitWriter<'_>) {
    if k == 0 || k >= scores.len() {
        bits.push_run(k == 0, scores.len());
        return;
    }
    match bracket(scores, k, scratch) {
        Some(below) => {
            let cut = cut(&mut scratch.keys, k - below);
            write_split(scores, &scratch.words, cut, bits);
        }
        None => {
            scratch.keys.clear();
            scratch.keys.extend(scores.iter().map(|s| order::key(*s)));
            write_kept(scores, cut(&mut scratch.keys, k), bits);
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

/// Rows shorter than this are not worth sampling.
const SAMPLED_FROM: usize = 2048;
const SAMPLE: usize = 256;

/// Leaves the few scores around the `k`-th lowest in the scratch and returns how many are below
/// them all, or `None` when the guess missed.
///
/// A sample brackets the rank (Floyd and Rivest 1975), counting at both ends and interpolating
/// between them narrows the bracket to some percent of the row: two passes of comparisons alone
/// in place of a partition. The answer is exact since the last pass counts.
#[inline(always)]
fn bracket(scores: &[f32], k: usize, scratch: &mut Scratch) -> Option<usize> {
    let n = scores.len();
    if n < SAMPLED_FROM {
        return None;
    }
    let sample = &mut scratch.keys;
    sample.clear();
    sample.extend(scores.iter().step_by(n / SAMPLE).take(SAMPLE).map(|s| order::key(*s)));
    let part = k as f64 / n as f64;
    let rank = part * SAMPLE as f64;
    // Three standard deviations of a sample quantile.
    let margin = 3.0 * (rank * (1.0 - part)).sqrt() + 1.0;
    let (first, last) = ((rank - margin).max(0.0) as usize, (rank + margin) as usize);
    let high = match last {
        SAMPLE.. => f32::MAX,
        _ => order::score(*sample.select_nth_unstable(last).1),
    };
    let low = match first {
        0 => f32::MIN,
        _ => order::score(*sample[..last.min(SAMPLE)].select_nth_unstable(first).1),
    };
    let wide = low..=high;
    if first > 0 && last < SAMPLE {
        let (below_low, below_high) = count_below(scores, low, high);
        if below_low < k && k <= below_high {
            let inside = (below_high - below_low) as f64;
            let step = (f64::from(high) - f64::from(low)) / inside;
            let guess = f64::from(low) + (k - below_low) as f64 * step;
            // What interpolation may be off by: curvature, and the scatter of single scores.
            let slack = (0.03 * inside + 2.0 * inside.sqrt()) * step;
            let narrow = ((guess - slack) as f32).max(low)..=((guess + slack) as f32).min(high);
            if let Some(below) = split(scores, narrow, k, scratch) {
                return Some(below);
            }
        }
    }
    split(scores, wide, k, scratch)
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

/// Splits the scores by a bracket and collects those inside; returns the number below, if the
/// `k`-th lowest is among those inside.
#[inline(always)]
fn split(
    scores: &[f32],
    bracket: RangeInclusive<f32>,
    k: usize,
    scratch: &mut Scratch,
) -> Option<usize> {
    let Scratch { keys, words } = scratch;
    keys.clear();
    words.clear();
    let (low, high) = bracket.into_inner();
    let (chunks, tail) = scores.as_chunks::<64>();
    let mut not_below = 0;
    for chunk in chunks {
        let (mut above, mut at_least) = ([0; 64], [0; 64]);
        for i in 0..64 {
            above[i] = u8::from(chunk[i] > high);
            at_least[i] = u8::from(chunk[i] >= low);
        }
        let (above, at_least) = (pack(&above), pack(&at_least));
        let inside = at_least & !above;
        words.push(Split { above, inside });
        not_below += at_least.count_ones() as usize;
        set_bits(inside).for_each(|i| keys.push(order::key(chunk[i])));
    }
    if !tail.is_empty() {
        let mut word = Split { above: 0, inside: 0 };
        for (i, s) in tail.iter().enumerate() {
            word.above |= u64::from(*s > high) << i;
            word.inside |= u64::from((low..=high).contains(s)) << i;
        }
        words.push(word);
        not_below += (word.above | word.inside).count_ones() as usize;
        set_bits(word.inside).for_each(|i| keys.push(order::key(tail[i])));
    }
    let below = scores.len() - not_below;
    (below < k && k <= below + keys.len()).then_some(below)
}

/// Appends a bit for each score: whether the cut, which lies inside the bracket, keeps it.
#[inline(always)]
fn write_split(scores: &[f32], words: &[Split], cut: Cut, bits: &mut BitWriter<'_>) {
    let mut ties = cut.ties;
    for (chunk, word) in scores.chunks(64).zip(words) {
        let mut kept = word.above;
        for i in set_bits(word.inside) {
            let tie = chunk[i] == cut.at && ties > 0;
            ties -= usize::from(tie);
            kept |= u64::from(chunk[i] >= cut.at && !tie) << i;
        }
        bits.push(kept, chunk.len());
    }
}

/// The places of the bits of a word that are 1, ascending.
#[inline(always)]
fn set_bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = word.trailing_zeros() as usize;
        word &= word.wrapping_sub(1);
        (place < 64).then_some(place)
    })
}

/// Appends a bit for each score: whether the cut keeps it.
#[inline(always)]
pub(super) fn write_kept(scores: &[f32], cut: Cut, bits: &mut BitWriter<'_>) {
    let at = cut.at;
    let (chunks, tail) = scores.as_chunks::<64>();
    for chunk in chunks {
        let mut above = [0; 64];
        for i in 0..64 {
            above[i] = u8::from(chunk[i] > at);
        }
        bits.push(pack(&above), 64);
    }
    if !tail.is_empty() {
        let word = tail.iter().rev().fold(0, |word, s| word << 1 | u64::from(*s > at));
        bits.push(word, tail.len());
    }
    if cut.ties < cut.tied {
        let tied = scores.iter().enumerate().filter(|(_, s)| **s == at);
        tied.skip(cut.ties).for_each(|(i, _)| bits.set_back(scores.len(), i));
    }
}

/// 64 bytes that are 0 or 1 as the bits of a word, the first as the lowest.
#[inline(always)]
pub(super) fn pack(bytes: &[u8; 64]) -> u64 {
    // The product moves bit 0 of byte i to bit 56 + i; no two of its terms meet.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let mut word = 0;
    for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
        word |= (u64::from_le_bytes(*eight).wrapping_mul(GATHER) >> 56) << (8 * i);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;
    use proptest::prelude::*;

    fn kept(scores: &[f32], k: usize) -> Vec<usize> {
        let mask = Mask::build(1, scores.len(), Scratch::default, |scratch, _, bits| {
            write_all_but_lowest(scores, k, scratch, bits);
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
    fn packing_keeps_the_order_of_bytes() {
        for i in 0..64 {
            let mut bytes = [0; 64];
            bytes[i] = 1;
            assert_eq!(pack(&bytes), 1 << i);
        }
        assert_eq!(pack(&[1; 64]), u64::MAX);
    }

    #[test]
    fn a_random_row_needs_few_candidates() {
        let scores = row_of_kind(0, 11008, 3);
        let mut scratch = Scratch::default();
        bracket(&scores, 5504, &mut scratch).unwrap();
        assert!(scratch.keys.len() < 11008 / 20, "{}", scratch.keys.len());
    }
}
