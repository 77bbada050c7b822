//! Layers with calibration inputs that several test files share.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ndarray::{Array2, ArrayView2, Axis};
use prune_core::{
    ColumnStats, GramAccumulator, LayerId, LayerStats, Mask, Pattern, Pruned, Pruner, Result,
    Scope, Seed, Target, count_to_remove,
};

pub(crate) const TWO_FOUR: Pattern = Pattern::NM { n: 2, m: 4 };

/// A layer with its calibration inputs.
#[derive(Clone)]
pub(crate) struct Fixture {
    pub(crate) weight: Array2<f64>,
    pub(crate) inputs: Array2<f64>,
}

impl Fixture {
    /// `W[i,j] = sin(7i+3j)`, `X[t,j] = sin(0.37(t+1)(j+1)) + 0.5 cos(t+1)`; two sequences of 8.
    pub(crate) fn small() -> Self {
        let weight =
            Array2::from_shape_fn((4, 8), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin());
        let inputs = Array2::from_shape_fn((16, 8), |(t, j)| {
            let (t, j) = (t as f64 + 1.0, j as f64 + 1.0);
            (0.37 * t * j).sin() + 0.5 * t.cos()
        });
        Self { weight, inputs }
    }

    /// As [`Fixture::small`] with eight rows.
    pub(crate) fn square() -> Self {
        let weight =
            Array2::from_shape_fn((8, 8), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin());
        Self { weight, ..Self::small() }
    }

    /// Correlated inputs of rank 8 and noise, two channels ten times as loud; four sequences of 32.
    pub(crate) fn correlated() -> Self {
        Self::correlated_wide(32)
    }

    /// As [`Fixture::correlated`] with another number of channels.
    pub(crate) fn correlated_wide(cols: usize) -> Self {
        let p = |i: usize, j: usize, s: f64| {
            let v = (12.9898 * i as f64 + 78.233 * j as f64 + 37.719 * s).sin().abs() * 43758.5453;
            v.fract() - 0.5
        };
        let weight = Array2::from_shape_fn((16, cols), |(i, j)| p(i, j, 1.0));
        let inputs = Array2::from_shape_fn((128, cols), |(t, j)| {
            let scale = if j % 16 == 5 { 10.0 } else { 1.0 };
            let shared: f64 = (0..8).map(|k| p(t, k, 2.0) * p(k, j, 3.0)).sum();
            scale * (2.0 * shared + 0.4 * p(t, j, 4.0))
        });
        Self { weight, inputs }
    }

    /// `h_j = 2 · mean x_j²`.
    pub(crate) fn importance(&self) -> Vec<f64> {
        let tokens = self.inputs.nrows() as f64;
        self.gram().diag().iter().map(|sum| 2.0 * sum / tokens).collect()
    }

    /// `XᵀX` in f64.
    pub(crate) fn gram(&self) -> Array2<f64> {
        let half = self.inputs.t().dot(&self.inputs);
        // Symmetric to the bit.
        (&half + &half.t()) / 2.0
    }

    pub(crate) fn stats(&self) -> LayerStats {
        let mut columns = ColumnStats::new(self.inputs.ncols());
        columns.update("x", self.inputs.mapv(|x| x as f32).view()).unwrap();
        let tokens = self.inputs.nrows() as u64;
        let gram = GramAccumulator::from_parts(tokens, self.gram()).unwrap();
        LayerStats { columns: Some(columns), gram: Some(gram), ..LayerStats::default() }
    }

    /// Mask and weights at half sparsity.
    pub(crate) fn prune(
        &self,
        pruner: &dyn Pruner,
        pattern: Pattern,
        scope: Scope,
    ) -> Result<(Pruned, Array2<f64>)> {
        let layer = LayerId::new("layer");
        let remove = count_to_remove(self.weight.len(), 0.5)?;
        let stream = Seed::new(0).stream("layer");
        let target = Target { layer: &layer, pattern, scope, remove, stream };
        let mut weight = self.weight.mapv(|w| w as f32);
        let pruned = pruner.prune(weight.view_mut(), &self.stats(), &target)?;
        for ((i, j), w) in weight.indexed_iter() {
            if !pruned.mask.is_kept(i, j) {
                assert_eq!(w.to_bits(), 0, "a removed weight is not +0.0");
            }
        }
        Ok((pruned, weight.mapv(f64::from)))
    }

    /// `tr((W − Ŵ) XᵀX (W − Ŵ)ᵀ)`.
    pub(crate) fn error(&self, weight: ArrayView2<'_, f64>) -> f64 {
        let change = &self.weight - &weight;
        self.inputs.dot(&change.t()).mapv(|v| v * v).sum()
    }

    /// The weight under a mask.
    pub(crate) fn masked(&self, mask: &Mask) -> Array2<f64> {
        let mut weight = self.weight.clone();
        for ((i, j), w) in weight.indexed_iter_mut() {
            if !mask.is_kept(i, j) {
                *w = 0.0;
            }
        }
        weight
    }

    /// Mean over the sequences of the variances within them, which the released code of DSnoT takes
    /// for the variance.
    pub(crate) fn variance_within(&self, tokens: usize) -> Vec<f64> {
        let mut sum = vec![0.0; self.inputs.ncols()];
        let parts = self.inputs.nrows() / tokens;
        for part in self.inputs.axis_chunks_iter(Axis(0), tokens) {
            for (sum, v) in sum.iter_mut().zip(part.var_axis(Axis(0), 0.0)) {
                *sum += v / parts as f64;
            }
        }
        sum
    }
}

/// Rows of `1` for a removed weight.
pub(crate) fn removed_text(mask: &Mask) -> String {
    let row = |r| (0..mask.cols()).map(|c| if mask.is_kept(r, c) { '0' } else { '1' }).collect();
    (0..mask.rows()).map(row).collect::<Vec<String>>().join("/")
}
