use super::order;
use super::row::Cut;

/// Finds the `k`-th lowest of a stream of scores in two passes over it: a histogram of the high 16
/// bits of the keys, then one of the low 16 bits in the bucket that holds rank `k`.
///
/// Both passes see the same scores, in any order. Memory is one histogram, 512 KiB.
#[derive(Debug, Clone)]
pub(super) struct Radix {
    /// Rank sought among what the histogram counts, `1..`.
    rank: u64,
    high: Option<u32>,
}

const BUCKETS: usize = 1 << 16;

/// Counts of one pass, of all scores or of a part.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    high: Option<u32>,
    counts: Vec<u64>,
}

impl Radix {
    /// Seeks rank `k`, counted from 1.
    pub(super) fn new(k: usize) -> Self {
        Self { rank: k as u64, high: None }
    }

    /// An empty histogram for the current pass.
    pub(super) fn histogram(&self) -> Histogram {
        Histogram { high: self.high, counts: vec![0; BUCKETS] }
    }

    /// Ends a pass: `None` after the first, the cut after the second.
    pub(super) fn end_pass(&mut self, histogram: &Histogram) -> Option<Cut> {
        let mut bucket = BUCKETS - 1;
        for (b, &count) in histogram.counts.iter().enumerate() {
            if self.rank <= count {
                bucket = b;
                break;
            }
            self.rank -= count;
        }
        match self.high {
            None => {
                self.high = Some(bucket as u32);
                None
            }
            Some(high) => Some(Cut {
                at: order::score(high << 16 | bucket as u32),
                ties: self.rank as usize,
                tied: histogram.counts[bucket] as usize,
            }),
        }
    }
}

impl Histogram {
    /// Counts scores.
    pub(super) fn add(&mut self, scores: &[f32]) {
        match self.high {
            None => {
                for s in scores {
                    self.counts[(order::key(*s) >> 16) as usize] += 1;
                }
            }
            Some(high) => {
                for s in scores {
                    let key = order::key(*s);
                    if key >> 16 == high {
                        self.counts[key as usize % BUCKETS] += 1;
                    }
                }
            }
        }
    }

    /// Adds the counts of another part.
    pub(super) fn merge(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }
}
