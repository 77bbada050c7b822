use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};
use prune_core::{
    ColumnStats, Error, GramAccumulator, Granularity, LayerId, LayerStats, QuantScheme, Result,
    check_finite,
};
use rayon::prelude::*;

use crate::Rtn;
use crate::grid::Coder;

/// What the scale of an input channel is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Weighting {
    /// `x^r`, from the mean magnitude `x` of the channel's inputs: the paper.
    #[default]
    Inputs,
    /// `x^r / (w^(1−r) + 1e-4)`, with the mean relative magnitude `w` of the channel's weights:
    /// AutoAWQ's `duo_scaling`. Here `r = 0` is not the identity.
    InputsAndWeights,
}

/// The search for scales of input channels that makes rounding hurt least (Lin et al. 2023,
/// arXiv 2306.00978).
///
/// Channels are multiplied by `s` before rounding and divided after: large inputs get finer
/// weights, at the price of the others in their group. Tried are `r = 0, 1/steps, …`; what counts
/// is the mean squared change of the outputs of all layers that share the input,
/// `tr(ΔW XᵀX ΔWᵀ) / (tokens · outputs)`. The identity is always among the candidates, so that the
/// result is never worse than rounding to nearest.
///
/// The released code measures the change at the output of the whole attention or MLP block, and
/// includes the identity only by accident of `r = 0`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleSearch {
    /// Candidates besides the identity, at least 1.
    pub steps: u32,
    /// What scales are made of.
    pub weighting: Weighting,
    /// Rounding under the scales.
    pub rtn: Rtn,
    /// The most rows of each layer on which candidates are compared, evenly spaced; `None` for all.
    /// Time is proportional to it.
    pub rows: Option<usize>,
}

impl Default for ScaleSearch {
    fn default() -> Self {
        Self { steps: 20, weighting: Weighting::Inputs, rtn: Rtn::default(), rows: None }
    }
}

/// The scales that [`ScaleSearch`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct AwqScales {
    /// What each input channel is multiplied by before rounding; ones when nothing was better.
    pub scales: Vec<f32>,
    /// The `r` of the best candidate; `None` for the identity.
    pub ratio: Option<f64>,
    /// The mean squared change of the outputs.
    pub loss: f64,
    /// The same when rounding to nearest.
    pub plain_loss: f64,
}

impl ScaleSearch {
    /// The best scales for layers that share their input: queries, keys and values; gate and up.
    /// `weights` are `(out_features, in_features)` each, `layer` names them in errors, `stats` are
    /// of the shared input and hold column statistics and the Gram matrix.
    ///
    /// Costs `steps · out · in²` operations in f32.
    ///
    /// # Errors
    /// [`Error::NoStatistics`], [`Error::Shape`], [`Error::NotFinite`]; [`Error::OutOfRange`] for 0
    /// steps; [`Error::UnsupportedScheme`] for groups that cross rows.
    ///
    /// ```
    /// use ndarray::{Array2, array};
    /// use prune_core::{ColumnStats, GramAccumulator, LayerId, LayerStats};
    /// use prune_quant::ScaleSearch;
    ///
    /// let inputs = Array2::from_shape_fn((16, 4), |(t, j)| {
    ///     (t as f32 * 0.7 + j as f32).sin() * if j == 1 { 50.0 } else { 1.0 }
    /// });
    /// let (mut columns, mut gram) = (ColumnStats::new(4), GramAccumulator::new(4));
    /// columns.update("x", inputs.view())?;
    /// gram.update("x", inputs.view())?;
    /// let stats = LayerStats { columns: Some(columns), gram: Some(gram), ..LayerStats::default() };
    /// let weight = array![[0.3, -0.11, 0.9, -0.5], [1.0, 0.23, 0.4, 0.1]];
    /// let found = ScaleSearch::default().find(
    ///     &LayerId::new("up_proj"), &[weight.view()], &stats, "int3 g4 asym".parse()?,
    /// )?;
    /// assert!(found.loss < found.plain_loss);
    /// assert!(found.scales[1] > found.scales[0]);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn find(
        &self,
        layer: &LayerId,
        weights: &[ArrayView2<'_, f32>],
        stats: &LayerStats,
        scheme: QuantScheme,
    ) -> Result<AwqScales> {
        let group = group_size("awq", &scheme)?;
        if self.steps == 0 {
            return Err(Error::OutOfRange {
                what: "steps of the scale search".to_string(),
                found: "0".to_string(),
                expected: "at least 1".to_string(),
            });
        }
        let (columns, gram) = statistics("awq", layer, stats)?;
        let cols = columns.channels();
        let mut rows = Vec::new();
        let mut outputs = 0;
        for weight in weights {
            if weight.ncols() != cols {
                return Err(Error::Shape {
                    what: layer.weight_name(),
                    found: vec![weight.nrows(), weight.ncols()],
                    expected: vec![weight.nrows(), cols],
                });
            }
            check_finite(&layer.weight_name(), &weight.iter().copied().collect::<Vec<_>>())?;
            let step = self.rows.map_or(1, |most| weight.nrows().div_ceil(most.max(1))).max(1);
            for row in weight.outer_iter().step_by(step) {
                rows.extend(row.iter().copied());
                outputs += 1;
            }
        }
        let rows = Array2::from_shape_vec((outputs, cols), rows).map_err(|_| Error::Shape {
            what: layer.weight_name(),
            found: vec![outputs],
            expected: vec![outputs, cols],
        })?;
        let per_output = 1.0 / (gram.count() as f64 * outputs.max(1) as f64);
        let gram = gram.matrix().mapv(|g| g as f32);
        let group = group.unwrap_or(cols.max(1));
        let loss = |scales: Option<&[f32]>| -> Result<f64> {
            Ok(per_output * change(&rows, &gram, scales, &self.rtn, scheme, group)?)
        };

        let plain_loss = loss(None)?;
        let mut best =
            AwqScales { scales: vec![1.0; cols], ratio: None, loss: plain_loss, plain_loss };
        let inputs: Vec<f64> =
            columns.abs_sum().iter().map(|s| s / columns.count() as f64).collect();
        let sizes = match self.weighting {
            Weighting::Inputs => None,
            Weighting::InputsAndWeights => Some(relative_sizes(weights, cols, group)),
        };
        for step in 0..self.steps {
            let ratio = f64::from(step) / f64::from(self.steps);
            let scales = candidate(&inputs, sizes.as_deref(), ratio);
            let found = loss(Some(&scales))?;
            if found < best.loss {
                best = AwqScales { scales, ratio: Some(ratio), loss: found, plain_loss };
            }
        }
        Ok(best)
    }
}

