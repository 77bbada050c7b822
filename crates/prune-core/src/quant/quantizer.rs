use ndarray::ArrayView2;

use super::{QuantScheme, QuantizedMatrix};
use crate::{LayerId, LayerStats, Mask, Needs, Result};

/// What a quantizer has to do to one layer.
#[derive(Debug, Clone, Copy)]
pub struct QuantTarget<'a> {
    /// The layer, for errors.
    pub layer: &'a LayerId,
    /// Codes, grouping, zero points and scales.
    pub scheme: QuantScheme,
    /// The weights that a pruner kept; the others have to decode to exactly 0.
    pub keep: Option<&'a Mask>,
}

/// What a quantizer did to one layer: the codes, and what must be known to judge them.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The quantised weight.
    pub matrix: QuantizedMatrix,
    /// What happened on the way.
    pub report: QuantReport,
}

impl From<QuantizedMatrix> for Quantized {
    /// A matrix with nothing to report.
    fn from(matrix: QuantizedMatrix) -> Self {
        Self { matrix, report: QuantReport::default() }
    }
}

/// What a quantizer did besides choosing codes, for the record of a run. Methods leave what they
/// do not compute at its default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QuantReport {
    /// What the method minimised, at its result; the method says in which unit.
    pub loss: Option<f64>,
    /// What was added to the diagonal of the layer's Gram matrix, over the mean of that diagonal;
    /// the value that worked. `None` for methods that do not damp.
    pub damping: Option<f64>,
    /// How many times the damping had to be raised above the one asked for.
    pub damping_raised: u32,
    /// Input channels that were 0 on every calibration token.
    pub dead_columns: usize,
    /// Anything else that differs from what was asked for, a sentence each.
    pub notes: Vec<String>,
}

/// Turns the weights of one layer into codes.
///
/// ```
/// use ndarray::{ArrayView2, array};
/// use prune_core::{
///     LayerId, LayerStats, Needs, QuantScheme, QuantTarget, Quantized, QuantizedMatrix,
///     QuantizedParts, Quantizer, Result,
/// };
///
/// /// Every weight becomes the nearest whole number.
/// struct Round;
///
/// impl Quantizer for Round {
///     fn name(&self) -> &str {
///         "round"
///     }
///     fn supports(&self, _: &QuantScheme) -> Result<()> {
///         Ok(())
///     }
///     fn quantize(
///         &self,
///         weight: ArrayView2<'_, f32>,
///         _: &LayerStats,
///         target: &QuantTarget<'_>,
///     ) -> Result<Quantized> {
///         let parts = QuantizedParts {
///             scheme: target.scheme,
///             codes: weight.mapv(|w| (w + 8.0).round_ties_even().clamp(0.0, 15.0) as u8),
///             scales: ndarray::Array2::ones((weight.nrows(), 1)),
///             zeros: None,
///             global_scale: None,
///             group_index: None,
///             column_scales: None,
///         };
///         Ok(QuantizedMatrix::from_parts(target.layer.as_str(), parts)?.into())
///     }
/// }
///
/// let layer = LayerId::new("up_proj");
/// let target = QuantTarget { layer: &layer, scheme: QuantScheme::int(4)?, keep: None };
/// let done = Round.quantize(array![[1.2, -3.7]].view(), &LayerStats::default(), &target)?;
/// assert_eq!(done.matrix.dequantize(), array![[1.0, -4.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub trait Quantizer: Send + Sync {
    /// A short name: `gptq`.
    fn name(&self) -> &str;

    /// The statistics that [`Quantizer::quantize`] reads.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Bytes that [`Quantizer::quantize`] takes for a weight of `rows x cols` besides the weight
    /// itself and the statistics, with its result, for estimates.
    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        // A byte a code, and scales, zero points and parameters of groups of 32.
        rows * cols * 2 + (1 << 20)
    }

    /// Whether the quantizer can make matrices of this scheme.
    ///
    /// # Errors
    /// [`Error::UnsupportedScheme`](crate::Error::UnsupportedScheme) saying what to use instead.
    fn supports(&self, scheme: &QuantScheme) -> Result<()>;

    /// The codes of `weight` (`out_features x in_features`).
    ///
    /// # Errors
    /// [`Error::NotFinite`](crate::Error::NotFinite),
    /// [`Error::NoStatistics`](crate::Error::NoStatistics), [`Error::Shape`](crate::Error::Shape),
    /// [`Error::UnsupportedScheme`](crate::Error::UnsupportedScheme).
    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        target: &QuantTarget<'_>,
    ) -> Result<Quantized>;
}
