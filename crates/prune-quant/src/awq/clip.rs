use ndarray::{Array2, ArrayView2, s};
use prune_core::{Error, GramAccumulator, LayerId, QuantScheme, Result, check_finite};
use rayon::prelude::*;

use super::scales::group_size;
use crate::Rtn;

/// The largest magnitude that each group of each row should keep, `(rows, groups)`: weights beyond
/// it are clipped to it before they are rounded.
///
/// Tried are `1, 0.95, … 0.55` of the largest weight; what counts is the mean squared change that
/// the group alone makes to the output, `δᵀ (XᵀX)_group δ`. AWQ does this after scaling, for all
/// layers but queries and keys. `gram` is of the inputs of `weight`: of scaled ones if the weight is
/// scaled.
///
/// Costs `10 · rows · cols · group` operations. Where the released code compares on at most 512
/// tokens (and fails on fewer), this one uses all that the Gram matrix has seen.
///
/// # Errors
/// [`Error::NoStatistics`] for a Gram matrix that saw no token; [`Error::Shape`];
/// [`Error::NotFinite`]; [`Error::UnsupportedScheme`] for groups that cross rows.
///
/// ```
/// use ndarray::array;
/// use prune_core::{GramAccumulator, LayerId};
/// use prune_quant::{Rtn, clip_limits};
///
/// let mut gram = GramAccumulator::new(4);
/// gram.update("x", array![[1.0, 1.0, -1.0, 0.1], [1.0, -1.0, 1.0, 0.1]].view())?;
/// let weight = array![[0.33, -0.3, 0.35, 1.0]];
/// let scheme = "int2 asym g4".parse()?;
/// let limits = clip_limits(&LayerId::new("o_proj"), weight.view(), &gram, scheme, &Rtn::default())?;
/// assert!(limits[[0, 0]] < 1.0, "the last input is small, so its weight may be clipped");
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn clip_limits(
    layer: &LayerId,
    weight: ArrayView2<'_, f32>,
    gram: &GramAccumulator,
    scheme: QuantScheme,
    rtn: &Rtn,
) -> Result<Array2<f32>> {
    let (rows, cols) = weight.dim();
    let group = group_size("awq", &scheme)?.unwrap_or(cols.max(1));
    if gram.count() == 0 {
        return Err(Error::NoStatistics {
            layer: layer.to_string(),
            method: "awq".to_string(),
            needed: "a Gram matrix",
        });
    }
    if gram.channels() != cols {
        return Err(Error::Shape {
            what: format!("{layer} (channels of the Gram matrix)"),
            found: vec![gram.channels()],
            expected: vec![cols],
        });
    }
    let weight = weight.as_standard_layout();
    let values = weight.as_slice().unwrap_or_default();
    check_finite(&layer.weight_name(), values)?;
    let absmax = values.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let coder = rtn.coder(scheme, absmax)?;
    let matrix = gram.matrix();
    let blocks: Vec<Array2<f32>> = (0..cols)
        .step_by(group)
        .map(|first| {
            let range = first..(first + group).min(cols);
            matrix.slice(s![range.clone(), range]).mapv(|g| g as f32)
        })
        .collect();
    let limits: Vec<f32> = values
        .par_chunks(cols.max(1))
        .flat_map_iter(|row| {
            let (coder, blocks) = (&coder, &blocks);
            row.chunks(group).zip(blocks).map(move |(part, block)| {
                let most = part.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                let mut best = (most, f64::INFINITY);
                let mut clipped = Vec::with_capacity(part.len());
                for step in 0..CANDIDATES {
                    let limit = most * (1.0 - step as f32 / (2 * CANDIDATES) as f32);
                    clipped.clear();
                    clipped.extend(part.iter().map(|w| w.clamp(-limit, limit)));
                    let p = coder.params(&clipped);
                    for (x, w) in clipped.iter_mut().zip(part) {
                        *x = coder.nearest(&p, *x) - w;
                    }
                    let error = quadratic(&clipped, block);
                    if error < best.1 {
                        best = (limit, error);
                    }
                }
                best.0
            })
        })
        .collect();
    let shape = (rows, blocks.len());
    Array2::from_shape_vec(shape, limits).map_err(|_| Error::Shape {
        what: layer.weight_name(),
        found: vec![rows, cols],
        expected: vec![shape.0, shape.1],
    })
}

/// Limits that are tried, from the largest weight down to just above half of it.
const CANDIDATES: usize = 10;

/// `δᵀ G δ`.
fn quadratic(delta: &[f32], gram: &Array2<f32>) -> f64 {
    let dot = |row: ndarray::ArrayView1<'_, f32>| match row.as_slice() {
        // Eight sums at a time, which the compiler keeps in one register.
        Some(row) => {
            let (rows, row_tail) = row.as_chunks::<8>();
            let (deltas, delta_tail) = delta.as_chunks::<8>();
            let mut sums = [0.0f32; 8];
            for (r, d) in rows.iter().zip(deltas) {
                for i in 0..8 {
                    sums[i] += r[i] * d[i];
                }
            }
            let tail: f32 = row_tail.iter().zip(delta_tail).map(|(r, d)| r * d).sum();
            sums.iter().sum::<f32>() + tail
        }
        None => 0.0,
    };
    gram.outer_iter().zip(delta).map(|(row, d)| f64::from(*d) * f64::from(dot(row))).sum()
}