/// The statistics of a layer's input, or why they will not do.
pub(super) fn statistics<'a>(
    method: &str,
    layer: &LayerId,
    stats: &'a LayerStats,
) -> Result<(&'a ColumnStats, &'a GramAccumulator)> {
    let columns = stats.require_columns(layer, method)?;
    let gram =
        stats.gram.as_ref().filter(|g| g.count() > 0).ok_or_else(|| Error::NoStatistics {
            layer: layer.to_string(),
            method: method.to_string(),
            needed: "a Gram matrix",
        })?;
    if gram.channels() != columns.channels() {
        return Err(Error::Shape {
            what: format!("{layer} (channels of the Gram matrix)"),
            found: vec![gram.channels()],
            expected: vec![columns.channels()],
        });
    }
    Ok((columns, gram))
}

/// The size of groups along a row, `None` for whole rows.
pub(super) fn group_size(method: &str, scheme: &QuantScheme) -> Result<Option<usize>> {
    match scheme.granularity {
        Granularity::Group(n) => Ok(Some(n)),
        Granularity::PerChannel => Ok(None),
        _ => Err(Error::UnsupportedScheme {
            method: method.to_string(),
            scheme: *scheme,
            reason: "groups have to lie within rows; use `gN` or `channel`".to_string(),
        }),
    }
}

/// Scales for one `r`, normalised to a geometric middle of 1.
fn candidate(inputs: &[f64], sizes: Option<&[f64]>, ratio: f64) -> Vec<f32> {
    let mut scales: Vec<f64> = inputs.iter().map(|x| x.powf(ratio)).collect();
    if let Some(sizes) = sizes {
        for (s, w) in scales.iter_mut().zip(sizes) {
            *s /= w.powf(1.0 - ratio) + 1e-4;
        }
    }
    scales.iter_mut().for_each(|s| *s = s.max(1e-4));
    let (lo, hi) =
        scales.iter().fold((f64::INFINITY, 0.0f64), |(lo, hi), s| (lo.min(*s), hi.max(*s)));
    let middle = (lo * hi).sqrt();
    let finite = |s: f32| if s.is_finite() && s > 0.0 { s } else { 1.0 };
    scales.iter().map(|s| finite((s / middle) as f32)).collect()
}

