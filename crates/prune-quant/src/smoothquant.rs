use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use prune_core::{
    ColumnStats, Error, LayerId, LayerStats, Needs, QuantScheme, QuantTarget, Quantized,
    QuantizedMatrix, Quantizer, Result, check_finite,
};

use crate::grid::{Input, round_matrix};
use crate::rtn::two_bits_or_more;
use crate::{Family, Rtn};

/// Moves outliers of the activations into the weights, then rounds: SmoothQuant (Xiao et al. 2022,
/// arXiv 2211.10438), for one layer by itself.
///
/// Made for 8-bit weights by output channel beside 8-bit activations by token ([`round_tokens`]).
/// The scales stay with the matrix as its
/// [`column_scales`](prune_core::QuantizedMatrix::column_scales); [`smooth_scales`] gives those of
/// several layers, to be folded into the norm before them.
///
/// ```
/// use ndarray::array;
/// use prune_core::{ColumnStats, LayerId, LayerStats, QuantTarget, Quantizer};
/// use prune_quant::SmoothQuant;
///
/// let mut columns = ColumnStats::new(2);
/// columns.update("x", array![[64.0, 1.0]].view())?;
/// let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
/// let layer = LayerId::new("up_proj");
/// let target = QuantTarget { layer: &layer, scheme: "int8".parse()?, keep: None };
/// let done = SmoothQuant::default().quantize(array![[1.0, 1.0]].view(), &stats, &target)?;
/// assert_eq!(done.matrix.column_scales(), Some(&[8.0, 1.0][..]));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmoothQuant {
    /// How much of the outliers moves to the weights, from 0 (nothing) to 1 (all). The authors take
    /// 0.5, and 0.8 to 0.9 for recent models.
    pub alpha: f64,
    /// Rounding of the smoothed weights.
    pub rtn: Rtn,
}

impl Default for SmoothQuant {
    fn default() -> Self {
        Self { alpha: 0.5, rtn: Rtn::default().family(Family::Awq) }
    }
}

/// The scales `s_j = a_j^α / w_j^(1−α)` of input channels, from the largest input `a_j` and the
/// largest weight `w_j` of each over all layers that share the input; at least 1e-5.
///
/// Inputs are divided by them (in the norm before) and the columns of the weights multiplied.
///
/// # Errors
/// [`Error::OutOfRange`] for an α outside 0 to 1; [`Error::NoStatistics`]; [`Error::Shape`];
/// [`Error::NotFinite`].
pub fn smooth_scales(
    layer: &LayerId,
    weights: &[ArrayView2<'_, f32>],
    columns: &ColumnStats,
    alpha: f64,
) -> Result<Vec<f32>> {
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::OutOfRange {
            what: "alpha of SmoothQuant".to_string(),
            found: alpha.to_string(),
            expected: "0 to 1".to_string(),
        });
    }
    if columns.count() == 0 {
        return Err(Error::NoStatistics {
            layer: layer.to_string(),
            method: "smoothquant".to_string(),
            needed: "column statistics",
        });
    }
    let mut largest = vec![0.0f32; columns.channels()];
    for weight in weights {
        if weight.ncols() != largest.len() {
            return Err(Error::Shape {
                what: layer.weight_name(),
                found: vec![weight.nrows(), weight.ncols()],
                expected: vec![weight.nrows(), largest.len()],
            });
        }
        for row in weight.outer_iter() {
            check_finite(&layer.weight_name(), &row.to_vec())?;
            largest.iter_mut().zip(row).for_each(|(m, w)| *m = m.max(w.abs()));
        }
    }
    let scale = |(a, w): (&f64, &f32)| {
        let s = a.powf(alpha) / f64::from(w.max(1e-5)).powf(1.0 - alpha);
        s.clamp(1e-5, f64::from(f32::MAX)) as f32
    };
    Ok(columns.abs_max().iter().zip(&largest).map(scale).collect())
}

/// Rounds each row of `inputs` (`tokens x channels`) to symmetric integers of `bits` bits and back:
/// what activations become in W8A8. The step of a row is its largest magnitude, at least 1e-5, over
/// `2^(bits−1) − 1`; halves go to even.
///
/// # Errors
/// [`Error::OutOfRange`] unless `2 <= bits <= 8`.
pub fn round_tokens(mut inputs: ArrayViewMut2<'_, f32>, bits: u8) -> Result<()> {
    if !(2..=8).contains(&bits) {
        return Err(Error::OutOfRange {
            what: "bits of activations".to_string(),
            found: bits.to_string(),
            expected: "2 to 8".to_string(),
        });
    }
    let top = ((1u32 << (bits - 1)) - 1) as f32;
    for mut row in inputs.outer_iter_mut() {
        let step = row.iter().fold(1e-5f32, |m, x| m.max(x.abs())) / top;
        row.mapv_inplace(|x| (x / step).round_ties_even() * step);
    }
    Ok(())
}

impl Quantizer for SmoothQuant {
    fn name(&self) -> &str {
        "smoothquant"
    }

    fn needs(&self) -> Needs {
        Needs::Columns
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        6 * rows * cols + (1 << 20)
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<()> {
        two_bits_or_more(self.name(), scheme)
    }

    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        target: &QuantTarget<'_>,
    ) -> Result<Quantized> {
        self.supports(&target.scheme)?;
        let columns = stats.require_columns(target.layer, self.name())?;
        let scales = smooth_scales(target.layer, &[weight], columns, self.alpha)?;
        let scaled = Array2::from_shape_fn(weight.dim(), |(r, c)| weight[[r, c]] * scales[c]);
        let view = scaled.view();
        let input = Input::new(self.name(), &view, target)?;
        let coder = self.rtn.coder(target.scheme, input.absmax())?;
        let mut parts = round_matrix(&coder, &input)?.into_parts();
        parts.column_scales = Some(scales);
        Ok(QuantizedMatrix::from_parts(&target.layer.weight_name(), parts)?.into())
    }
}
