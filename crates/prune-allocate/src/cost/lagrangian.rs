use prune_core::Result;

use super::frontier::{Frontier, Options, frontiers, steps};

/// An option of each group within the limit: what the relaxed problem chooses, and then whatever
/// single changes still fit. O(options log options) and the changes.
pub(super) fn choose(groups: &[Options], limit: u64) -> Result<Vec<usize>> {
    let frontiers = frontiers(groups, limit)?;
    Ok(greedy(&frontiers, limit).iter().zip(&frontiers).map(|(&o, f)| f.options[o].2).collect())
}

/// For each frontier the place of the option that it takes.
pub(super) fn greedy(frontiers: &[Frontier], limit: u64) -> Vec<usize> {
    let mut rest = limit - frontiers.iter().map(|f| f.cheapest().0).sum::<u64>();
    let mut place = vec![0usize; frontiers.len()];
    for step in steps(frontiers) {
        // A step that did not fit closes its group: the next would skip it.
        if place[step.group] + 1 == step.to && step.cost <= rest {
            place[step.group] = step.to;
            rest -= step.cost;
        }
    }
    let mut taken: Vec<usize> = place.iter().zip(frontiers).map(|(&p, f)| f.hull[p]).collect();
    // Options above the hull, and steps past one that did not fit, by the loss that they save.
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (g, f) in frontiers.iter().enumerate() {
            let (cost, loss, _) = f.options[taken[g]];
            let fits = f.options.partition_point(|o| o.0 <= cost + rest);
            // The dearest that fits has the lowest loss.
            if fits > taken[g] + 1 {
                let gain = loss - f.options[fits - 1].1;
                if best.is_none_or(|b| gain > b.0) {
                    best = Some((gain, g, fits - 1));
                }
            }
        }
        let Some((_, g, option)) = best else { return taken };
        rest -= frontiers[g].options[option].0 - frontiers[g].options[taken[g]].0;
        taken[g] = option;
    }
}
