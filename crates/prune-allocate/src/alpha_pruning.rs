use prune_core::{
    Allocation, Allocator, Budget, Error, LayerInfo, Result, ScoredLayer, scale_with_cap,
};

use crate::groups::{Granularity, Groups, check_scores, unit_range};
use crate::{Fidelity, layers};

/// Sparsity by the heavy-tail exponent of the spectrum: layers with a lighter tail lose more.
///
/// The score of a layer is the exponent α of a power law fitted to the squared singular values of
/// its weight; a small α (a heavy tail) is the mark of a well-trained layer. At
/// [`Granularity::Block`], as the authors do for language models, the layers of a block share the
/// mean of their exponents.
///
/// ```text
/// base = 1 − ε + 2ε · (α − min α) / (max α − min α)
/// sparsity = base · S · Σ n / Σ (n · base)
/// ```
///
/// So the sparsest and the densest layer are as (1 + ε) to (1 − ε), and the budget is met for
/// layers of any size. Layers that the map would push beyond the largest sparsity of the budget
/// stay there, and the others share the rest in the same proportions. Equal exponents give uniform
/// sparsity. Adding a constant to all exponents or multiplying them by one changes nothing.
///
/// [`AlphaPruning::farms`] is the same map for exponents that were measured on windows of one
/// aspect ratio, which removes the bias of the fit by the shape of the weight.
///
/// [`Fidelity::Released`] does as the authors' code does beyond 1: AlphaPruning empties the layer;
/// FARMS sets its sparsity to 0.998, or 0.99999 where the budget is 0.7, without correcting the
/// others. Each layer keeps `n − ⌊sparsity · n⌋`.
///
/// Source: Lu et al., "AlphaPruning", 2024; Hu et al., "Eigenspectrum Analysis of Neural Networks
/// without Aspect Ratio Bias", 2025.
///
/// ```
/// use prune_allocate::AlphaPruning;
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layer = |block: usize, score| ScoredLayer {
///     info: LayerInfo::linear(format!("model.layers.{block}.up_proj"), 100, 10),
///     score,
/// };
/// let layers = [layer(0, 2.0), layer(1, 3.0), layer(2, 4.0)];
/// let kept = AlphaPruning::new(0.2)?.allocate(&layers, &Budget::sparsity(0.5)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [600, 500, 400]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlphaPruning {
    epsilon: f64,
    granularity: Granularity,
    fidelity: Fidelity,
    windows: bool,
}

impl Default for AlphaPruning {
    /// ε = 0.3, [`Granularity::Block`], [`Fidelity::Exact`].
    fn default() -> Self {
        Self {
            epsilon: Self::EPSILON,
            granularity: Granularity::Block,
            fidelity: Fidelity::Exact,
            windows: false,
        }
    }
}

impl AlphaPruning {
    /// The default ε of the released code. The paper's experiments use 0.1 to 0.5, searched for
    /// each model and sparsity.
    pub const EPSILON: f64 = 0.3;

