use prune_core::{Allocation, Allocator, Budget, Error, LayerKind, Result, ScoredLayer};

use crate::fill::{Line, fill};
use crate::layers;

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
/// one. The others share what is left evenly, so that the budget holds; the code released with
/// "The Unreasonable Effectiveness of Random Pruning" misses it there.
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
/// let kept = UniformPlus.allocate(&layers, &Budget::sparsity(0.9)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [432, 469, 128]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UniformPlus;

impl UniformPlus {
    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// As [`Uniform::densities`]; [`Error::Infeasible`] when the first convolution and a fifth of
    /// the last linear layer are more than the budget keeps.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let sizes = layers::sizes(layers)?;
        let first = layers.iter().position(|l| l.info.kind == LayerKind::Conv2d);
        let last = layers.iter().rposition(|l| l.info.kind == LayerKind::Linear);
        let lines: Vec<Line> = sizes
            .iter()
            .enumerate()
            .map(|(l, &size)| {
                let n = size as f64;
                let least = match Some(l) {
                    l if l == first => n,
                    l if l == last => 0.2 * n,
                    _ => 0.0,
                };
                let least = least.max(budget.min_keep(size) as f64);
                Line { at_zero: 0.0, slope: n, least, most: n }
            })
            .collect();
        let total: usize = sizes.iter().sum();
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
        layers::rounded(layers, &layers::sizes(layers)?, &densities, budget)
    }
}
