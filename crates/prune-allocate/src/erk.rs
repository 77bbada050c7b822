use prune_core::{Allocation, Allocator, Budget, Error, LayerKind, Result, ScoredLayer};

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

/// As [`Erk`], but the last linear layer has a density of its own, dense unless set.
///
/// Last is in the order of the layers; a network without a linear layer has none. Ignores scores.
///
/// Source: Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022 (for ImageNet).
///
/// ```
/// use prune_allocate::ErkPlus;
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layers: [ScoredLayer; 2] =
///     [LayerInfo::linear("a", 300, 784).into(), LayerInfo::linear("b", 10, 300).into()];
/// let kept = ErkPlus::default().allocate(&layers, &Budget::sparsity(0.9)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [20_820, 3000]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErkPlus {
    last: f64,
}

impl Default for ErkPlus {
    /// A dense last layer.
    fn default() -> Self {
        Self { last: 1.0 }
    }
}

impl ErkPlus {
    /// An allocator with this density of the last linear layer, 0 to 1.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn new(last: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&last) {
            return Err(Error::OutOfRange {
                what: "density of the last linear layer".to_string(),
                found: last.to_string(),
                expected: "0 to 1".to_string(),
            });
        }
        Ok(Self { last })
    }

    /// The density of each layer before rounding.
    ///
    /// # Errors
    /// As [`Erk::densities`]; [`Error::Infeasible`] when the last linear layer alone is more than
    /// the budget keeps.
    pub fn densities(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Vec<f64>> {
        let last = layers.iter().rposition(|l| l.info.kind == LayerKind::Linear);
        let sizes = layers::sizes(layers)?;
        let least: f64 = sizes
            .iter()
            .enumerate()
            .map(|(l, &n)| match Some(l) == last {
                true => (self.last * n as f64).max(budget.min_keep(n) as f64),
                false => budget.min_keep(n) as f64,
            })
            .sum();
        let keep = budget.keep_total(sizes.iter().sum());
        if least > keep as f64 {
            return Err(Error::Infeasible(format!(
                "erk+ keeps at least {} weights, most of them of the last linear layer, but the \
                 budget keeps {keep}",
                least.ceil()
            )));
        }
        let sum = |shape: &[usize]| shape.iter().map(|&d| d as f64).sum();
        densities_within(layers, budget, sum, |l| (Some(l) == last).then_some(self.last))
    }
}

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
    densities_within(layers, budget, kept, |_| None)
}

/// As [`densities`], where the density of a layer may be given.
fn densities_within(
    layers: &[ScoredLayer],
    budget: &Budget,
    kept: impl Fn(&[usize]) -> f64,
    given: impl Fn(usize) -> Option<f64>,
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
        .enumerate()
        .map(|(l, (layer, &size))| {
            let (least, most) = (budget.min_keep(size) as f64, size as f64);
            let at = given(l).map(|density| (density * most).max(least));
            Line {
                at_zero: 0.0,
                slope: kept(&layer.info.shape),
                least: at.unwrap_or(least),
                most: at.unwrap_or(most),
            }
        })
        .collect();
    let total: f64 = sizes.iter().map(|&n| n as f64).sum();
    let targets = fill(&lines, budget.density() * total);
    Ok(targets.iter().zip(&sizes).map(|(t, &n)| layers::density(*t, n as f64)).collect())
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

impl Allocator for ErkPlus {
    type Share = usize;

    fn name(&self) -> &str {
        "erk+"
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let densities = self.densities(layers, budget)?;
        layers::rounded(layers, &layers::sizes(layers)?, &densities, budget)
    }
}
