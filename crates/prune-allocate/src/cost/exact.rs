use prune_core::{Error, Result};

use super::frontier::{Frontier, Options, Step, frontiers, steps};
use super::lagrangian::greedy;

/// Partial choices held at once, beyond which the problem is refused.
const LIMIT: usize = 1 << 23;

/// The choices of the first groups that no others beat.
#[derive(Clone, Copy)]
struct Partial {
    cost: u64,
    loss: f64,
    /// The partial choice of one group less, and the option of the last group.
    before: u32,
    option: u32,
}

/// The option of each group that minimises the sum of losses within the limit.
///
/// Group by group the undominated partial choices are extended by every option; those whose
/// relaxed completion is no better than a known solution go. Exact; how many partial choices
/// survive depends on the numbers, hence the error.
pub(super) fn choose(groups: &[Options], limit: u64) -> Result<Vec<usize>> {
    let frontiers = frontiers(groups, limit)?;
    let known = greedy(&frontiers, limit);
    let loss = |taken: &[usize]| -> f64 {
        taken.iter().zip(&frontiers).map(|(&o, f)| f.options[o].1).sum()
    };
    // Sums of losses in different orders differ in their last bits.
    let size: f64 = frontiers.iter().flat_map(|f| &f.options).map(|o| o.1.abs()).sum();
    let bound = loss(&known) + 1e-12 * size;
    let all_steps = steps(&frontiers);
    let mut stages: Vec<Vec<Partial>> = Vec::with_capacity(frontiers.len());
    let mut current = vec![Partial { cost: 0, loss: 0.0, before: 0, option: 0 }];
    let mut held = 0usize;
    for (g, frontier) in frontiers.iter().enumerate() {
        let relaxed = Relaxed::new(&frontiers, g + 1, &all_steps);
        let mut next = Vec::new();
        for (before, partial) in current.iter().enumerate() {
            for (option, &(cost, loss, _)) in frontier.options.iter().enumerate() {
                // Options get dearer: the first that does not fit ends it.
                let Some(rest) = (limit - partial.cost).checked_sub(cost) else { break };
                let Some(completion) = relaxed.least_loss(rest) else { break };
                let loss = partial.loss + loss;
                if loss + completion <= bound {
                    let cost = partial.cost + cost;
                    next.push(Partial { cost, loss, before: before as u32, option: option as u32 });
                }
            }
            if held + next.len() > LIMIT {
                return Err(Error::OutOfRange {
                    what: "partial choices of the exact solver".to_string(),
                    found: format!("more than {LIMIT} after {} of {} groups", g + 1, groups.len()),
                    expected: "a smaller problem; use the Lagrangian solver or fewer choices"
                        .to_string(),
                });
            }
        }
        next.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
        let mut least = f64::INFINITY;
        next.retain(|p| {
            p.loss < least && {
                least = p.loss;
                true
            }
        });
        held += next.len();
        stages.push(std::mem::replace(&mut current, next));
    }
    // The last is the dearest of the undominated: that of the lowest loss.
    let Some(best) = current.last() else {
        return Ok(known.iter().zip(&frontiers).map(|(&o, f)| f.options[o].2).collect());
    };
    let mut taken = vec![0; frontiers.len()];
    let mut at = *best;
    for g in (0..frontiers.len()).rev() {
        taken[g] = frontiers[g].options[at.option as usize].2;
        at = stages[g][at.before as usize];
    }
    Ok(taken)
}

/// The groups from one on, relaxed: parts of options may be taken.
struct Relaxed {
    cost: u64,
    loss: f64,
    /// Sums of cost and gain over the best steps.
    sums: Vec<(u64, f64)>,
}

impl Relaxed {
    fn new(frontiers: &[Frontier], from: usize, steps: &[Step]) -> Self {
        let rest = &frontiers[from.min(frontiers.len())..];
        let cost = rest.iter().map(|f| f.cheapest().0).sum();
        let loss = rest.iter().map(|f| f.cheapest().1).sum();
        let mut sums = vec![(0u64, 0.0f64)];
        let (mut cost_sum, mut gain_sum) = (0u64, 0.0);
        for step in steps.iter().filter(|s| s.group >= from) {
            cost_sum = cost_sum.saturating_add(step.cost);
            gain_sum += step.gain;
            sums.push((cost_sum, gain_sum));
        }
        Self { cost, loss, sums }
    }

    /// The least loss within `limit`; `None` when not even the cheapest options fit.
    fn least_loss(&self, limit: u64) -> Option<f64> {
        let rest = limit.checked_sub(self.cost)?;
        let whole = self.sums.partition_point(|s| s.0 <= rest) - 1;
        let (cost, gain) = self.sums[whole];
        let part = match self.sums.get(whole + 1) {
            Some(next) => (next.1 - gain) * ((rest - cost) as f64 / (next.0 - cost) as f64),
            None => 0.0,
        };
        Some(self.loss - gain - part)
    }
}
