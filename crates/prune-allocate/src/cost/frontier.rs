use prune_core::{Error, Result};

use crate::curve::lower_hull;

/// What one group may take: `(cost, loss)`.
pub(crate) type Options = Vec<(u64, f64)>;

/// The options of a group that no other option beats, cheapest first: cost rises, loss falls.
pub(super) struct Frontier {
    /// `(cost, loss)` and the index of the option.
    pub(super) options: Vec<(u64, f64, usize)>,
    /// Which of `options` lie on their lower convex hull.
    pub(super) hull: Vec<usize>,
}

impl Frontier {
    pub(super) fn new(all: &Options) -> Self {
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|&a, &b| all[a].0.cmp(&all[b].0).then(all[a].1.total_cmp(&all[b].1)));
        let mut options: Vec<(u64, f64, usize)> = Vec::with_capacity(all.len());
        for i in order {
            let (cost, loss) = all[i];
            if options.last().is_none_or(|best| loss < best.1) {
                options.push((cost, loss, i));
            }
        }
        let points: Vec<(f64, f64)> = options.iter().map(|o| (o.0 as f64, o.1)).collect();
        let on_hull = lower_hull(&points);
        let mut on_hull = on_hull.iter().peekable();
        let mut hull = Vec::new();
        for (i, point) in points.iter().enumerate() {
            if on_hull.next_if(|h| *h == point).is_some() {
                hull.push(i);
            }
        }
        Self { options, hull }
    }

    pub(super) fn cheapest(&self) -> (u64, f64) {
        (self.options[0].0, self.options[0].1)
    }
}

/// One step along the hull of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) group: usize,
    /// The place on the hull that it leads to.
    pub(super) to: usize,
    pub(super) cost: u64,
    /// How much the loss falls.
    pub(super) gain: f64,
}

/// Every step of every group, the one that gains most for its cost first; the steps of one group
/// stay in order.
pub(super) fn steps(frontiers: &[Frontier]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (group, f) in frontiers.iter().enumerate() {
        for (to, pair) in f.hull.windows(2).enumerate() {
            let (a, b) = (f.options[pair[0]], f.options[pair[1]]);
            steps.push(Step { group, to: to + 1, cost: b.0 - a.0, gain: a.1 - b.1 });
        }
    }
    // Stable, and the gain for the cost falls along a hull.
    steps.sort_by(|a, b| (b.gain / b.cost as f64).total_cmp(&(a.gain / a.cost as f64)));
    steps
}

/// The frontiers of all groups, once the cheapest options fit the limit.
pub(super) fn frontiers(groups: &[Options], limit: u64) -> Result<Vec<Frontier>> {
    let frontiers: Vec<Frontier> = groups.iter().map(Frontier::new).collect();
    let least = frontiers.iter().try_fold(0u64, |sum, f| sum.checked_add(f.cheapest().0));
    match least {
        Some(least) if least <= limit => Ok(frontiers),
        _ => Err(Error::Infeasible(format!(
            "the cheapest choices cost {}, the limit is {limit}",
            least.map_or("more than 2^64".to_string(), |l| l.to_string())
        ))),
    }
}
