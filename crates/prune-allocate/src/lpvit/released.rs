use prune_core::{Error, Result};

use super::smoothing::{slopes, smooth};

/// LPViT's own allocation, as its released code (commit 0759ff4) does it: each layer stands where
/// the slope of its smoothed curve comes nearest to a common value 2^q, and q is found by bisection
/// over −100..=100.
///
/// Curves are not convex and slopes not sorted, so that the sparsity need not follow q and the
/// bisection may end far from its target. For comparisons; see [`Lpvit`](crate::Lpvit).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReleasedBisection {
    /// The weight of the past in the moving average; 0 to 1.
    pub smoothing: f64,
    /// Half the width of the stencil for slopes.
    pub half_width: usize,
    /// The part of a layer that stays at least; at most half of what the target leaves.
    pub min_keep: f64,
    /// How near to the target will do.
    pub tolerance: f64,
    /// Bisections at most.
    pub iterations: usize,
}

impl Default for ReleasedBisection {
    fn default() -> Self {
        Self { smoothing: 0.5, half_width: 4, min_keep: 0.05, tolerance: 0.02, iterations: 40 }
    }
}

/// A layer as [`ReleasedBisection`] sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleasedLayer {
    /// The loss at rising fractions to prune, as `prune_importance::BlockRanking::released_curve`
    /// gives them.
    pub curve: Vec<(f64, f64)>,
    /// What is left when the first `k` blocks go, for every `k`: weights for a target sparsity,
    /// multiplications for a budget of them.
    pub left: Vec<u64>,
}

/// Where [`ReleasedBisection`] ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleasedSolution {
    /// The fraction to prune of each layer.
    pub fractions: Vec<f64>,
    /// The blocks that go with it: what the released mask function makes of the fraction.
    pub removed: Vec<usize>,
    /// The part of everything that goes. Nowhere near the target when the bisection failed.
    pub reached: f64,
    /// Bisections taken.
    pub iterations: usize,
}

impl ReleasedBisection {
    /// Where the bisection for removing the part `target` of everything ends. `total` is what 1
    /// means: all weights, or all multiplications, of the layers.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a target or option outside 0..=1 or a curve that does not rise from
    /// fraction 0; [`Error::NotFinite`] for a loss.
    ///
    /// ```
    /// use prune_allocate::{ReleasedBisection, ReleasedLayer};
    /// let curve = |scale: f64| (0..=100).map(move |d| (f64::from(d) / 100.0, scale * f64::from(d * d)));
    /// let layer = |scale| ReleasedLayer { curve: curve(scale).collect(), left: (0..=50).rev().collect() };
    /// let found = ReleasedBisection::default().solve(&[layer(1.0), layer(3.0)], 100, 0.5)?;
    /// assert!((found.reached - 0.5).abs() <= 0.02);
    /// assert!(found.removed[0] > found.removed[1]);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn solve(
        &self,
        layers: &[ReleasedLayer],
        total: u64,
        target: f64,
    ) -> Result<ReleasedSolution> {
        self.check(layers, target)?;
        let min_keep = self.min_keep.min((1.0 - target) / 2.0);
        let smoothed: Vec<Vec<(f64, f64)>> = layers
            .iter()
            .map(|layer| {
                let losses: Vec<f64> = layer.curve.iter().map(|p| p.1).collect();
                let smoothed = smooth(&losses, self.smoothing);
                layer.curve.iter().map(|p| p.0).zip(smoothed).collect()
            })
            .collect();
        let all_slopes: Vec<Vec<f64>> =
            smoothed.iter().map(|curve| slopes(curve, self.half_width)).collect();
        let at = |exponent: f64| {
            let slope = exponent.exp2();
            let fractions: Vec<f64> = smoothed
                .iter()
                .zip(&all_slopes)
                .map(|(curve, slopes)| {
                    let distance = |i: &usize| (slopes[*i] - slope).abs();
                    let nearest =
                        (0..slopes.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)));
                    nearest.map_or(0.0, |i| curve[i].0).min(1.0 - min_keep)
                })
                .collect();
            let removed: Vec<usize> =
                layers.iter().zip(&fractions).map(|(layer, f)| layer.removed(*f)).collect();
            let left: u64 = layers.iter().zip(&removed).map(|(layer, k)| layer.left[*k]).sum();
            let reached = 1.0 - left as f64 / total.max(1) as f64;
            ReleasedSolution { fractions, removed, reached, iterations: 0 }
        };
        let (mut low, mut high) = (-100.0, 100.0);
        let mut found = at(0.0);
        for iteration in 1..=self.iterations {
            let middle = (low + high) / 2.0;
            found = ReleasedSolution { iterations: iteration, ..at(middle) };
            if (found.reached - target).abs() <= self.tolerance {
                break;
            }
            if found.reached < target { low = middle } else { high = middle }
        }
        Ok(found)
    }

    fn check(&self, layers: &[ReleasedLayer], target: f64) -> Result<()> {
        for (what, value) in [
            ("target", target),
            ("smoothing", self.smoothing),
            ("min_keep", self.min_keep),
            ("tolerance", self.tolerance),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::OutOfRange {
                    what: format!("{what} of the released bisection"),
                    found: value.to_string(),
                    expected: "0 to 1".to_string(),
                });
            }
        }
        for (l, layer) in layers.iter().enumerate() {
            if let Some(index) = layer.curve.iter().position(|p| !p.1.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("curve of layer {l}"),
                    index,
                    value: layer.curve[index].1.to_string(),
                });
            }
            let starts = layer.curve.first().is_some_and(|p| p.0 == 0.0);
            let rises = layer.curve.windows(2).all(|w| w[0].0 < w[1].0 && w[1].0 <= 1.0);
            if !(starts && rises) || layer.left.is_empty() {
                return Err(Error::OutOfRange {
                    what: format!("curve of layer {l}"),
                    found: format!("{} points for {} counts", layer.curve.len(), layer.left.len()),
                    expected: "fractions that rise from 0 to at most 1, and at least one count"
                        .to_string(),
                });
            }
        }
        Ok(())
    }
}

impl ReleasedLayer {
    /// The blocks that go at a fraction: all but `⌊(1 − fraction) n⌋`, in floating point.
    fn removed(&self, fraction: f64) -> usize {
        let blocks = self.left.len() - 1;
        let kept = ((1.0 - fraction) * blocks as f64) as usize;
        blocks - kept.min(blocks)
    }
}
