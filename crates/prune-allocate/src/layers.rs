use std::collections::HashSet;

use prune_core::{Allocation, Budget, Error, LayerId, Result, ScoredLayer};

/// The number of weights of each layer, once the layers are fit to share a budget: some, each with
/// a size, each once, no two tied.
pub(crate) fn sizes(layers: &[ScoredLayer]) -> Result<Vec<usize>> {
    if layers.is_empty() {
        return Err(Error::Infeasible("there is no layer to divide the budget over".to_string()));
    }
    let mut seen: HashSet<&LayerId> = HashSet::with_capacity(layers.len());
    for layer in layers {
        if !seen.insert(&layer.info.id) {
            return Err(refused(layers, format!("`{}` twice", layer.info.id)));
        }
    }
    for layer in layers {
        if let Some(owner) = layer.info.tie.as_ref().filter(|t| seen.contains(t)) {
            return Err(refused(
                layers,
                format!("both `{owner}` and `{}`, which shares its weight", layer.info.id),
            ));
        }
    }
    let mut total = 0usize;
    let sizes = layers.iter().map(|layer| {
        let size = layer.info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let counted = size.and_then(|n| Some((n, total.checked_add(n)?)));
        let (size, sum) = counted.ok_or_else(|| Error::OutOfRange {
            what: format!("shape of `{}`", layer.info.id),
            found: format!("{:?}", layer.info.shape),
            expected: "fewer than 2^64 weights in all layers".to_string(),
        })?;
        total = sum;
        Ok(size)
    });
    sizes.collect()
}

fn refused(layers: &[ScoredLayer], found: String) -> Error {
    Error::OutOfRange {
        what: format!("the list of {} layers", layers.len()),
        found,
        expected: "every weight once".to_string(),
    }
}

/// The real-valued `densities` rounded to kept weights that meet the budget.
pub(crate) fn rounded(
    layers: &[ScoredLayer],
    sizes: &[usize],
    densities: &[f64],
    budget: &Budget,
) -> Result<Allocation<usize>> {
    let targets: Vec<f64> = sizes.iter().zip(densities).map(|(&n, d)| d * n as f64).collect();
    named(layers, budget.round(&targets, sizes)?)
}

/// What released code keeps at these `densities`: each layer loses ⌊sparsity · n⌋, whatever the
/// budget. Differences from 1 that cancel (1 − 0.9) count as the whole numbers that they stand for.
pub(crate) fn released(
    layers: &[ScoredLayer],
    sizes: &[usize],
    densities: &[f64],
) -> Result<Allocation<usize>> {
    let kept = sizes.iter().zip(densities).map(|(&n, d)| {
        let removed = (n as f64 * (1.0 - d) + 1e-9) as usize;
        n - removed.min(n)
    });
    named(layers, kept.collect())
}

/// The kept weights of each layer with its name.
pub(crate) fn named(layers: &[ScoredLayer], kept: Vec<usize>) -> Result<Allocation<usize>> {
    Allocation::new(layers.iter().map(|l| l.info.id.clone()).zip(kept).collect())
}

/// `target / size`; 1 for a layer without weights, which loses nothing.
pub(crate) fn density(target: f64, size: f64) -> f64 {
    if size > 0.0 { target / size } else { 1.0 }
}