    /// A map with this ε, `0 <= epsilon < 1`; 0 is uniform.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn new(epsilon: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&epsilon) {
            return Err(Error::OutOfRange {
                what: "alpha epsilon".to_string(),
                found: epsilon.to_string(),
                expected: "0 <= epsilon < 1".to_string(),
            });
        }
        Ok(Self { epsilon, ..Self::default() })
    }

    /// The same map for exponents measured on windows.
    #[must_use]
    pub fn farms(self) -> Self {
        Self { windows: true, ..self }
    }

    /// The same map for blocks or for layers.
    #[must_use]
    pub fn with_granularity(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// The same map with another fidelity.
    #[must_use]
    pub fn with_fidelity(self, fidelity: Fidelity) -> Self {
        Self { fidelity, ..self }
    }

    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming the layer; [`Error::OutOfRange`] for a weight given twice or an
    /// overflowing shape; [`Error::Infeasible`] without layers.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let sizes = layers::sizes(layers)?;
        check_scores(layers)?;
        let groups = Groups::new(layers, self.granularity);
        let alphas = groups.means(layers.iter().map(|l| l.score));
        let base = |u: &f64| 1.0 - self.epsilon + 2.0 * self.epsilon * u;
        let bases: Vec<f64> = unit_range(&alphas).iter().map(base).collect();
        let bases = groups.spread(&bases);
        let sparsity = budget.target_sparsity();
        let sparsities = match self.fidelity {
            Fidelity::Exact => {
                scale_with_cap(&bases, &sizes, sparsity, budget.max_layer_sparsity())?
            }
            Fidelity::Released => {
                let all: f64 = sizes.iter().map(|&n| n as f64).sum();
                let weighted: f64 = sizes.iter().zip(&bases).map(|(&n, b)| n as f64 * b).sum();
                let scale = if weighted > 0.0 { sparsity * all / weighted } else { 0.0 };
                let beyond = match self.windows {
                    false => 1.0,
                    true if sparsity == 0.7 => 0.99999,
                    true => 0.998,
                };
                let guarded = |s: f64| if s > 1.0 { beyond } else { s };
                bases.iter().map(|b| guarded(scale * b)).collect()
            }
        };
        Ok(sparsities.iter().map(|s| 1.0 - s).collect())
    }

    /// The exponent of every layer where some have none, because too few of their singular values
    /// survive for a fit: the mean of the layer's block; where the block has none either, the value
    /// that gives the layer the sparsity of the budget.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ; [`Error::Infeasible`] when no layer has one;
    /// [`Error::NotFinite`]; [`Error::OutOfRange`] for an overflowing shape.
    ///
    /// ```
    /// use prune_allocate::AlphaPruning;
    /// use prune_core::LayerInfo;
    ///
    /// let layers = ["layers.0.q", "layers.0.k", "layers.1.q", "head"]
    ///     .map(|name| LayerInfo::linear(name, 4, 4));
    /// let known = [Some(2.0), None, Some(5.0), None];
    /// let all = AlphaPruning::default().complete(&layers, &known)?;
    /// // The head: (2 + 2 + 5) / 3.
    /// assert_eq!(all, [2.0, 2.0, 5.0, 3.0]);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn complete(&self, layers: &[LayerInfo], alphas: &[Option<f64>]) -> Result<Vec<f64>> {
        if layers.len() != alphas.len() {
            return Err(Error::Shape {
                what: "exponents of the layers".to_string(),
                found: vec![alphas.len()],
                expected: vec![layers.len()],
            });
        }
        let scored: Vec<ScoredLayer> = layers
            .iter()
            .zip(alphas)
            .map(|(info, a)| ScoredLayer { info: info.clone(), score: a.unwrap_or(0.0) })
            .collect();
        check_scores(&scored)?;
        let sizes = layers::sizes(&scored)?;
        let blocks = Groups::new(&scored, Granularity::Block);
        let known = blocks.sums(alphas.iter().map(|a| f64::from(a.is_some())));
        let sums = blocks.sums(scored.iter().map(|l| l.score));
        let mut completed: Vec<Option<f64>> = alphas
            .iter()
            .zip(&blocks.of_layer)
            .map(|(a, &b)| a.or((known[b] > 0.0).then(|| sums[b] / known[b])))
            .collect();
        // The map is affine in α, so the mean by weights of what the others are mapped at maps to
        // the sparsity of the budget.
        let mapped: Vec<f64> = match self.granularity {
            Granularity::Layer => completed.iter().map(|a| a.unwrap_or(0.0)).collect(),
            Granularity::Block => {
                blocks.spread(&blocks.means(completed.iter().map(|a| a.unwrap_or(0.0))))
            }
        };
        let (mut sum, mut weights) = (0.0, 0.0);
        for ((a, m), &n) in completed.iter().zip(&mapped).zip(&sizes) {
            if a.is_some() {
                sum += n as f64 * m;
                weights += n as f64;
            }
        }
        if weights == 0.0 {
            return Err(Error::Infeasible("no layer has an exponent to go by".to_string()));
        }
        completed.iter_mut().for_each(|a| *a = a.or(Some(sum / weights)));
        Ok(completed.into_iter().flatten().collect())
    }
}

impl Allocator for AlphaPruning {
    type Share = usize;

    fn name(&self) -> &str {
        match (self.windows, self.granularity) {
            (false, Granularity::Block) => "alphapruning",
            (false, Granularity::Layer) => "alphapruning-layer",
            (true, Granularity::Block) => "farms",
            (true, Granularity::Layer) => "farms-layer",
        }
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let densities = self.densities(layers, budget)?;
        let sizes = layers::sizes(layers)?;
        match self.fidelity {
            Fidelity::Exact => layers::rounded(layers, &sizes, &densities, budget),
            Fidelity::Released => layers::released(layers, &sizes, &densities),
        }
    }
}
