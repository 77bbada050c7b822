use ndarray::ArrayView2;
use prune_core::{ColumnStats, Error, LayerId, Result};

/// First of two passes that measure how many outliers the weights of one transformer block hold.
///
/// With `A[i, j] = |W[i, j]| · ‖X[:, j]‖₂` over all linear layers of the block together, the layer
/// outlier distribution is the percentage of `A` above `multiplier · mean(A)`:
///
/// ```text
/// D = 100 · #{A > M · mean(A)} / #A
/// ```
///
/// This pass takes the mean; [`OutlierDistribution::second_pass`] counts. Both stream: a weight is
/// shown, read once and forgotten, scratch is 8 bytes an input channel, all sums are f64. The order
/// of layers matters to the last bits of the mean only.
///
/// D does not change when all inputs of a block are scaled alike. A channel that calibration never
/// excited counts as `A = 0`, and so do weights that are already zero.
///
/// Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", 2023.
///
/// ```
/// use ndarray::array;
/// use prune_importance::OutlierDistribution;
/// use prune_core::{ColumnStats, LayerId};
///
/// let weight = array![[1.0, -2.0, 0.5], [0.25, 4.0, -1.0]];
/// let mut inputs = ColumnStats::new(3);
/// inputs.update("x", array![[1.0, 0.0, 2.0], [2.0, 1.0, -1.0], [0.0, 3.0, 1.0]].view())?;
///
/// let layer = LayerId::new("model.layers.0.mlp.up_proj");
/// let mut mean = OutlierDistribution::new(2.0)?;
/// mean.observe(&layer, weight.view(), &inputs)?;
/// let mut count = mean.second_pass()?;
/// count.observe(&layer, weight.view(), &inputs)?;
/// assert_eq!(count.percent()?, 100.0 / 6.0);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDistribution {
    multiplier: f64,
    sum: f64,
    weights: usize,
}

impl OutlierDistribution {
    /// The multiplier M that the paper's experiments use.
    pub const MULTIPLIER: f64 = 5.0;

    /// A block of which nothing has been seen; `multiplier` is M, finite and above 0.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn new(multiplier: f64) -> Result<Self> {
        if !(multiplier.is_finite() && multiplier > 0.0) {
            return Err(Error::OutOfRange {
                what: "outlier multiplier".to_string(),
                found: multiplier.to_string(),
                expected: "finite and above 0".to_string(),
            });
        }
        Ok(Self { multiplier, sum: 0.0, weights: 0 })
    }

    /// Adds one linear layer, `(out_features, in_features)`, and what calibration saw at its input.
    /// One pass over the weight. On error nothing is added.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] when the statistics saw no token; [`Error::Shape`] when they have
    /// other channels; [`Error::NotFinite`] naming the weight.
    pub fn observe(
        &mut self,
        layer: &LayerId,
        weight: ArrayView2<'_, f32>,
        inputs: &ColumnStats,
    ) -> Result<()> {
        let norms = norms(layer, weight, inputs)?;
        // Summed by column first: independent sums, one multiplication a channel.
        let mut magnitudes = vec![0.0f64; norms.len()];
        for row in weight.outer_iter() {
            for (sum, w) in magnitudes.iter_mut().zip(row) {
                *sum += f64::from(w.abs());
            }
        }
        if !magnitudes.iter().all(|m| m.is_finite()) {
            finite(layer, weight)?;
        }
        self.sum += magnitudes.iter().zip(&norms).map(|(m, n)| m * n).sum::<f64>();
        self.weights += weight.len();
        Ok(())
    }

    /// The second pass, with the mean of all that was shown to the first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when no weight was shown.
    pub fn second_pass(self) -> Result<OutlierCount> {
        if self.weights == 0 {
            return Err(Error::OutOfRange {
                what: "outlier distribution".to_string(),
                found: "a block without weights".to_string(),
                expected: "at least one weight".to_string(),
            });
        }
        let threshold = self.multiplier * (self.sum / self.weights as f64);
        Ok(OutlierCount { threshold, expected: self.weights, seen: 0, above: 0 })
    }
}

/// Second pass of [`OutlierDistribution`]: counts the outliers.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierCount {
    threshold: f64,
    expected: usize,
    seen: usize,
    above: usize,
}

impl OutlierCount {
    /// What an `A[i, j]` must exceed to count: `multiplier · mean(A)`.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// Counts one linear layer, with the same weight and statistics as in the first pass.
    ///
    /// # Errors
    /// As [`OutlierDistribution::observe`].
    pub fn observe(
        &mut self,
        layer: &LayerId,
        weight: ArrayView2<'_, f32>,
        inputs: &ColumnStats,
    ) -> Result<()> {
        let norms = norms(layer, weight, inputs)?;
        let (mut above, mut finite_all) = (0usize, true);
        for row in weight.outer_iter() {
            for (norm, w) in norms.iter().zip(row) {
                finite_all &= w.is_finite();
                above += usize::from(f64::from(w.abs()) * norm > self.threshold);
            }
        }
        if !finite_all {
            finite(layer, weight)?;
        }
        self.above += above;
        self.seen += weight.len();
        Ok(())
    }

    /// D: the percentage of outliers, 0 to 100.
    ///
    /// # Errors
    /// [`Error::Shape`] when the two passes were shown different numbers of weights.
    pub fn percent(&self) -> Result<f64> {
        if self.seen != self.expected {
            return Err(Error::Shape {
                what: "weights in the second pass over a block".to_string(),
                found: vec![self.seen],
                expected: vec![self.expected],
            });
        }
        Ok(100.0 * self.above as f64 / self.seen as f64)
    }
}

/// ‖X[:, j]‖₂ of every input channel.
fn norms(layer: &LayerId, weight: ArrayView2<'_, f32>, inputs: &ColumnStats) -> Result<Vec<f64>> {
    if inputs.count() == 0 {
        return Err(Error::NoStatistics {
            layer: layer.to_string(),
            method: "owl".to_string(),
            needed: "column statistics",
        });
    }
    if inputs.channels() != weight.ncols() {
        return Err(Error::Shape {
            what: format!("column statistics of `{layer}`"),
            found: vec![inputs.channels()],
            expected: vec![weight.ncols()],
        });
    }
    Ok(inputs.squared_norm().iter().map(|s| s.sqrt()).collect())
}

fn finite(layer: &LayerId, weight: ArrayView2<'_, f32>) -> Result<()> {
    match weight.iter().enumerate().find(|(_, w)| !w.is_finite()) {
        None => Ok(()),
        Some((index, w)) => {
            Err(Error::NotFinite { what: layer.weight_name(), index, value: w.to_string() })
        }
    }
}
