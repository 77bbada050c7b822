use prune_core::{Error, Result};

use crate::fill::{Line, fill};

/// What one layer costs at full width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCost {
    /// Its weights.
    pub params: u64,
    /// Its multiplications for one input.
    pub flops: u64,
}

/// What a network may cost; at least one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Limits {
    /// Weights at most.
    pub params: Option<f64>,
    /// Multiplications for one input at most.
    pub flops: Option<f64>,
}

/// Layer densities that maximise the expected synaptic flow of the network within limits on
/// parameters and FLOPs; they need neither data nor weights.
///
/// ```text
/// maximise Σ ln p   so that   Σ params · p ≤ P,   Σ flops · p ≤ F,   0 < p ≤ u
/// ```
///
/// With one limit, every layer that is not at `u` keeps the same number of parameters (of FLOPs).
/// With two, `p = min(u, 1 / (λ · params + μ · flops))`. `u` is 1 for PreCrop; above 1 a layer may
/// become wider than it was (PreConfig), and one limit alone then makes thin ends enormous, so
/// choose 2 to 4.
///
/// The problem is convex: one limit is solved in closed form by a sweep, two by bisection between
/// them; O(L log L) at most a thousand times.
///
/// Source: Tian, Zhang et al., "Structured Pruning is All You Need for Pruning CNNs at
/// Initialization" (PreCropping), 2022.
///
/// ```
/// use prune_allocate::{LayerCost, Limits, PreCrop};
///
/// let layers = [(100, 5000), (400, 5000), (1600, 5000)]
///     .map(|(params, flops)| LayerCost { params, flops });
/// let limits = Limits { params: Some(1050.0), ..Limits::default() };
/// let densities = PreCrop::default().densities(&layers, &limits)?;
/// // The first two would have more than they can hold; the last gets the rest.
/// assert_eq!(densities[..2], [1.0, 1.0]);
/// assert!((densities[2] - 550.0 / 1600.0).abs() < 1e-12);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreCrop {
    most: f64,
}

impl Default for PreCrop {
    /// No layer gets wider: u = 1.
    fn default() -> Self {
        Self { most: 1.0 }
    }
}

impl PreCrop {
    /// PreConfig: densities up to `most`, 1 or more; may be infinite.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn widening(most: f64) -> Result<Self> {
        if most >= 1.0 {
            return Ok(Self { most });
        }
        Err(out_of_range("largest density", most, "at least 1"))
    }

    /// The largest density of a layer.
    pub fn most(&self) -> f64 {
        self.most
    }

    /// The density of each layer, in their order.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a layer without weights or FLOPs (leave it out), and for limits
    /// that are not above 0 or both absent.
    pub fn densities(&self, layers: &[LayerCost], limits: &Limits) -> Result<Vec<f64>> {
        for (l, layer) in layers.iter().enumerate() {
            if layer.params == 0 || layer.flops == 0 {
                return Err(out_of_range(
                    &format!("cost of layer {l}"),
                    format!("{} weights, {} FLOPs", layer.params, layer.flops),
                    "both above 0; leave out layers without weights",
                ));
            }
        }
        for limit in [limits.params, limits.flops].into_iter().flatten() {
            if !(limit > 0.0 && limit.is_finite()) {
                return Err(out_of_range("limit", limit, "finite and above 0"));
            }
        }
        let params = |share: f64| layers.iter().map(move |l| l.params as f64 / share);
        let flops = |share: f64| layers.iter().map(move |l| l.flops as f64 / share);
        let used = |costs: &mut dyn Iterator<Item = f64>, p: &[f64]| -> f64 {
            costs.zip(p).map(|(c, p)| c * p).sum()
        };
        let (most_params, most_flops) = match (limits.params, limits.flops) {
            (None, None) => {
                return Err(out_of_range("limits", "none", "parameters, FLOPs or both"));
            }
            (Some(a), None) => return Ok(self.water_fill(params(a))),
            (None, Some(b)) => return Ok(self.water_fill(flops(b))),
            (Some(a), Some(b)) => (a, b),
        };
        // Both limits as parts of 1, mixed into one: where the mix that binds leaves both tight,
        // or one slack at an end, the densities are optimal for both.
        let at = |mix: f64| {
            let mixed = params(most_params).zip(flops(most_flops));
            self.water_fill(mixed.map(move |(a, b)| (1.0 - mix) * a + mix * b))
        };
        let by_params = at(0.0);
        if used(&mut flops(most_flops), &by_params) <= 1.0 {
            return Ok(by_params);
        }
        let by_flops = at(1.0);
        if used(&mut params(most_params), &by_flops) <= 1.0 {
            return Ok(by_flops);
        }
        let (mut low, mut high) = (0.0, 1.0);
        // As far as f64 goes: 1000 halvings would reach the smallest number.
        for _ in 0..1000 {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                break;
            }
            match used(&mut params(most_params), &at(middle)) <= 1.0 {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok(at(low))
    }

    /// The densities within `Σ cost · p ≤ 1`: equal shares of the limit, but none above its most.
    fn water_fill(&self, costs: impl Iterator<Item = f64>) -> Vec<f64> {
        let costs: Vec<f64> = costs.collect();
        let lines: Vec<Line> = costs
            .iter()
            .map(|c| Line { at_zero: 0.0, slope: 1.0, least: 0.0, most: self.most * c })
            .collect();
        fill(&lines, 1.0).iter().zip(&costs).map(|(share, c)| (share / c).min(self.most)).collect()
    }
}

pub(super) fn out_of_range(what: &str, found: impl std::fmt::Display, expected: &str) -> Error {
    Error::OutOfRange {
        what: what.to_string(),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}
