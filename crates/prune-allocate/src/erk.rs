use prune_core::{Allocation, Allocator, Budget, Error, Result, ScoredLayer};

use crate::fill::{Line, fill};
use crate::layers;

/// Erdős–Rényi densities: proportional to `(a + b) / (a · b)` of the first two dimensions of each
/// weight. Ignores scores and the size of a convolution's kernel; see [`Erk`] for the rest.
///
/// Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
/// connectivity inspired by network science", 2018.
///
/// ```
/// use prune_allocate::Er;
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layers: [ScoredLayer; 2] =
///     [LayerInfo::linear("a", 300, 784).into(), LayerInfo::linear("b", 100, 300).into()];
/// let densities = Er.densities(&layers, &Budget::sparsity(0.9)?)?;
/// // Inversely proportional to width: the kept weights are as 1084 to 400.
/// let (a, b) = (densities[0] * 235_200.0, densities[1] * 30_000.0);
/// assert!((a / b - 2.71).abs() < 1e-9);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Er;

/// Erdős–Rényi-kernel densities: proportional to the sum over the product of all dimensions of
/// each weight. Ignores scores.
///
/// So a layer keeps a number of weights proportional to the sum of its dimensions, and small layers
/// stay denser than large ones. A layer that this would fill stays dense, and the others share
/// what is left in the same proportions; none goes below the minimum of the budget. For linear
/// layers it is the same as [`Er`]. O(L log L).
///
/// Source: Evci et al., "Rigging the Lottery", 2020; Liu et al., "The Unreasonable Effectiveness
/// of Random Pruning", 2022.
///
/// ```
/// use prune_allocate::Erk;
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layers: [ScoredLayer; 3] = [
///     LayerInfo::linear("a", 300, 784).into(),
///     LayerInfo::linear("b", 100, 300).into(),
///     LayerInfo::linear("c", 10, 100).into(),
/// ];
/// let kept = Erk.allocate(&layers, &Budget::sparsity(0.9)?)?;
/// // The last layer is full.
/// assert_eq!(kept.get(&layers[2].info.id), Some(&1000));
/// assert_eq!(kept.total(), 26_620);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Erk;

impl Er {
    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// As [`Erk::densities`].
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let kept = |shape: &[usize]| {
            let kernel: f64 = shape[2..].iter().map(|&d| d as f64).product();
            (shape[0] as f64 + shape[1] as f64) * kernel
        };
        densities(layers, budget, kept)
    }
}

impl Erk {
    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a weight with fewer than two dimensions, given twice, or of an
    /// overflowing shape; [`Error::Infeasible`] without layers.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        densities(layers, budget, |shape| shape.iter().map(|&d| d as f64).sum())
    }
}

/// Densities where a layer that is not full keeps a number of weights proportional to
/// `kept(shape)`.
fn densities(
    layers: &[ScoredLayer],
    budget: &Budget,
    kept: impl Fn(&[usize]) -> f64,
) -> Result<Vec<f64>> {
    let sizes = layers::sizes(layers)?;
    if let Some(layer) = layers.iter().find(|l| l.info.shape.len() < 2) {
        return Err(Error::OutOfRange {
            what: format!("shape of `{}`", layer.info.id),
            found: format!("{:?}", layer.info.shape),
            expected: "two dimensions or more".to_string(),
        });
    }
    let lines: Vec<Line> = layers
        .iter()
        .zip(&sizes)
        .map(|(layer, &size)| Line {
            at_zero: 0.0,
            slope: kept(&layer.info.shape),
            least: budget.min_keep(size) as f64,
            most: size as f64,
        })
        .collect();
    let total: f64 = sizes.iter().map(|&n| n as f64).sum();
    let targets = fill(&lines, budget.density() * total);
    Ok(targets.iter().zip(&lines).map(|(t, line)| layers::density(*t, line.most)).collect())
}

impl Allocator for Er {
    type Share = usize;

    fn name(&self) -> &str {
        "er"
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let densities = self.densities(layers, budget)?;
        layers::rounded(layers, &layers::sizes(layers)?, &densities, budget)
    }
}

impl Allocator for Erk {
    type Share = usize;

    fn name(&self) -> &str {
        "erk"
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let densities = self.densities(layers, budget)?;
        layers::rounded(layers, &layers::sizes(layers)?, &densities, budget)
    }
}
