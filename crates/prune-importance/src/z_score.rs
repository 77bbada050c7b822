use ndarray::ArrayView2;
use prune_core::{Error, Result};

use crate::checks::finite;

/// Which weights count as far from the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Tail {
    /// Those more than a deviation above it, as the paper has it.
    #[default]
    Upper,
    /// Those more than a deviation above or below, as a third-party implementation has it.
    Both,
}

/// The divisor of the variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Deviation {
    /// The number of weights.
    #[default]
    Population,
    /// One less.
    Sample,
}

/// First of two passes for the z-score distribution (ZD) of a block: the share of its weights that
/// lie more than a standard deviation above their mean.
///
/// All linear layers of the block are pooled. A block of lower ZD has fewer weights that are much
/// larger than the rest, and deserves more bits. Data-free. This pass takes mean and deviation;
/// [`ZScoreDistribution::second_pass`] counts. Sums are f64, joined by Chan's update, so that a
/// large mean does not eat the deviation.
///
/// Between 0 and 0.5 for the upper tail; 0.1587 for normal weights. Unchanged by `a · w + c` with
/// a > 0. Equal weights give 0.
///
/// Source: Dumitru et al., "Layer-Wise Quantization", 2024.
///
/// ```
/// use ndarray::array;
/// use prune_importance::{Tail, ZScoreDistribution};
///
/// let weight = array![[0.0, 1.0, 0.0, -1.0, 0.0, 9.0]];
/// let mut moments = ZScoreDistribution::new();
/// moments.observe("up_proj", weight.view())?;
/// let mut count = moments.second_pass(Tail::Upper);
/// count.observe("up_proj", weight.view())?;
/// assert_eq!(count.share()?, 1.0 / 6.0);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ZScoreDistribution {
    deviation: Deviation,
    weights: u64,
    mean: f64,
    squares: f64,
}

impl ZScoreDistribution {
    /// A block of which nothing was seen, with the population's deviation.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with another divisor of the variance.
    #[must_use]
    pub fn with_deviation(self, deviation: Deviation) -> Self {
        Self { deviation, ..self }
    }

    /// Adds one linear layer.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming `what`; nothing is added then.
    pub fn observe(&mut self, what: &str, weight: ArrayView2<'_, f32>) -> Result<()> {
        finite(what, &weight)?;
        let count = weight.len() as f64;
        if weight.is_empty() {
            return Ok(());
        }
        let mean = weight.iter().map(|w| f64::from(*w)).sum::<f64>() / count;
        let squares: f64 = weight.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum();
        let before = self.weights as f64;
        let total = before + count;
        let delta = mean - self.mean;
        self.mean += delta * (count / total);
        self.squares += squares + delta * delta * (before * count / total);
        self.weights += weight.len() as u64;
        Ok(())
    }

    /// The mean of all weights.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard deviation of all weights; 0 of fewer than two.
    pub fn standard_deviation(&self) -> f64 {
        let divisor = match self.deviation {
            Deviation::Population => self.weights as f64,
            Deviation::Sample => self.weights as f64 - 1.0,
        };
        if divisor > 0.0 { (self.squares / divisor).sqrt() } else { 0.0 }
    }

    /// The second pass, with the moments of all that was shown to the first.
    pub fn second_pass(self, tail: Tail) -> ZScoreCount {
        let deviation = self.standard_deviation();
        ZScoreCount { mean: self.mean, deviation, tail, expected: self.weights, seen: 0, beyond: 0 }
    }
}

/// Second pass of [`ZScoreDistribution`]: counts.
#[derive(Debug, Clone, PartialEq)]
pub struct ZScoreCount {
    mean: f64,
    deviation: f64,
    tail: Tail,
    expected: u64,
    seen: u64,
    beyond: u64,
}

impl ZScoreCount {
    /// Counts one linear layer, with the same weight as in the first pass.
    ///
    /// # Errors
    /// As [`ZScoreDistribution::observe`].
    pub fn observe(&mut self, what: &str, weight: ArrayView2<'_, f32>) -> Result<()> {
        finite(what, &weight)?;
        let beyond = |w: &&f32| {
            let distance = f64::from(**w) - self.mean;
            match self.tail {
                Tail::Upper => distance > self.deviation,
                Tail::Both => distance.abs() > self.deviation,
            }
        };
        if self.deviation > 0.0 {
            self.beyond += weight.iter().filter(beyond).count() as u64;
        }
        self.seen += weight.len() as u64;
        Ok(())
    }

    /// ZD: the share of weights beyond a deviation, 0 to 1.
    ///
    /// # Errors
    /// [`Error::Shape`] when the two passes were shown different numbers of weights, or none.
    pub fn share(&self) -> Result<f64> {
        if self.seen != self.expected || self.seen == 0 {
            return Err(Error::Shape {
                what: "weights in the second pass over a block".to_string(),
                found: vec![self.seen as usize],
                expected: vec![self.expected.max(1) as usize],
            });
        }
        Ok(self.beyond as f64 / self.seen as f64)
    }
}
