use ndarray::{Array2, ArrayView2, Zip};
use prune_core::{
    Error, GramAccumulator, LayerStats, Needs, QuantReport, QuantScheme, QuantTarget, Quantized,
    QuantizedMatrix, Quantizer, Result, ScaleFormat,
};

use super::scales::{group_size, statistics};
use super::{ScaleSearch, clip_limits};
use crate::grid::{Input, round_matrix};
use crate::rtn::two_bits_or_more;

/// Scales input channels so that rounding hurts where inputs are small, then clips and rounds: AWQ
/// (Lin et al. 2023, arXiv 2306.00978), for one layer by itself.
///
/// The scales stay with the matrix, as its
/// [`column_scales`](prune_core::QuantizedMatrix::column_scales). To be rid of them at run time,
/// search them for all layers that share an input ([`ScaleSearch::find`]), fold them into the layer
/// before ([`fold_scales`](crate::fold_scales)) and round what comes of it. The reported loss is
/// the mean squared change of the outputs before clipping.
///
/// Ranges always hold zero here, unlike in the released code, which loses groups of one sign.
///
/// ```
/// use ndarray::{Array2, array};
/// use prune_core::{ColumnStats, GramAccumulator, LayerId, LayerStats, QuantTarget, Quantizer};
/// use prune_quant::Awq;
///
/// let inputs = array![[100.0, 1.0], [-90.0, 1.0], [80.0, -1.0]];
/// let (mut columns, mut gram) = (ColumnStats::new(2), GramAccumulator::new(2));
/// columns.update("x", inputs.view())?;
/// gram.update("x", inputs.view())?;
/// let stats = LayerStats { columns: Some(columns), gram: Some(gram), ..LayerStats::default() };
/// let layer = LayerId::new("up_proj");
/// let target = QuantTarget { layer: &layer, scheme: "int3 g2".parse()?, keep: None };
/// let done = Awq::default().quantize(array![[0.2, 1.0]].view(), &stats, &target)?;
/// let weight = done.matrix.dequantize();
/// assert!((weight[[0, 0]] - 0.2).abs() < 0.05, "the loud channel is kept");
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Awq {
    /// How scales are found, and how weights are rounded.
    pub search: ScaleSearch,
    /// Whether groups are clipped after that.
    pub clip: Clip,
}

/// Whether [`Awq`] clips groups before it rounds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Clip {
    /// To the limits of [`clip_limits`]: for all layers but queries and keys.
    #[default]
    Search,
    /// Not.
    Never,
}

impl Default for Awq {
    fn default() -> Self {
        Self { search: ScaleSearch::default(), clip: Clip::Search }
    }
}

impl Quantizer for Awq {
    fn name(&self) -> &str {
        "awq"
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        24 * cols * cols + 16 * rows * cols + (1 << 20)
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<()> {
        two_bits_or_more(self.name(), scheme)?;
        if scheme.scale == ScaleFormat::Double {
            return Err(Error::UnsupportedScheme {
                method: self.name().to_string(),
                scheme: *scheme,
                reason: "scales in a byte depend on each other; use `f16` or `f32`".to_string(),
            });
        }
        group_size(self.name(), scheme).map(|_| ())
    }

    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        target: &QuantTarget<'_>,
    ) -> Result<Quantized> {
        self.supports(&target.scheme)?;
        let (layer, scheme) = (target.layer, target.scheme);
        let (_, gram) = statistics(self.name(), layer, stats)?;
        // Checks the weight and the mask, and leaves out what is removed.
        let input = Input::new(self.name(), &weight, target)?;
        let mut scaled = Array2::from_shape_fn(weight.dim(), |(r, c)| {
            if input.is_kept(r, c) { weight[[r, c]] } else { 0.0 }
        });
        let found = self.search.find(layer, &[scaled.view()], stats, scheme)?;
        let identity = found.ratio.is_none();
        if !identity {
            for mut row in scaled.outer_iter_mut() {
                row.iter_mut().zip(&found.scales).for_each(|(w, s)| *w *= s);
            }
        }
        if self.clip == Clip::Search {
            let gram = match identity {
                true => gram.clone(),
                false => scaled_gram(gram, &found.scales)?,
            };
            let limits = clip_limits(layer, scaled.view(), &gram, scheme, &self.search.rtn)?;
            let group = group_size(self.name(), &scheme)?.unwrap_or(scaled.ncols().max(1));
            for (mut row, limits) in scaled.outer_iter_mut().zip(limits.outer_iter()) {
                for (c, w) in row.iter_mut().enumerate() {
                    *w = w.clamp(-limits[c / group], limits[c / group]);
                }
            }
        }
        let view = scaled.view();
        let input = Input::new(self.name(), &view, target)?;
        let coder = self.search.rtn.coder(scheme, input.absmax())?;
        let mut parts = round_matrix(&coder, &input)?.into_parts();
        parts.column_scales = (!identity).then_some(found.scales);
        Ok(Quantized {
            matrix: QuantizedMatrix::from_parts(&layer.weight_name(), parts)?,
            report: QuantReport { loss: Some(found.loss), ..QuantReport::default() },
        })
    }
}

/// The Gram matrix of inputs divided by `scales`.
fn scaled_gram(gram: &GramAccumulator, scales: &[f32]) -> Result<GramAccumulator> {
    let mut matrix = gram.matrix().to_owned();
    Zip::indexed(&mut matrix).par_for_each(|(i, j), g| {
        // Symmetric to the bit: the product of the scales first.
        *g /= f64::from(scales[i]) * f64::from(scales[j]);
    });
    GramAccumulator::from_parts(gram.count(), matrix)
}
