use prune_core::{Allocation, Error, LayerId, Result};

use super::frontier::Options;
use super::{exact, lagrangian};

/// One value that a group of layers may take.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice<S> {
    /// The value: kept weights, channels, bits.
    pub share: S,
    /// What it costs all layers of the group together, in the unit of the limit.
    pub cost: u64,
    /// What is lost by it: an error, a rise of the loss.
    pub loss: f64,
}

/// Layers that must take one value, and the values to choose from.
///
/// ```
/// use prune_allocate::{Choice, ShareGroup};
/// use prune_core::LayerId;
///
/// let bits = |name: &str, error: f64| {
///     let choice = |bits: u64| Choice { share: bits, cost: bits * 100, loss: error / bits as f64 };
///     ShareGroup::new(LayerId::new(name), [2, 3, 4, 8].map(choice))
/// };
/// // Kernels want q and k in one width, and no 3-bit codes.
/// let qk = bits("q", 1.0)?.fuse(bits("k", 3.0)?)?.retain(|bits| bits.is_power_of_two())?;
/// let costs: Vec<_> = qk.choices().iter().map(|c| (c.share, c.cost, c.loss)).collect();
/// assert_eq!(costs, [(2, 400, 2.0), (4, 800, 1.0), (8, 1600, 0.5)]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ShareGroup<S> {
    layers: Vec<LayerId>,
    choices: Vec<Choice<S>>,
}

impl<S: Clone + PartialEq> ShareGroup<S> {
    /// A group of one layer.
    ///
    /// # Errors
    /// [`Error::Infeasible`] without choices; [`Error::NotFinite`] for a loss that is NaN or
    /// infinite.
    pub fn new(layer: LayerId, choices: impl IntoIterator<Item = Choice<S>>) -> Result<Self> {
        let choices: Vec<Choice<S>> = choices.into_iter().collect();
        if let Some(index) = choices.iter().position(|c| !c.loss.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("losses of the choices of `{layer}`"),
                index,
                value: choices[index].loss.to_string(),
            });
        }
        Self { layers: vec![layer], choices }.some()
    }

    /// This group and `other` as one, whose value is shared: the values that both have, at the sum
    /// of their costs and of their losses.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when they have no value in common; [`Error::OutOfRange`] when a cost
    /// overflows.
    pub fn fuse(mut self, other: Self) -> Result<Self> {
        let mut choices = Vec::new();
        for a in &self.choices {
            if let Some(b) = other.choices.iter().find(|b| b.share == a.share) {
                let cost = a.cost.checked_add(b.cost).ok_or_else(overflow)?;
                choices.push(Choice { share: a.share.clone(), cost, loss: a.loss + b.loss });
            }
        }
        self.layers.extend(other.layers);
        Self { layers: self.layers, choices }.some()
    }

    /// The same group with one more layer that uses the same weight: it takes the same value and
    /// costs nothing more.
    #[must_use]
    pub fn tie(mut self, layer: LayerId) -> Self {
        self.layers.push(layer);
        self
    }

    /// The same group with only the values that `keep` is true for: multiples of 64, powers of two.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when none is left.
    pub fn retain(mut self, mut keep: impl FnMut(&S) -> bool) -> Result<Self> {
        self.choices.retain(|c| keep(&c.share));
        self.some()
    }

    /// The layers of the group.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// The choices that are left.
    pub fn choices(&self) -> &[Choice<S>] {
        &self.choices
    }

    fn some(self) -> Result<Self> {
        if !self.choices.is_empty() {
            return Ok(self);
        }
        let names: Vec<String> = self.layers.iter().map(|l| format!("`{l}`")).collect();
        Err(Error::Infeasible(format!("{} can take no value", names.join(", "))))
    }
}

fn overflow() -> Error {
    Error::OutOfRange {
        what: "cost of a fused choice".to_string(),
        found: "an overflow".to_string(),
        expected: "at most 2^64 - 1".to_string(),
    }
}

/// How choices are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Solver {
    /// By one price for the cost: the choices on the convex hull of each group in the order of what
    /// they save for what they cost, then whatever single changes still fit. Never exceeds the
    /// limit; the loss is within that of one choice of the least. O(n log n).
    #[default]
    Lagrangian,
    /// The least loss there is, by undominated partial choices with bounds. Usually fast; refuses
    /// problems that would take gigabytes.
    Exact,
}

/// Chooses one value for every group so that the sum of costs stays within a limit and the sum of
/// losses is small: a multiple-choice knapsack over any cost, be it parameters, FLOPs, bytes or
/// bits.
///
/// ```
/// use prune_allocate::{Choice, CostAllocator, ShareGroup, Solver};
/// use prune_core::LayerId;
///
/// // Two layers of 100 weights, 2, 4 or 8 bits, 1000 bits in all.
/// let bits = |name: &str, error: f64| {
///     let choice = |bits: u64| Choice { share: bits, cost: bits * 100, loss: error / bits as f64 };
///     ShareGroup::new(LayerId::new(name), [2, 4, 8].map(choice))
/// };
/// let groups = [bits("a", 1.0)?, bits("b", 10.0)?];
/// let chosen = CostAllocator::new(Solver::Exact).allocate(&groups, 1000)?;
/// assert_eq!(chosen.iter().map(|(_, bits)| *bits).collect::<Vec<_>>(), [2, 8]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CostAllocator {
    solver: Solver,
}

impl CostAllocator {
    /// An allocator with this solver.
    pub fn new(solver: Solver) -> Self {
        Self { solver }
    }

    /// The value of every layer, in the order of the groups.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when the cheapest choices exceed `limit`; [`Error::OutOfRange`] for a
    /// layer in two groups, and for a problem too large for [`Solver::Exact`].
    pub fn allocate<S: Clone + PartialEq>(
        &self,
        groups: &[ShareGroup<S>],
        limit: u64,
    ) -> Result<Allocation<S>> {
        let options: Vec<Options> =
            groups.iter().map(|g| g.choices.iter().map(|c| (c.cost, c.loss)).collect()).collect();
        let chosen = solve(self.solver, &options, limit)?;
        let shares = groups.iter().zip(chosen).flat_map(|(group, c)| {
            group.layers.iter().map(move |id| (id.clone(), group.choices[c].share.clone()))
        });
        Allocation::new(shares.collect())
    }
}

/// The index of the option that each group takes; every group has one.
pub(crate) fn solve(solver: Solver, groups: &[Options], limit: u64) -> Result<Vec<usize>> {
    match solver {
        Solver::Lagrangian => lagrangian::choose(groups, limit),
        Solver::Exact => exact::choose(groups, limit),
    }
}
