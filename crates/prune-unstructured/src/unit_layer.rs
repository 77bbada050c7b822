use ndarray::{Array2, ArrayViewMut2, Axis, Zip};
use rayon::prelude::*;

use crate::gram_layer::GramLayer;

/// A layer whose input channels are scaled to norm 1: the Gram matrix has a diagonal of 1 and the
/// weights grow by the norms.
pub(crate) struct UnitLayer {
    pub(crate) gram: Array2<f64>,
    norms: Vec<f64>,
}

/// Added to every norm, as in the code of ADMM and ALPS: the weights of a dead channel become
/// small and are found again.
const EPSILON: f64 = 1e-8;

impl UnitLayer {
    /// Scales a layer after `damping` times the mean diagonal is added to that diagonal.
    ///
    /// Norms are taken of the Gram matrix over its mean diagonal, so that [`EPSILON`] does not
    /// depend on the number of tokens.
    pub(crate) fn new(layer: &GramLayer<'_>, damping: f64) -> Self {
        let n = layer.gram.nrows();
        // The mean over all channels, dead ones included, as the damping of both codes.
        let mean = (n - layer.dead) as f64 / n as f64;
        let diagonal = |i: usize| layer.gram[[i, i]].max(0.0) / layer.scale + damping * mean;
        let norms: Vec<f64> = (0..n).map(|i| diagonal(i).sqrt() + EPSILON).collect();
        let mut gram = Array2::zeros((n, n));
        gram.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(i, mut row)| {
            for (j, value) in row.iter_mut().enumerate() {
                let entry = if i == j { diagonal(i) } else { layer.gram[[i, j]] / layer.scale };
                *value = entry / norms[i] / norms[j];
            }
        });
        Self { gram, norms }
    }

    /// Weights of the unit layer for weights of the layer, in standard layout.
    pub(crate) fn grow(&self, mut weight: ArrayViewMut2<'_, f32>) {
        self.scale(&mut weight, |w, norm| w * norm);
    }

    /// The inverse of [`UnitLayer::grow`].
    pub(crate) fn shrink(&self, mut weight: ArrayViewMut2<'_, f32>) {
        self.scale(&mut weight, |w, norm| w / norm);
    }

    fn scale(&self, weight: &mut ArrayViewMut2<'_, f32>, by: impl Fn(f64, f64) -> f64 + Sync) {
        Zip::from(weight.rows_mut()).par_for_each(|mut row| {
            row.iter_mut().zip(&self.norms).for_each(|(w, n)| *w = by(f64::from(*w), *n) as f32);
        });
    }
}

/// Bytes of `copies` panels of f32 on every thread.
pub(crate) fn panel_bytes(rows: usize, cols: usize, copies: usize) -> usize {
    4 * copies * panel_rows(rows) * cols * rayon::current_num_threads()
}

/// Rows that one thread multiplies at a time: enough for products to pay, few enough for all
/// threads to have some. A function of the shape, though no bit depends on it.
pub(crate) fn panel_rows(rows: usize) -> usize {
    rows.div_ceil(8).clamp(32, 256)
}
