use prune_core::{Allocation, Allocator, Budget, Error, LayerKind, Result, ScoredLayer};

use crate::fill::{Line, fill};
use crate::{Fidelity, layers};

/// The same density for every layer. Ignores scores.
///
/// ```
/// use prune_allocate::Uniform;
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layers: [ScoredLayer; 2] =
///     [LayerInfo::linear("a", 4, 4).into(), LayerInfo::linear("b", 8, 4).into()];
/// let kept = Uniform.allocate(&layers, &Budget::sparsity(0.75)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [4, 8]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uniform;

impl Uniform {
    /// The density of each layer before rounding: 1 − sparsity.
    ///
    /// # Errors
    /// [`Error::Infeasible`] without layers; [`Error::OutOfRange`] for a weight given twice or an
    /// overflowing shape.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        Ok(vec![budget.density(); layers::sizes(layers)?.len()])
    }
}

impl Allocator for Uniform {
    type Share = usize;

    fn name(&self) -> &str {
        "uniform"
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let densities = self.densities(layers, budget)?;
        layers::rounded(layers, &layers::sizes(layers)?, &densities, budget)
    }
}

/// Uniform, but the first convolution stays dense and the last linear layer keeps at least 20 %.
/// Ignores scores.
///
/// First and last are in the order of the layers; a network without a convolution has no first
/// one. The others share what is left evenly, so that the budget holds.
///
/// [`Fidelity::Released`] does as the code released with "The Unreasonable Effectiveness of Random
/// Pruning", which misses the budget: below a density of 0.2 it divides what is left by all
/// weights, not by those of the others; from 0.2 on the others get the plain density. Each layer
/// keeps `n − ⌊sparsity · n⌋`, where that code draws every weight by itself.
///
/// Source: Gale, Elsen, Hooker, "The State of Sparsity in Deep Neural Networks", 2019.
///
/// ```
/// use prune_allocate::UniformPlus;
/// use prune_core::{Allocator, Budget, LayerInfo, LayerKind, ScoredLayer};
///
/// let conv = |name, shape: [usize; 4]| {
///     LayerInfo::from_name(name, LayerKind::Conv2d, shape.to_vec())
/// };
/// let layers: [ScoredLayer; 3] = [
///     conv("stem", [16, 3, 3, 3]).into(),
///     conv("body", [64, 16, 3, 3]).into(),
///     LayerInfo::linear("head", 10, 64).into(),
/// ];
/// let kept = UniformPlus::default().allocate(&layers, &Budget::sparsity(0.9)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [432, 469, 128]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UniformPlus {
    fidelity: Fidelity,
}

impl UniformPlus {
    /// The same allocator with another fidelity.
    #[must_use]
    pub fn with_fidelity(self, fidelity: Fidelity) -> Self {
        Self { fidelity }
    }

    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// As [`Uniform::densities`]; [`Error::Infeasible`] when the first convolution and a fifth of
    /// the last linear layer are more than the budget keeps.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let sizes = layers::sizes(layers)?;
        let first = layers.iter().position(|l| l.info.kind == LayerKind::Conv2d);
        let last = layers.iter().rposition(|l| l.info.kind == LayerKind::Linear);
        let floor = |l: usize| match Some(l) {
            l if l == first => 1.0,
            l if l == last => 0.2,
            _ => 0.0,
        };
        let total: usize = sizes.iter().sum();
        if self.fidelity == Fidelity::Released {
            let density = budget.density();
            let ends: f64 = sizes.iter().enumerate().map(|(l, &n)| floor(l) * n as f64).sum();
            let others = match density < 0.2 {
                true => (density - ends / total.max(1) as f64).max(0.0),
                false => density,
            };
            return Ok((0..sizes.len()).map(|l| others.max(floor(l))).collect());
        }
        let lines: Vec<Line> = sizes
            .iter()
            .enumerate()
            .map(|(l, &size)| {
                let n = size as f64;
                let least = (floor(l) * n).max(budget.min_keep(size) as f64);
                Line { at_zero: 0.0, slope: n, least, most: n }
            })
            .collect();
        let least: f64 = lines.iter().map(|l| l.least).sum();
        if least > budget.keep_total(total) as f64 {
            return Err(Error::Infeasible(format!(
                "uniform+ keeps at least {} weights (the first convolution, a fifth of the last \
                 linear layer), but the budget keeps {}",
                least.ceil(),
                budget.keep_total(total)
            )));
        }
        let targets = fill(&lines, budget.density() * total as f64);
        Ok(targets.iter().zip(&lines).map(|(t, line)| layers::density(*t, line.most)).collect())
    }
}

impl Allocator for UniformPlus {
    type Share = usize;

    fn name(&self) -> &str {
        "uniform+"
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
