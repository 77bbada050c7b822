use std::ops::Range;

use ndarray::{Array2, ArrayView1, s};
use prune_core::{ColumnStats, LayerStats};
use rayon::prelude::*;

use crate::Result;

/// How much the output of a layer changed on the calibration data, relative to its size:
/// `tr(D G Dᵀ) / tr(W G Wᵀ)` with the Gram matrix `G` of its input where there is one; with column
/// norms alone, or with none, the diagonal of `G` or the identity stands in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OutputError {
    /// Of the mask alone: removed weights at 0, the others as they were.
    pub(crate) masked: f64,
    /// Of what was written.
    pub(crate) written: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    all: f64,
    masked: f64,
    written: f64,
}

/// Rows whose products are formed together, fixed so that sums do not depend on threads.
const PANEL: usize = 64;

/// Columns whose products are formed together.
const BLOCK: usize = 192;

/// The output error of a weight of this shape, which is `after(first, count)` and was
/// `dense(first, count)`, rows at a time.
pub(crate) fn output_error(
    dense: &(dyn Fn(usize, usize) -> Result<Array2<f32>> + Sync),
    after: &(dyn Fn(usize, usize) -> Array2<f32> + Sync),
    (rows, cols): (usize, usize),
    stats: &LayerStats,
) -> Result<OutputError> {
    let gram = stats.gram.as_ref().map(|g| g.matrix().mapv(|x| x as f32));
    let ones = vec![1.0; cols];
    let norms = stats.columns.as_ref().map_or(ones.as_slice(), ColumnStats::squared_norm);
    let panels: Vec<usize> = (0..rows).step_by(PANEL).collect();
    let parts: Vec<Sums> = panels
        .into_par_iter()
        .map(|first| {
            let count = PANEL.min(rows - first);
            let dense = dense(first, count)?;
            let written = after(first, count);
            // A removed weight is 0. A kept one that is 0 was 0 before, or counts as removed.
            let mut removed = dense.clone();
            let mut updated = false;
            ndarray::Zip::from(&mut removed).and(&written).for_each(|value, w| {
                updated |= *w != 0.0 && *w != *value;
                *value = if *w == 0.0 { *value } else { 0.0 };
            });
            let energy = |d: &Array2<f32>| match &gram {
                Some(gram) => quadratic(d, gram),
                None => d.outer_iter().map(|row| weighted(row, norms)).sum(),
            };
            let masked = energy(&removed);
            let changed = if updated { energy(&(&dense - &written)) } else { masked };
            Ok(Sums { all: energy(&dense), masked, written: changed })
        })
        .collect::<Result<_>>()?;
    let mut sums = Sums::default();
    for part in parts {
        sums.all += part.all;
        sums.masked += part.masked;
        sums.written += part.written;
    }
    let part = |sum: f64| if sums.all > 0.0 { (sum / sums.all).max(0.0) } else { 0.0 };
    Ok(OutputError { masked: part(sums.masked), written: part(sums.written) })
}

/// `tr(D G Dᵀ)` of a symmetric `G`, from its triangle above the diagonal.
fn quadratic(d: &Array2<f32>, gram: &Array2<f32>) -> f64 {
    let cols = gram.ncols();
    let energy = |rows: Range<usize>, columns: Range<usize>| -> f64 {
        let product = d.slice(s![.., rows.clone()]).dot(&gram.slice(s![rows, columns.clone()]));
        let pairs = d.slice(s![.., columns]);
        pairs.iter().zip(&product).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let blocks = (0..cols).step_by(BLOCK).map(|start| start..(start + BLOCK).min(cols));
    blocks.map(|at| energy(at.clone(), at.clone()) + 2.0 * energy(0..at.start, at)).sum()
}

/// `Σ d² n` in eight fixed lanes, which the compiler can keep in registers.
fn weighted(d: ArrayView1<'_, f32>, norms: &[f64]) -> f64 {
    let mut lanes = [0f64; 8];
    let d = d.as_slice().unwrap_or_default();
    let ((d, d_rest), (n, n_rest)) = (d.as_chunks::<8>(), norms.as_chunks::<8>());
    for (d, n) in d.iter().zip(n) {
        for ((lane, d), n) in lanes.iter_mut().zip(d).zip(n) {
            *lane += f64::from(*d) * f64::from(*d) * n;
        }
    }
    let rest = d_rest.iter().zip(n_rest).map(|(d, n)| f64::from(*d) * f64::from(*d) * n);
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::rows_in;
    use ndarray::array;
    use prune_core::GramAccumulator;

    #[test]
    fn errors_are_those_of_the_output() {
        let dense = array![[1.0f32, 2.0], [3.0, -1.0]];
        let inputs = array![[1.0f32, 1.0], [2.0, 0.5], [0.0, -1.0]];
        let mut gram = GramAccumulator::new(2);
        gram.update("x", inputs.view()).unwrap();
        let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
        // The first weight of each row goes; the second of row 0 makes up for it.
        let weight = array![[0.0f32, 2.5], [0.0, -1.0]];
        let rows = |first: usize, count: usize| {
            Ok(dense.slice(ndarray::s![first..first + count, ..]).to_owned())
        };
        let found = output_error(&rows, &rows_in(weight.view()), weight.dim(), &stats).unwrap();
        let energy = |d: &Array2<f32>| {
            inputs.dot(&d.t()).iter().map(|y| f64::from(*y) * f64::from(*y)).sum::<f64>()
        };
        let mut only_masked = dense.clone();
        only_masked.column_mut(0).fill(0.0);
        let all = energy(&dense);
        assert!((found.masked - energy(&(&dense - &only_masked)) / all).abs() < 1e-6);
        assert!((found.written - energy(&(&dense - &weight)) / all).abs() < 1e-6);
    }
}
