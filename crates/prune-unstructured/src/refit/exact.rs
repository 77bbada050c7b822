use ndarray::{Array2, ArrayViewMut2, Axis};
use prune_core::{Error, Mask, Result};
use rayon::prelude::*;

use crate::gram_layer::{GramLayer, factor};

/// The damping that the rows took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Taken {
    pub(super) damping: f64,
    pub(super) raised: u32,
}

/// Replaces the rows of `weight`, dense, by the minimum of `(w − w₀) (G + λI) (w − w₀)ᵀ` on their
/// supports: a Cholesky factor in f64 for each row. Weights of dead channels stay as they are.
pub(super) fn solve(
    layer: &GramLayer<'_>,
    mut weight: ArrayViewMut2<'_, f32>,
    mask: &Mask,
    damping: f64,
) -> Result<Taken> {
    let taken: Vec<Taken> = weight
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .enumerate()
        .map(|(r, mut row)| {
            let support: Vec<usize> = mask.kept_in_row(r).filter(|&c| !layer.is_dead(c)).collect();
            let removed: Vec<(usize, f64)> = (0..row.len())
                .filter(|&c| !mask.is_kept(r, c))
                .map(|c| (c, f64::from(row[c])))
                .collect();
            removed.iter().for_each(|&(c, _)| row[c] = 0.0);
            let k = support.len();
            if k == 0 {
                return Ok(Taken { damping, raised: 0 });
            }
            let part = Array2::from_shape_fn((k, k), |(i, j)| {
                layer.gram[[support[i], support[j]]] / layer.scale
            });
            // What is removed pulls at the support: (G_SS + λI) (w − w₀)_S = G_SR w₀_R.
            let pull = Array2::from_shape_fn((k, 1), |(i, _)| {
                let of = |&(c, w): &(usize, f64)| layer.gram[[support[i], c]] / layer.scale * w;
                removed.iter().map(of).sum::<f64>()
            });
            let found = factor(layer.id, part, damping, prune_linalg::cholesky)?;
            let change = prune_linalg::cholesky_solve(found.factor.view(), pull.view())
                .map_err(|e| Error::external(layer.id.as_str(), e))?;
            for (&c, d) in support.iter().zip(&change) {
                row[c] = (f64::from(row[c]) + d) as f32;
            }
            Ok(Taken { damping: found.damping, raised: found.raised })
        })
        .collect::<Result<_>>()?;
    Ok(taken.into_iter().fold(Taken::default(), |a, b| Taken {
        damping: a.damping.max(b.damping),
        raised: a.raised.max(b.raised),
    }))
}
