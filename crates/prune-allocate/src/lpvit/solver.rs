use prune_core::{Allocation, Error, Result};

use super::BlockCurve;
use crate::cost::{Solver, solve};

/// Divides a limit on the cost of a network over its layers, a block at a time: LPViT's problem,
///
/// ```text
/// min Σ_l f_l(k_l)   with   Σ_l c_l(k_l) <= limit,
/// ```
///
/// where `f_l(k)` is what the network loses when the first `k` blocks of layer `l` go (with β times
/// its power, if it is to count) and `c_l(k)` what the layer still costs.
///
/// The authors put all layers where their smoothed curves have one slope and search that slope by
/// bisection ([`ReleasedBisection`](crate::ReleasedBisection)); their curves are not convex, so that
/// this need not end near the target. Here the problem is solved as it stands.
///
/// ```
/// use prune_allocate::{BlockCurve, BlockSolver, Lpvit};
/// use prune_core::LayerId;
///
/// let curve = |name: &str, scale: f64| {
///     let losses = (0..=8).map(|k| scale * f64::from(k * k)).collect();
///     BlockCurve::new(LayerId::new(name), losses, (0..=8).rev().map(|kept| 10 * kept).collect())
/// };
/// let curves = [curve("a", 1.0)?, curve("b", 3.0)?];
/// let removed = Lpvit::new(BlockSolver::Exact).allocate(&curves, 80)?;
/// assert_eq!(removed.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [6, 2]);
/// let removed = Lpvit::new(BlockSolver::Uniform).allocate(&curves, 80)?;
/// assert_eq!(removed.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [4, 4]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lpvit {
    solver: BlockSolver,
    min_keep: f64,
}

/// How [`Lpvit`] divides a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BlockSolver {
    /// The least loss there is, by dynamic programming over the costs that layers can add up to.
    #[default]
    Exact,
    /// Along the lower convex hulls of the curves, the cheapest loss for its cost first; then
    /// whatever single blocks still fit. [`BlockSolver::Uniform`] instead where that loses less:
    /// below curves that are not convex the hull may promise what no single block keeps.
    /// O(blocks · log blocks).
    Hull,
    /// The same part of every layer's blocks, as little as the limit allows: the baseline.
    Uniform,
}

impl Default for Lpvit {
    fn default() -> Self {
        Self::new(BlockSolver::default())
    }
}

impl Lpvit {
    /// The part of its blocks that every layer keeps at least, unless set: 5 %, as released.
    pub const MIN_KEEP: f64 = 0.05;

    /// An allocator with this solver.
    pub fn new(solver: BlockSolver) -> Self {
        Self { solver, min_keep: Self::MIN_KEEP }
    }

    /// The same allocator where every layer keeps at least the part `min_keep` of its blocks,
    /// rounded up.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] outside 0..=1.
    pub fn with_min_keep(self, min_keep: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&min_keep) {
            return Err(Error::OutOfRange {
                what: "part of its blocks that a layer keeps at least".to_string(),
                found: min_keep.to_string(),
                expected: "0 to 1".to_string(),
            });
        }
        Ok(Self { min_keep, ..self })
    }

    /// How many blocks each layer loses so that what is left costs at most `limit`.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when the layers cost more than `limit` with all removed that may be;
    /// [`Error::OutOfRange`] for a layer that stands twice, or a problem too large for
    /// [`BlockSolver::Exact`].
    pub fn allocate(&self, curves: &[BlockCurve], limit: u64) -> Result<Allocation<usize>> {
        let most: Vec<usize> = curves.iter().map(|c| self.most(c.blocks())).collect();
        let removed = match self.solver {
            BlockSolver::Uniform => uniform(curves, &most, limit)?,
            BlockSolver::Exact => self.choose(Solver::Exact, curves, &most, limit)?,
            BlockSolver::Hull => {
                let hull = self.choose(Solver::Lagrangian, curves, &most, limit)?;
                let uniform = uniform(curves, &most, limit)?;
                if loss(curves, &uniform) < loss(curves, &hull) { uniform } else { hull }
            }
        };
        Allocation::new(curves.iter().map(|c| c.layer().clone()).zip(removed).collect())
    }

    /// The most blocks of `blocks` that may go.
    fn most(&self, blocks: usize) -> usize {
        blocks - ((self.min_keep * blocks as f64 - 1e-9).ceil() as usize).min(blocks)
    }

    fn choose(
        &self,
        solver: Solver,
        curves: &[BlockCurve],
        most: &[usize],
        limit: u64,
    ) -> Result<Vec<usize>> {
        let options = |(curve, &most): (&BlockCurve, &usize)| {
            let costs = curve.costs().iter().copied();
            costs.zip(curve.losses().iter().copied()).take(most + 1).collect()
        };
        let options: Vec<_> = curves.iter().zip(most).map(options).collect();
        solve(solver, &options, limit)
    }
}

fn loss(curves: &[BlockCurve], removed: &[usize]) -> f64 {
    curves.iter().zip(removed).map(|(c, &k)| c.losses()[k]).sum()
}

/// The least `t` at which every layer can lose `⌈t · blocks⌉` and the limit is kept.
fn uniform(curves: &[BlockCurve], most: &[usize], limit: u64) -> Result<Vec<usize>> {
    let removed = |(j, n): (usize, usize)| -> Vec<usize> {
        let share = |blocks: usize| ((j as u128 * blocks as u128).div_ceil(n as u128)) as usize;
        curves.iter().zip(most).map(|(c, &most)| share(c.blocks()).min(most)).collect()
    };
    let cost = |removed: &[usize]| -> u128 {
        curves.iter().zip(removed).map(|(c, &k)| u128::from(c.costs()[k])).sum()
    };
    // The cost changes where t passes a whole number of some layer's blocks.
    let mut parts: Vec<(usize, usize)> = vec![(0, 1)];
    parts.extend(curves.iter().flat_map(|c| (1..=c.blocks()).map(|j| (j, c.blocks()))));
    let product = |a: usize, b: usize| a as u128 * b as u128;
    parts.sort_by(|a, b| product(a.0, b.1).cmp(&product(b.0, a.1)));
    let fits = parts.partition_point(|&part| cost(&removed(part)) > u128::from(limit));
    parts.get(fits).map(|&part| removed(part)).ok_or_else(|| {
        let least = cost(&removed((1, 1)));
        Error::Infeasible(format!(
            "the layers cost {least} with every block removed that may be; the limit is {limit}"
        ))
    })
}
