use super::{Scores, row::pack};
use crate::{Mask, Result};

/// The mask in which every aligned group of `m` in a row keeps its `n` highest.
pub(super) fn select(scores: &Scores<'_>, n: usize, m: usize) -> Result<Mask> {
    let Scores { rows, cols, .. } = *scores;
    let scratch = || (vec![0.0; cols], vec![0u8; cols]);
    Mask::build(rows, cols, scratch, |(row_scores, kept), row, bits| {
        scores.write(row, row_scores)?;
        keep_highest(row_scores, n, m, kept);
        let (chunks, tail) = kept.as_chunks::<64>();
        chunks.iter().for_each(|chunk| bits.push(pack(chunk), 64));
        if !tail.is_empty() {
            let word = tail.iter().rev().fold(0, |word, b| word << 1 | u64::from(*b));
            bits.push(word, tail.len());
        }
        Ok(())
    })
}

/// Writes 1 for the `n` highest of each group of `m`, else 0; of equal scores the later is kept.
fn keep_highest(scores: &[f32], n: usize, m: usize, kept: &mut [u8]) {
    match m {
        2 => keep_ranked::<2>(scores, n, kept),
        4 => keep_ranked::<4>(scores, n, kept),
        8 => keep_ranked::<8>(scores, n, kept),
        16 => keep_ranked::<16>(scores, n, kept),
        _ => {
            for (group, kept) in scores.chunks_exact(m).zip(kept.chunks_exact_mut(m)) {
                for (i, keep) in kept.iter_mut().enumerate() {
                    let (before, after) = group.split_at(i);
                    let lower = before.iter().filter(|s| **s <= group[i]).count()
                        + after.iter().filter(|s| **s < group[i]).count();
                    *keep = u8::from(lower >= m - n);
                }
            }
        }
    }
}

/// Groups compared side by side, so that the comparisons vectorise.
const LANES: usize = 16;

/// [`keep_highest`] for a group size known at compile time: every pair in a group is compared once
/// and the later of equals ranks higher.
fn keep_ranked<const M: usize>(scores: &[f32], n: usize, kept: &mut [u8]) {
    let removed = (M - n) as i32;
    let (groups, _) = scores.as_chunks::<M>();
    let (kept, _) = kept.as_chunks_mut::<M>();
    for (groups, kept) in groups.chunks(LANES).zip(kept.chunks_mut(LANES)) {
        let mut turned = [[0f32; LANES]; M];
        for (lane, group) in groups.iter().enumerate() {
            for i in 0..M {
                turned[i][lane] = group[i];
            }
        }
        let mut rank = [[0i32; LANES]; M];
        for i in 1..M {
            for j in 0..i {
                for lane in 0..LANES {
                    let later_is_higher = i32::from(turned[j][lane] <= turned[i][lane]);
                    rank[i][lane] += later_is_higher;
                    rank[j][lane] += 1 - later_is_higher;
                }
            }
        }
        for (lane, kept) in kept.iter_mut().enumerate() {
            for i in 0..M {
                kept[i] = u8::from(rank[i][lane] >= removed);
            }
        }
    }
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
            let mut kept = vec![7; scores.len()];
            keep_highest(&scores, n, m, &mut kept);
            for (g, group) in scores.chunks(m).enumerate() {
                let mut order: Vec<usize> = (0..m).collect();
                order.sort_by(|a, b| group[*a].partial_cmp(&group[*b]).unwrap());
                for (rank, i) in order.into_iter().enumerate() {
                    prop_assert_eq!(kept[g * m + i], u8::from(rank >= m - n));
                }
            }
        }
    }
}
