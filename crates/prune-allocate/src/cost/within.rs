use prune_core::{Allocation, Allocator, Budget, Error, Result, ScoredLayer};

use crate::layers;

/// The densest allocation of kept weights whose cost stays within `limit`, where a kept weight of
/// layer `l` costs `cost_per_weight[l]`: multiplications a token or an image, bytes, cycles.
///
/// Puts any allocator of weights under any such cost: the sparsity is found by bisection over whole
/// numbers of kept weights, about log₂(weights) runs of the allocator. One more weight in the
/// network would exceed the limit, as far as the allocator's cost grows with its budget.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; [`Error::Infeasible`] when no budget costs so
/// little; whatever the allocator gives at the densest budget.
///
/// ```
/// use prune_allocate::{Erk, within_cost};
/// use prune_core::{LayerInfo, ScoredLayer};
///
/// let layers: [ScoredLayer; 2] =
///     [LayerInfo::linear("a", 30, 30).into(), LayerInfo::linear("b", 30, 30).into()];
/// // A weight of the first layer is used 100 times an image, one of the second 10 times.
/// let kept = within_cost(&Erk, &layers, &[100, 10], 49_500)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [450, 450]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn within_cost(
    allocator: &dyn Allocator<Share = usize>,
    layers: &[ScoredLayer],
    cost_per_weight: &[u64],
    limit: u64,
) -> Result<Allocation<usize>> {
    if cost_per_weight.len() != layers.len() {
        return Err(Error::Shape {
            what: "cost of a weight of each layer".to_string(),
            found: vec![cost_per_weight.len()],
            expected: vec![layers.len()],
        });
    }
    let total: usize = layers::sizes(layers)?.iter().sum();
    let at = |keep: usize| -> Result<Option<Allocation<usize>>> {
        let budget = Budget::sparsity((total - keep) as f64 / total.max(1) as f64)?;
        let kept = match allocator.allocate(layers, &budget) {
            Ok(kept) => kept,
            // Below its minima an allocator cannot go.
            Err(Error::Infeasible(_)) if keep < total => return Ok(None),
            Err(other) => return Err(other),
        };
        let cost: u128 =
            kept.iter().zip(cost_per_weight).map(|((_, &k), &c)| k as u128 * u128::from(c)).sum();
        Ok((cost <= u128::from(limit)).then_some(kept))
    };
    if let Some(all) = at(total)? {
        return Ok(all);
    }
    // Kept weights below `above` fit or are below the allocator's minima.
    let (mut below, mut above, mut best) = (0, total, None);
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        match at(middle)? {
            Some(kept) => {
                below = middle;
                best = Some(kept);
            }
            None => above = middle,
        }
    }
    best.ok_or_else(|| {
        Error::Infeasible(format!("no allocation of {} costs at most {limit}", allocator.name()))
    })
}
