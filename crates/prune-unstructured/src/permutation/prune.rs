use ndarray::{Array2, ArrayViewMut2};
use prune_core::{
    Error, LayerStats, Mask, Pattern, Pruned, Result, Scope, Target, WeightScorer, check_target,
    select,
};
use rayon::prelude::*;

use super::channels::{ChannelPermutation, PermuteOptions, permute_channels};
use crate::gram_layer::check_weight;

/// A mask that is N:M once the channels are reordered.
#[derive(Debug, Clone)]
pub struct PermutedNm {
    /// The mask, over the weight as it is stored.
    pub pruned: Pruned,
    /// The order in which its columns form N:M groups.
    pub permutation: ChannelPermutation,
}

/// Prunes `weight` by a score to an N:M pattern of reordered columns; the weight keeps its order.
///
/// To store the layer as N:M, its columns go in the order of the permutation and so do the rows of
/// whatever makes its inputs, or inputs are gathered at run time. The mask is **not** N:M in the
/// stored order. Holds the scores of the layer and a transposed copy: 8 bytes a weight.
///
/// # Errors
/// As [`prune_by_score`](prune_core::prune_by_score) and [`permute_channels`];
/// [`Error::Unsupported`] for patterns other than N:M. On error the weight is left as it was.
///
/// ```
/// use ndarray::array;
/// use prune_core::{LayerId, LayerStats, Pattern, Scope, Seed, Target};
/// use prune_unstructured::{Magnitude, PermuteOptions, prune_permuted};
///
/// let mut weight = array![[9.0, 8.0, 1.0, 2.0], [7.0, 9.0, 2.0, 1.0]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::NM { n: 1, m: 2 }, Scope::PerRow);
/// let target = Target { layer: &layer, pattern, scope, remove: 4, stream: Seed::new(0).stream("fc") };
/// let options = PermuteOptions::default();
/// let stats = LayerStats::default();
/// let found = prune_permuted(&Magnitude, weight.view_mut(), &stats, &target, &options)?;
/// assert_eq!(weight, array![[9.0, 8.0, 0.0, 0.0], [7.0, 9.0, 0.0, 0.0]]);
/// let stored = found.permutation.apply(weight.view())?;
/// assert!(stored.outer_iter().all(|row| (row[0] == 0.0) != (row[1] == 0.0)));
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn prune_permuted(
    scorer: &dyn WeightScorer,
    weight: ArrayViewMut2<'_, f32>,
    stats: &LayerStats,
    target: &Target<'_>,
    options: &PermuteOptions,
) -> Result<PermutedNm> {
    let (rows, cols) = weight.dim();
    check_target(scorer.name(), target, rows, cols)?;
    let Pattern::NM { n, m } = target.pattern else {
        return Err(Error::Unsupported {
            method: format!("{} with permuted channels", scorer.name()),
            pattern: target.pattern,
            scope: target.scope,
            reason: "the order of channels changes nothing there; prune without it".into(),
        });
    };
    check_weight(target.layer, weight.view())?;
    let dense = weight.as_standard_layout();
    let score = scorer.prepare(target, dense.view(), stats)?;
    let mut scores = Array2::zeros((rows, cols));
    let values = dense.as_slice().unwrap_or_default();
    if let (Some(out), true) = (scores.as_slice_mut(), cols > 0) {
        out.par_chunks_mut(cols)
            .zip(values.par_chunks(cols))
            .enumerate()
            .for_each(|(row, (out, weights))| score(row, weights, out));
    }
    let permutation = permute_channels(scores.view(), n, m, options)?;
    let order = permutation.order();
    let grouped =
        select(&Target { scope: Scope::PerRow, ..target.clone() }, (rows, cols), &|row, out| {
            out.iter_mut().zip(order).for_each(|(o, &c)| *o = scores[[row, c]]);
            Ok(())
        })?;
    let places = permutation.places();
    let mask = Mask::from_fn(rows, cols, |r, c| grouped.is_kept(r, places[c]));
    drop(dense);
    mask.apply(weight)?;
    Ok(PermutedNm { pruned: Pruned::new(mask), permutation })
}
