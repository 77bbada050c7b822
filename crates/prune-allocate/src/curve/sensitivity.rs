use prune_core::{Allocation, Allocator, Budget, Error, Result, ScoredLayer};

use super::error_curve::{ErrorCurve, lower_hull};
use crate::cost::{Solver, solve};
use crate::layers;

/// The least sum of measured errors: one curve of error against sparsity for each layer.
///
/// [`Solver::Lagrangian`] replaces each curve by its lower convex hull and removes weights where
/// the next one costs the least error, in all layers at once, until the budget is met: at the end
/// one price for a weight explains every layer. Exact where the curves are convex, which measured
/// ones nearly are. [`Solver::Exact`] takes the curves as they are and chooses one measured point
/// of each; weights that the points remove beyond the budget are given back along the curves.
///
/// No layer gets sparser than its last point. Layers whose curve lies lower lose more; with equal
/// curves the larger layer is not favoured: it is error for a weight that counts. Ignores scores.
///
/// ```
/// use prune_allocate::{ErrorCurve, Sensitivity, Solver};
/// use prune_core::{Allocator, Budget, LayerInfo, ScoredLayer};
///
/// let layers: [ScoredLayer; 2] =
///     [LayerInfo::linear("a", 10, 10).into(), LayerInfo::linear("b", 10, 10).into()];
/// let curve = |e: [f64; 3]| ErrorCurve::new(vec![(0.0, 0.0), (0.4, e[0]), (0.8, e[1]), (0.9, e[2])]);
/// let curves = vec![curve([1.0, 3.0, 9.0])?, curve([4.0, 9.0, 20.0])?];
/// let kept = Sensitivity::new(curves, Solver::Lagrangian)
///     .allocate(&layers, &Budget::sparsity(0.5)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [20, 80]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    curves: Vec<ErrorCurve>,
    solver: Solver,
}

impl Sensitivity {
    /// An allocator over these curves, in the order of the layers.
    pub fn new(curves: Vec<ErrorCurve>, solver: Solver) -> Self {
        Self { curves, solver }
    }

    /// How many weights each layer may lose at most and, up to there, its error by removed weights.
    fn by_weights(
        &self,
        layers: &[ScoredLayer],
        sizes: &[usize],
        budget: &Budget,
    ) -> Result<Vec<Vec<(f64, f64)>>> {
        if self.curves.len() != layers.len() {
            return Err(Error::Shape {
                what: "error curves of the layers".to_string(),
                found: vec![self.curves.len()],
                expected: vec![layers.len()],
            });
        }
        let curves: Vec<Vec<(f64, f64)>> = self
            .curves
            .iter()
            .zip(sizes)
            .map(|(curve, &n)| {
                let size = n as f64;
                let most = (n - budget.min_keep(n)) as f64 / size.max(1.0);
                curve.up_to(most).into_iter().map(|(s, error)| (s * size, error)).collect()
            })
            .collect();
        let removable: f64 = curves.iter().filter_map(|c| c.last()).map(|p| p.0).sum();
        let remove = budget.remove_total(sizes.iter().sum());
        if removable + 1e-9 * removable.max(1.0) < remove as f64 {
            return Err(Error::Infeasible(format!(
                "{remove} weights are to go, but the error curves are measured up to {} of them; \
                 measure higher sparsities",
                removable.floor()
            )));
        }
        Ok(curves)
    }
}

impl Allocator for Sensitivity {
    type Share = usize;

    fn name(&self) -> &str {
        match self.solver {
            Solver::Lagrangian => "curve",
            Solver::Exact => "knapsack",
        }
    }

    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<usize>> {
        let sizes = layers::sizes(layers)?;
        let curves = self.by_weights(layers, &sizes, budget)?;
        let remove = budget.remove_total(sizes.iter().sum());
        match self.solver {
            Solver::Lagrangian => {
                let removed = cheapest(&curves, remove as f64);
                let kept: Vec<f64> =
                    sizes.iter().zip(removed).map(|(&n, r)| n as f64 - r).collect();
                layers::named(layers, budget.round(&kept, &sizes)?)
            }
            Solver::Exact => {
                let removed = cheapest_points(&curves, remove)?;
                let kept = sizes.iter().zip(removed).map(|(&n, r)| n - r.min(n));
                layers::named(layers, kept.collect())
            }
        }
    }
}

/// How much each curve gives so that they give `remove` together at the least error of their hulls.
fn cheapest(curves: &[Vec<(f64, f64)>], remove: f64) -> Vec<f64> {
    // (slope, curve, length)
    let mut steps: Vec<(f64, usize, f64)> = Vec::new();
    for (l, curve) in curves.iter().enumerate() {
        for w in lower_hull(curve).windows(2) {
            let length = w[1].0 - w[0].0;
            steps.push(((w[1].1 - w[0].1) / length, l, length));
        }
    }
    // Stable, and slopes rise along a hull.
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut removed = vec![0.0; curves.len()];
    let mut rest = remove;
    for (_, l, length) in steps {
        let part = length.min(rest);
        removed[l] += part;
        rest -= part;
    }
    removed
}

/// Whole weights that each curve gives, `remove` in all: the points of least error that remove
/// enough, and what is too much given back where it lowers the error most.
fn cheapest_points(curves: &[Vec<(f64, f64)>], remove: usize) -> Result<Vec<usize>> {
    // Rounded up, so that the last points remove enough whenever the curves do.
    let counts: Vec<Vec<usize>> = curves
        .iter()
        .map(|curve| curve.iter().map(|p| (p.0 - 1e-9).ceil() as usize).collect())
        .collect();
    let most: Vec<usize> = counts.iter().map(|c| c.last().copied().unwrap_or(0)).collect();
    let removable: usize = most.iter().sum();
    let limit = removable.checked_sub(remove).ok_or_else(|| {
        Error::Infeasible(format!(
            "{remove} weights are to go, but the error curves are measured up to {removable} of \
             them; measure higher sparsities"
        ))
    })?;
    // An option costs what it keeps of the most that its layer can lose.
    let options: Vec<Vec<(u64, f64)>> = curves
        .iter()
        .zip(&counts)
        .zip(&most)
        .map(|((curve, counts), most)| {
            curve.iter().zip(counts).map(|(p, c)| ((most - c) as u64, p.1)).collect()
        })
        .collect();
    let mut place = solve(Solver::Exact, &options, limit as u64)?;
    let mut removed: Vec<usize> = place.iter().zip(&counts).map(|(&p, c)| c[p]).collect();
    let mut excess = removed.iter().sum::<usize>() - remove;
    while excess > 0 {
        // The curve on which going back to the point before lowers the error most for a weight.
        let saved = |l: usize| {
            let (p, curve) = (place[l], &curves[l]);
            (p > 0).then(|| (curve[p].1 - curve[p - 1].1) / (curve[p].0 - curve[p - 1].0))
        };
        let best = (0..curves.len())
            .filter_map(|l| saved(l).map(|s| (s, l)))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let Some((_, l)) = best else { break };
        let back = (removed[l] - counts[l][place[l] - 1]).min(excess);
        removed[l] -= back;
        excess -= back;
        place[l] -= 1;
    }
    Ok(removed)
}
