use super::Scores;
use crate::mask::BitWriter;
use crate::simd::{Job, Lanes, with_lanes};
use crate::{Mask, Result};

/// The mask in which every aligned group of `m` in a row keeps its `n` highest.
pub(super) fn select(scores: &Scores<'_>, n: usize, m: usize) -> Result<Mask> {
    let Scores { rows, cols, .. } = *scores;
    let scratch = || vec![0.0; cols];
    Mask::build(rows, cols, scratch, |row_scores, row, bits| {
        scores.write(row, row_scores)?;
        with_lanes(HighestOfGroups { scores: row_scores, n, m, bits });
        Ok(())
    })
}

/// Appends a bit for each score: 1 for the `n` highest of each group of `m`; of equal scores the
/// later is kept.
struct HighestOfGroups<'a, 'b> {
    scores: &'a [f32],
    n: usize,
    m: usize,
    bits: &'a mut BitWriter<'b>,
}

impl Job for HighestOfGroups<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Self { scores, n, m, bits } = self;
        if !matches!(m, 2 | 4 | 8 | 16) {
            for group in scores.chunks_exact(m) {
                for i in 0..m {
                    let (before, after) = group.split_at(i);
                    let lower = before.iter().filter(|s| **s <= group[i]).count()
                        + after.iter().filter(|s| **s < group[i]).count();
                    bits.push(u64::from(lower >= m - n), 1);
                }
            }
            return;
        }
        let (chunks, tail) = scores.as_chunks::<64>();
        for chunk in chunks {
            bits.push(highest_of_64(lanes, chunk, n, m), 64);
        }
        if !tail.is_empty() {
            let mut chunk = [0.0; 64];
            chunk[..tail.len()].copy_from_slice(tail);
            bits.push(highest_of_64(lanes, &chunk, n, m) & ((1 << tail.len()) - 1), tail.len());
        }
    }
}

/// Bit `i` says whether score `i` is among the `n` highest of its group of `m`, 2, 4, 8 or 16.
///
/// Each score meets every other of its group, 64 scores at once; the number of those that it is
/// higher than is kept bit by bit in four words (a vertical counter).
#[inline(always)]
fn highest_of_64(lanes: impl Lanes, scores: &[f32; 64], n: usize, m: usize) -> u64 {
    /// Bit `i` of the `b`-th word is bit `b` of `i`.
    const PLACES: [u64; 4] = [
        0xaaaa_aaaa_aaaa_aaaa,
        0xcccc_cccc_cccc_cccc,
        0xf0f0_f0f0_f0f0_f0f0,
        0xff00_ff00_ff00_ff00,
    ];
    let mut lower = [0u64; 4];
    for distance in 1..m {
        let partners = lanes.partners(scores, distance);
        // Whether `i > i ^ distance`, when an equal partner counts as lower.
        let later = PLACES[distance.ilog2() as usize];
        let not_lower = lanes.at_least_each(scores, &partners);
        let not_higher = lanes.at_least_each(&partners, scores);
        let mut carry = (not_lower & later) | !(not_higher | later);
        for bit in &mut lower {
            (*bit, carry) = (*bit ^ carry, *bit & carry);
        }
    }
    let (mut more, mut equal) = (0, u64::MAX);
    for (b, bit) in lower.iter().enumerate().rev() {
        if (m - n) >> b & 1 == 1 {
            equal &= bit;
        } else {
            more |= equal & bit;
            equal &= !bit;
        }
    }
    more | equal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn groups_keep_what_a_stable_sort_puts_last(
            m in 2usize..=16, n in 1usize..16, groups in 1usize..40, levels in 1u64..50,
            seed in any::<u64>(),
        ) {
            let n = n.min(m - 1);
            let mut stream = crate::Seed::new(seed).stream("groups");
            let scores: Vec<f32> =
                (0..groups * m).map(|_| stream.below(levels) as f32 - 3.0).collect();
            let mask = Mask::build(1, scores.len(), || (), |(), _, bits| {
                with_lanes(HighestOfGroups { scores: &scores, n, m, bits });
                Ok(())
            });
            let mask = mask.unwrap();
            for (g, group) in scores.chunks(m).enumerate() {
                let mut order: Vec<usize> = (0..m).collect();
                order.sort_by(|a, b| group[*a].partial_cmp(&group[*b]).unwrap());
                for (rank, i) in order.into_iter().enumerate() {
                    prop_assert_eq!(mask.is_kept(0, g * m + i), rank >= m - n);
                }
            }
        }
    }
}
