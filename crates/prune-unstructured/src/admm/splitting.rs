use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, Zip};
use prune_core::{LayerId, Mask, Pattern, Result, Scope, Target, select};
use rayon::prelude::*;

use crate::gram_layer::factor;
use crate::unit_layer::{panel_bytes, panel_rows};

/// Bytes that inverting takes: the matrix, its shifted copy or factor, and three more while the
/// inverse is made, all in f64; on every thread two panels of an iteration.
pub(super) fn splitting_bytes(rows: usize, cols: usize) -> usize {
    40 * cols * cols + panel_bytes(rows, cols, 2) + (8 << 20)
}

/// The state of an alternating direction method for
/// `min ½ tr((W − W₀) G (W − W₀)ᵀ)` with W = D, where D has the pattern.
///
/// With the dual variable U (over ρ) an iteration is
///
/// ```text
/// W = W₀ + (D − U − W₀) · ρ (G + ρI)⁻¹     T = W + U
/// D = T where kept, 0 elsewhere            U = T − D: 0 where kept, T elsewhere
/// ```
///
/// so that T and the mask are the whole state: its kept entries are D, the others U.
pub(super) struct Splitting {
    /// W₀.
    dense: Array2<f32>,
    state: Array2<f32>,
    mask: Mask,
    /// `ρ (G + ρI)⁻¹`.
    pull: Array2<f32>,
}

/// What it took to invert.
pub(super) struct Inverted {
    /// Damping beyond ρ.
    pub(super) damping: f64,
    pub(super) raised: u32,
}

impl Splitting {
    /// Starts at D = U = 0 but for the mask `mask` of W₀: kept entries are D.
    pub(super) fn new(dense: Array2<f32>) -> Self {
        let (rows, cols) = dense.dim();
        let mask = Mask::all_kept(rows, cols);
        Self { state: dense.clone(), dense, mask, pull: Array2::zeros((0, 0)) }
    }

    /// Back to D = W₀ under `mask` and U = 0.
    pub(super) fn restart(&mut self, mask: &Mask) -> Result<()> {
        self.state.assign(&self.dense);
        mask.apply(self.state.view_mut())?;
        self.mask = mask.clone();
        Ok(())
    }

    pub(super) fn dense(&self) -> &Array2<f32> {
        &self.dense
    }

    pub(super) fn mask(&self) -> &Mask {
        &self.mask
    }

    pub(super) fn set_mask(&mut self, mask: Mask) {
        self.mask = mask;
    }

    /// Takes `ρ (G + ρI)⁻¹` for another ρ.
    pub(super) fn set_rho(
        &mut self,
        layer: &LayerId,
        gram: &Array2<f64>,
        rho: f64,
    ) -> Result<Inverted> {
        self.pull = Array2::zeros((0, 0));
        // Scaled to a mean diagonal near 1, in which `factor` counts its steps.
        let scale = 1.0 + rho;
        let mut shifted = gram.clone();
        shifted.diag_mut().iter_mut().for_each(|d| *d += rho);
        shifted.par_mapv_inplace(|v| v / scale);
        let found = factor(layer, shifted, 0.0, prune_linalg::cholesky)?;
        let inverse = prune_linalg::cholesky_inverse(found.factor.view())
            .map_err(|e| prune_core::Error::external(layer.as_str(), e))?;
        drop(found.factor);
        self.pull = Array2::zeros(inverse.dim());
        Zip::from(&mut self.pull).and(&inverse).par_for_each(|p, v| *p = (rho / scale * v) as f32);
        Ok(Inverted { damping: found.damping * scale, raised: found.raised })
    }

    /// The dual variable is U = V / ρ with V fixed: it shrinks as ρ grows.
    pub(super) fn scale_dual(&mut self, by: f64) {
        let mask = &self.mask;
        self.state.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(r, mut row)| {
            for (c, t) in row.iter_mut().enumerate() {
                if !mask.is_kept(r, c) {
                    *t = (f64::from(*t) * by) as f32;
                }
            }
        });
    }

    /// One iteration with the mask as it is; writes W to `weights` if it is wanted.
    pub(super) fn step(&mut self, weights: Option<&mut Array2<f32>>) {
        let (rows, cols) = self.dense.dim();
        let panel = panel_rows(rows);
        let Self { dense, state, mask, pull } = self;
        let mut none = Array2::zeros((rows, 0));
        let out = weights.unwrap_or(&mut none);
        state
            .axis_chunks_iter_mut(Axis(0), panel)
            .into_par_iter()
            .zip(out.axis_chunks_iter_mut(Axis(0), panel))
            .zip(dense.axis_chunks_iter(Axis(0), panel))
            .enumerate()
            .for_each(|(p, ((mut state, mut out), dense))| {
                let kept = |(r, c): (usize, usize)| mask.is_kept(p * panel + r, c);
                let mut gap = Array2::zeros((state.nrows(), cols));
                for ((at, gap), (t, w)) in gap.indexed_iter_mut().zip(state.iter().zip(&dense)) {
                    *gap = if kept(at) { t - w } else { -t - w };
                }
                let mut weights = dense.to_owned();
                general_mat_mul(1.0, &gap, pull, 1.0, &mut weights);
                for ((at, t), w) in state.indexed_iter_mut().zip(&weights) {
                    *t = if kept(at) { *w } else { *w + *t };
                }
                if out.ncols() > 0 {
                    out.assign(&weights);
                }
            });
    }

    /// The mask of the largest entries of the state.
    pub(super) fn project(&self, target: &Target<'_>) -> Result<Mask> {
        largest(self.state.view(), target)
    }

    /// As [`Splitting::project`] on the way to an N:M pattern: the `n` largest of each group stay,
    /// and of the others the `remove` smallest of the layer go.
    pub(super) fn project_groups(
        &self,
        target: &Target<'_>,
        (n, m): (usize, usize),
        remove: usize,
    ) -> Result<Mask> {
        let protected = largest(
            self.state.view(),
            &Target { remove: self.state.len() / m * (m - n), ..target.clone() },
        )?;
        let gradual = Target {
            pattern: Pattern::Unstructured,
            scope: Scope::PerLayer,
            remove,
            ..target.clone()
        };
        select(&gradual, self.state.dim(), &|row, scores| {
            for (c, (s, t)) in scores.iter_mut().zip(self.state.row(row)).enumerate() {
                *s = if protected.is_kept(row, c) { f32::MAX } else { t.abs() };
            }
            Ok(())
        })
    }

    /// D: the state where it is kept, 0 elsewhere.
    pub(super) fn into_sparse(mut self) -> Result<(Array2<f32>, Mask)> {
        self.mask.apply(self.state.view_mut())?;
        Ok((self.state, self.mask))
    }
}

/// The mask of the entries of largest absolute value.
pub(super) fn largest(values: ArrayView2<'_, f32>, target: &Target<'_>) -> Result<Mask> {
    select(target, values.dim(), &|row, scores| {
        scores.iter_mut().zip(values.row(row)).for_each(|(s, v)| *s = v.abs());
        Ok(())
    })
}
