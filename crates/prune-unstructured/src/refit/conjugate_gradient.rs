use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, Zip};
use prune_core::Mask;
use rayon::prelude::*;

use crate::unit_layer::panel_rows;

/// Moves `weights`, which are 0 where `mask` removes, towards the minimum of
/// `tr((W − W₀) G (W − W₀)ᵀ)` on that support: at most `steps` steps of conjugate gradients, all
/// rows side by side, fewer where every row of a panel has a gradient below `tolerance` times the
/// one it started with. Products in f32, their sums in f64. No step makes a row worse but for
/// rounding.
pub(crate) fn conjugate_gradient(
    dense: ArrayView2<'_, f32>,
    gram: ArrayView2<'_, f32>,
    mask: &Mask,
    mut weights: ArrayViewMut2<'_, f32>,
    steps: u32,
    tolerance: f64,
) {
    let panel = panel_rows(dense.nrows());
    weights
        .axis_chunks_iter_mut(Axis(0), panel)
        .into_par_iter()
        .zip(dense.axis_chunks_iter(Axis(0), panel))
        .enumerate()
        .for_each(|(p, (weights, dense))| {
            let rows = Panel { first: p * panel, gram, mask };
            rows.descend(dense, weights, steps, tolerance);
        });
}

struct Panel<'a> {
    first: usize,
    gram: ArrayView2<'a, f32>,
    mask: &'a Mask,
}

impl Panel<'_> {
    fn descend(
        &self,
        dense: ArrayView2<'_, f32>,
        mut weights: ArrayViewMut2<'_, f32>,
        steps: u32,
        tolerance: f64,
    ) {
        let gap = &dense - &weights;
        let mut gradient = Array2::<f32>::zeros(gap.dim());
        general_mat_mul(1.0, &gap, &self.gram, 0.0, &mut gradient);
        drop(gap);
        self.restrict(&mut gradient);
        let mut direction = gradient.clone();
        let mut product = Array2::<f32>::zeros(gradient.dim());
        let mut squares: Vec<f64> = gradient.outer_iter().map(|g| dot(g, g)).collect();
        // Below this part of where it started, a gradient in f32 is rounding: steps along it gain
        // nothing, and after many of them it is subnormal and their length without bound.
        let rounding = f64::from(f32::EPSILON);
        let part = |part: f64| squares.iter().map(|s| s * part * part).collect::<Vec<f64>>();
        let (settled, enough) = (part(rounding), part(tolerance.max(rounding)));
        for _ in 0..steps {
            if squares.iter().zip(&enough).all(|(s, e)| s <= e) {
                break;
            }
            general_mat_mul(1.0, &direction, &self.gram, 0.0, &mut product);
            let lengths: Vec<f64> = direction
                .outer_iter()
                .zip(product.outer_iter())
                .zip(squares.iter().zip(&settled))
                .map(|((d, p), (s, settled))| {
                    let curvature = dot(d, p);
                    if s > settled && curvature > 0.0 { s / curvature } else { 0.0 }
                })
                .collect();
            for (r, &length) in lengths.iter().enumerate() {
                let length = length as f32;
                weights.row_mut(r).scaled_add(length, &direction.row(r));
                gradient.row_mut(r).scaled_add(-length, &product.row(r));
            }
            self.restrict(&mut gradient);
            for (r, square) in squares.iter_mut().enumerate() {
                let next = dot(gradient.row(r), gradient.row(r));
                let keep = if *square > 0.0 { (next / *square) as f32 } else { 0.0 };
                *square = next;
                Zip::from(direction.row_mut(r))
                    .and(gradient.row(r))
                    .for_each(|d, g| *d = g + keep * *d);
            }
        }
    }

    /// Sets to 0 what the mask removes.
    fn restrict(&self, values: &mut Array2<f32>) {
        for ((r, c), v) in values.indexed_iter_mut() {
            if !self.mask.is_kept(self.first + r, c) {
                *v = 0.0;
            }
        }
    }
}

fn dot(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
