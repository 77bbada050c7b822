use prune_core::{Error, Result, SeedStream};

/// How scores of blocks become the weights by which they are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SamplingMode {
    /// In proportion to the score: blocks with more outliers are trained more often (OwLore).
    #[default]
    Score,
    /// In proportion to the largest score less the score: the block of the largest is never drawn.
    Reversed,
    /// All alike (LISA).
    Uniform,
    /// Falling with depth: L, L − 1, … 1.
    Decreasing,
    /// Rising with depth: 1, 2, … L.
    Increasing,
}

/// The probabilities with which the blocks of a transformer are drawn for training, a few at a
/// time, without replacement.
///
/// With OwLore the scores are the outlier percentages of the blocks
/// (`prune_importance::OutlierDistribution`, there with a multiplier of 13), measured once before
/// training. A draw takes one block by its probability, then the next among the rest, and so on;
/// the chance to be among the drawn is therefore not the probability times their number:
/// [`SamplingWeights::inclusion`] computes it.
///
/// Source: Li et al., "OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for
/// Memory-Efficient LLM Fine-tuning", 2024; Pan et al., "LISA", 2024.
///
/// ```
/// use prune_allocate::{SamplingMode, SamplingWeights};
/// use prune_core::Seed;
///
/// let weights = SamplingWeights::new(&[4.0, 3.0, 2.0, 1.0], SamplingMode::Score)?;
/// assert_eq!(weights.probabilities(), [0.4, 0.3, 0.2, 0.1]);
/// let blocks = weights.draw(2, &mut Seed::new(0).stream("period 0"))?;
/// assert!(blocks.len() == 2 && blocks[0] < blocks[1]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingWeights {
    probabilities: Vec<f64>,
}

impl SamplingWeights {
    /// The probabilities of blocks with these scores, which are not negative.
    ///
    /// # Errors
    /// [`Error::Infeasible`] without blocks or when all weights are 0; [`Error::NotFinite`];
    /// [`Error::OutOfRange`] for a negative score.
    pub fn new(scores: &[f64], mode: SamplingMode) -> Result<Self> {
        if let Some(index) = scores.iter().position(|s| !s.is_finite()) {
            return Err(Error::NotFinite {
                what: "scores of the blocks".to_string(),
                index,
                value: scores[index].to_string(),
            });
        }
        if let Some(block) = scores.iter().position(|s| *s < 0.0) {
            return Err(Error::OutOfRange {
                what: format!("score of block {block}"),
                found: scores[block].to_string(),
                expected: "at least 0".to_string(),
            });
        }
        let largest = scores.iter().copied().fold(0.0, f64::max);
        let blocks = scores.len();
        let weight = |b: usize| match mode {
            // Divided by the largest, so that the sum does not overflow.
            SamplingMode::Score if largest > 0.0 => scores[b] / largest,
            SamplingMode::Reversed if largest > 0.0 => 1.0 - scores[b] / largest,
            SamplingMode::Score | SamplingMode::Reversed => 0.0,
            SamplingMode::Uniform => 1.0,
            SamplingMode::Decreasing => (blocks - b) as f64,
            SamplingMode::Increasing => (b + 1) as f64,
        };
        let weights: Vec<f64> = (0..blocks).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        if sum <= 0.0 {
            return Err(Error::Infeasible("no block has a score to be drawn by".to_string()));
        }
        Ok(Self { probabilities: weights.iter().map(|w| w / sum).collect() })
    }

    /// The probability of each block in a single draw; they sum to 1.
    pub fn probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// `count` different blocks, in rising order, by successive draws among those that are left.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when fewer blocks than that have a probability above 0.
    pub fn draw(&self, count: usize, stream: &mut SeedStream) -> Result<Vec<usize>> {
        self.check(count)?;
        let mut left = self.probabilities.clone();
        let mut drawn = Vec::with_capacity(count);
        for _ in 0..count {
            let mut at = stream.uniform() * left.iter().sum::<f64>();
            let mut block = None;
            for (b, p) in left.iter().enumerate().filter(|(_, p)| **p > 0.0) {
                // What rounding leaves over belongs to the last.
                block = Some(b);
                if at < *p {
                    break;
                }
                at -= p;
            }
            if let Some(b) = block {
                left[b] = 0.0;
                drawn.push(b);
            }
        }
        drawn.sort_unstable();
        Ok(drawn)
    }

    /// The chance of each block to be among `count` drawn; they sum to `count`. O(2^blocks ·
    /// blocks), for up to 20 blocks.
    ///
    /// # Errors
    /// As [`SamplingWeights::draw`]; [`Error::OutOfRange`] for more than 20 blocks.
    pub fn inclusion(&self, count: usize) -> Result<Vec<f64>> {
        self.check(count)?;
        let blocks = self.probabilities.len();
        if blocks > 20 {
            return Err(Error::OutOfRange {
                what: "blocks of an exact inclusion probability".to_string(),
                found: blocks.to_string(),
                expected: "at most 20".to_string(),
            });
        }
        // The chance that the first draws are just this set, for every set of up to `count`.
        let mut chance = vec![0.0; 1 << blocks];
        chance[0] = 1.0;
        let mut included = vec![0.0; blocks];
        for set in 0usize..1 << blocks {
            let size = set.count_ones() as usize;
            if chance[set] == 0.0 || size > count {
                continue;
            }
            if size == count {
                let members = (0..blocks).filter(|b| set >> b & 1 == 1);
                members.for_each(|b| included[b] += chance[set]);
                continue;
            }
            let left = (0..blocks).filter(|b| set >> b & 1 == 0);
            let rest: f64 = left.clone().map(|b| self.probabilities[b]).sum();
            for b in left {
                chance[set | 1 << b] += chance[set] * self.probabilities[b] / rest;
            }
        }
        Ok(included)
    }

    fn check(&self, count: usize) -> Result<()> {
        let possible = self.probabilities.iter().filter(|p| **p > 0.0).count();
        if count <= possible {
            return Ok(());
        }
        Err(Error::OutOfRange {
            what: "blocks to draw".to_string(),
            found: count.to_string(),
            expected: format!("at most {possible}, which have a probability above 0"),
        })
    }
}