/// The mean over all rows of `|w| / (largest |w| of the group + 1e-6)`, for each input channel.
fn relative_sizes(weights: &[ArrayView2<'_, f32>], cols: usize, group: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cols];
    let mut rows = 0usize;
    for row in weights.iter().flat_map(|w| w.outer_iter()) {
        rows += 1;
        for first in (0..cols).step_by(group) {
            let part = row.slice(s![first..(first + group).min(cols)]);
            let most = part.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            for (sum, w) in sums[first..].iter_mut().zip(part) {
                *sum += f64::from(w.abs() / (most + 1e-6));
            }
        }
    }
    sums.iter().map(|s| s / rows.max(1) as f64).collect()
}

/// Rows that one thread works on at a time. Part of the definition of the sum.
const PANEL: usize = 64;

/// `tr(ΔW G ΔWᵀ)` when `weights` are rounded under `scales`.
fn change(
    weights: &Array2<f32>,
    gram: &Array2<f32>,
    scales: Option<&[f32]>,
    rtn: &Rtn,
    scheme: QuantScheme,
    group: usize,
) -> Result<f64> {
    let most = |row: ndarray::ArrayView1<'_, f32>| match scales {
        None => row.iter().fold(0.0f32, |m, w| m.max(w.abs())),
        Some(s) => row.iter().zip(s).fold(0.0f32, |m, (w, s)| m.max((w * s).abs())),
    };
    let coder = rtn.coder(scheme, weights.outer_iter().map(most).fold(0.0, f32::max))?;
    let panels: Vec<ArrayView2<'_, f32>> =
        weights.axis_chunks_iter(ndarray::Axis(0), PANEL).collect();
    let sums: Vec<f64> = panels
        .into_par_iter()
        .map(|panel| {
            let mut delta = panel.to_owned();
            for mut row in delta.outer_iter_mut() {
                if let Some(row) = row.as_slice_mut() {
                    delta_of_row(&coder, row, scales, group);
                }
            }
            let mut product = Array2::zeros(delta.raw_dim());
            general_mat_mul(1.0, &delta, gram, 0.0, &mut product);
            delta.iter().zip(&product).map(|(d, p)| f64::from(*d) * f64::from(*p)).sum()
        })
        .collect();
    // Rounding may leave a tiny negative number where there is no change.
    Ok(sums.iter().sum::<f64>().max(0.0))
}

/// Turns a row of weights into what rounding under `scales` changes of it.
fn delta_of_row(coder: &Coder, row: &mut [f32], scales: Option<&[f32]>, group: usize) {
    let mut scaled = Vec::with_capacity(group);
    for first in (0..row.len()).step_by(group) {
        let end = (first + group).min(row.len());
        let part = &mut row[first..end];
        scaled.clear();
        match scales {
            None => scaled.extend_from_slice(part),
            Some(s) => scaled.extend(part.iter().zip(&s[first..end]).map(|(w, s)| w * s)),
        }
        let p = coder.params(&scaled);
        for (i, (w, x)) in part.iter_mut().zip(&scaled).enumerate() {
            let back = coder.nearest(&p, *x);
            *w = scales.map_or(back, |s| back / s[first + i]) - *w;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Family;
    use approx::assert_relative_eq;

    /// Computed with numpy in f64 after AutoAWQ: the mean relative magnitudes of weights, and the
    /// loss of their first candidate, which is not that of the identity.
    #[test]
    fn scales_from_weights_alone_match_the_released_code() {
        let weight =
            Array2::from_shape_fn((4, 8), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin() as f32);
        let x = Array2::from_shape_fn((16, 8), |(n, j)| {
            let loud = if j == 5 { 8.0 } else { 1.0 };
            let (n, j) = (n as f64, j as f64);
            (0.3 * n * (j % 3.0 + 1.0) + 0.2 * j).cos() * loud
        });
        let sizes = relative_sizes(&[weight.view()], 8, 4);
        let want = [0.711697, 0.764385, 0.801773, 0.823114, 0.798643, 0.668014, 0.768290, 0.869526];
        for (size, want) in sizes.iter().zip(want) {
            assert_relative_eq!(*size, want, epsilon = 6e-7);
        }
        // Layers that share the input count by their rows.
        let halves = [weight.slice(s![..1, ..]), weight.slice(s![1.., ..])];
        for (a, b) in relative_sizes(&halves, 8, 4).iter().zip(&sizes) {
            assert_relative_eq!(a, b, epsilon = 1e-12);
        }
        let inputs: Vec<f64> = (0..8).map(|j| x.column(j).mapv(f64::abs).sum() / 16.0).collect();
        let gram = x.t().dot(&x).mapv(|g| g as f32);
        let rtn = Rtn::default().family(Family::Awq);
        let loss = |sizes, ratio| {
            let scales = candidate(&inputs, sizes, ratio);
            let scheme = "int3 g4 asym f32".parse().unwrap();
            change(&weight, &gram, Some(&scales), &rtn, scheme, 4).unwrap() / 64.0
        };
        assert_relative_eq!(loss(Some(&sizes[..]), 0.0), 0.167788, epsilon = 1e-6);
        assert_relative_eq!(loss(Some(&sizes[..]), 0.4), 0.031035, epsilon = 1e-6);
        for (ratio, want) in
            [(0.0, 0.137265), (0.05, 0.138209), (0.1, 0.134856), (0.15, 0.035299), (0.2, 0.018741)]
        {
            assert_relative_eq!(loss(None, ratio), want, epsilon = 1e-6);
        }
    }
}
