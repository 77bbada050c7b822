use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, Zip, s};
use prune_core::{Error, GramAccumulator, LayerId};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Result;

/// What the outputs of a layer that is fitted are compared with.
///
/// Calibration runs block after block, each on what the compressed blocks before it give, so that
/// errors meet the weights that can still make up for them. A fit then has two targets to choose
/// from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Targets {
    /// The layer's own dense outputs on the inputs that it will see. What the authors of SparseGPT,
    /// ADMM and ALPS do.
    #[default]
    Own,
    /// What the dense model gives there: the weight that is pruned is the one that brings its
    /// outputs, on the inputs it will see, closest to those of the dense model. Runs the dense
    /// model beside, which doubles time and memory of the calibration.
    Dense,
}

/// Of how the inputs of a layer differ from those in the dense model, what a fit needs:
/// `Σ (x_dense − x) xᵀ` over tokens.
#[derive(Debug, Clone)]
pub(crate) struct Drift {
    sum: Array2<f64>,
}

/// Channels that one thread computes, and tokens that are summed in f32: both part of the result.
const TILE: usize = 128;

/// What is added to the diagonal of the Gram matrix, over its mean: as the methods that follow.
const DAMPING: f64 = 0.01;

impl Drift {
    pub(crate) fn new(channels: usize) -> Self {
        Self { sum: Array2::zeros((channels, channels)) }
    }

    /// Bytes for a number of channels.
    pub(crate) fn bytes(channels: usize) -> u64 {
        8 * (channels * channels) as u64
    }

    /// Adds tokens: the same bits on any number of threads.
    pub(crate) fn update(
        &mut self,
        layer: &LayerId,
        dense: ArrayView2<'_, f32>,
        own: ArrayView2<'_, f32>,
    ) -> Result<()> {
        if dense.dim() != own.dim() {
            return Err(Error::Shape {
                what: format!("input of {layer} in the dense model"),
                found: dense.shape().to_vec(),
                expected: own.shape().to_vec(),
            }
            .into());
        }
        let difference = &dense - &own;
        self.sum.axis_chunks_iter_mut(Axis(0), TILE).into_par_iter().enumerate().for_each(
            |(panel, mut rows)| {
                let left = s![.., panel * TILE..panel * TILE + rows.nrows()];
                let mut part = Array2::zeros(rows.dim());
                let chunks = difference.axis_chunks_iter(Axis(0), TILE);
                for (d, x) in chunks.zip(own.axis_chunks_iter(Axis(0), TILE)) {
                    general_mat_mul(1.0, &d.slice(left).t(), &x, 0.0, &mut part);
                    Zip::from(&mut rows).and(&part).for_each(|s, p| *s += f64::from(*p));
                }
            },
        );
        Ok(())
    }

    /// Bytes that [`Drift::retarget`] takes for a weight, for estimates.
    pub(crate) fn workspace_bytes(rows: usize, cols: usize) -> usize {
        32 * rows * cols + 24 * cols * cols
    }

    /// Moves a weight to the one whose outputs on the inputs `x` are closest to its own on
    /// `x_dense`: `W + W D (G + λI)⁻¹`, the least squares solution of `V x = W x_dense` with a pull
    /// of strength λ back to W.
    pub(crate) fn retarget(
        &self,
        layer: &LayerId,
        weight: &mut Array2<f32>,
        gram: &GramAccumulator,
    ) -> Result<()> {
        let linalg = |e| Error::external(layer.as_str(), e);
        let mut system = gram.matrix().to_owned();
        let mean = system.diag().mean().unwrap_or(0.0);
        if mean <= 0.0 {
            return Ok(());
        }
        system.diag_mut().mapv_inplace(|d| d + DAMPING * mean);
        let factor = prune_linalg::cholesky(system.view()).map_err(linalg)?;
        drop(system);
        let mut moved = Array2::<f64>::zeros(weight.dim());
        moved
            .axis_chunks_iter_mut(Axis(0), TILE)
            .into_par_iter()
            .zip(weight.axis_chunks_iter(Axis(0), TILE).into_par_iter())
            .for_each(|(mut moved, weight)| {
                general_mat_mul(1.0, &weight.mapv(f64::from), &self.sum, 0.0, &mut moved);
            });
        let step = prune_linalg::cholesky_solve(factor.view(), moved.t()).map_err(linalg)?;
        Zip::from(weight).and(&step.t()).for_each(|w, s| *w = (f64::from(*w) + s) as f32);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prune_core::Seed;

    #[test]
    fn a_retargeted_weight_is_the_least_squares_one() {
        let mut stream = Seed::new(4).stream("drift");
        let (tokens, cols, rows) = (300, 140, 5);
        let own = Array2::from_shape_simple_fn((tokens, cols), || stream.uniform() as f32 - 0.5);
        let noise = Array2::from_shape_simple_fn((tokens, cols), || stream.uniform() as f32 - 0.5);
        let dense = &own * 1.2 + &noise * 0.3;
        let weight = Array2::from_shape_simple_fn((rows, cols), || stream.uniform() as f32 - 0.5);
        let layer = LayerId::new("x");
        let mut gram = GramAccumulator::new(cols);
        let mut drift = Drift::new(cols);
        for part in [s![..130, ..], s![130.., ..]] {
            gram.update("x", own.slice(part)).unwrap();
            drift.update(&layer, dense.slice(part), own.slice(part)).unwrap();
        }
        let mut found = weight.clone();
        drift.retarget(&layer, &mut found, &gram).unwrap();
        // The gradient of ‖V x − W x_dense‖² + λ ‖V − W‖² is 0 there.
        let (own, dense) = (own.mapv(f64::from), dense.mapv(f64::from));
        let (v, w) = (found.mapv(f64::from), weight.mapv(f64::from));
        let lambda = DAMPING * gram.matrix().diag().mean().unwrap();
        let residual = own.dot(&v.t()) - dense.dot(&w.t());
        let gradient = residual.t().dot(&own) + (&v - &w) * lambda;
        let scale = own.dot(&v.t()).t().dot(&own).iter().fold(0f64, |m, g| m.max(g.abs()));
        assert!(gradient.iter().all(|g| g.abs() < 1e-5 * scale));
        assert!((&v - &w).iter().any(|d| d.abs() > 0.01));
        // Inputs that are those of the dense model move nothing.
        let mut same = Drift::new(cols);
        same.update(&layer, noise.view(), noise.view()).unwrap();
        let mut still = weight.clone();
        same.retarget(&layer, &mut still, &gram).unwrap();
        assert_eq!(still, weight);
    }
}
