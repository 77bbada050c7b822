use ndarray::ArrayView2;
use prune_core::{
    Error, Fidelity, LayerStats, NumberFormat, QuantScheme, QuantTarget, Quantized, Quantizer,
    Result,
};

use crate::grid::{Coder, Input, Rules, round_matrix};
use crate::{Family, MxScale, Range};

/// Rounds every weight to the nearest code of its group: round-to-nearest, data-free.
///
/// Takes integers of 2 to 8 bits with any zero point, NF4, FP4 (also MXFP4 and NVFP4) and FP8, in
/// any grouping. Scales are rounded to their stored format before codes are computed, so that an
/// error is at most half a step where the range was not clipped.
///
/// ```
/// use ndarray::array;
/// use prune_core::{LayerId, LayerStats, QuantTarget, Quantizer};
/// use prune_quant::Rtn;
///
/// let weight = array![[0.0, 0.5, -1.0, 0.75]];
/// let layer = LayerId::new("up_proj");
/// let target = QuantTarget { layer: &layer, scheme: "int4 asym f32".parse()?, keep: None };
/// let done = Rtn::default().quantize(weight.view(), &LayerStats::default(), &target)?;
/// assert_eq!(done.matrix.codes(), array![[9, 13, 0, 15]]);
/// assert!((done.matrix.dequantize()[[0, 1]] - 0.5).abs() <= 0.5 * 1.75 / 15.0);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rtn {
    /// The convention for integer codes.
    pub family: Family,
    /// The part of a group's values that its codes span; integers only.
    pub range: Range,
    /// The rule for scales that are powers of two.
    pub mx_scale: MxScale,
    /// [`Fidelity::Released`] halves symmetric groups without negative weights under
    /// [`Family::Gptq`], as GPTQ's quantiser does, spans ±1 with a group of zeros, and gives
    /// NVFP4's smallest blocks the scale that compressed-tensors does.
    pub fidelity: Fidelity,
}

impl Rtn {
    /// The same with another convention.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// The same with another range.
    #[must_use]
    pub fn range(mut self, range: Range) -> Self {
        self.range = range;
        self
    }

    pub(crate) fn coder(&self, scheme: QuantScheme, absmax: f32) -> Result<Coder> {
        let Rtn { family, range, mx_scale, fidelity } = *self;
        Coder::new(scheme, Rules { family, range, mx_scale, fidelity }, absmax)
    }
}

impl Quantizer for Rtn {
    fn name(&self) -> &str {
        "rtn"
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<()> {
        two_bits_or_more(self.name(), scheme)
    }

    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        _: &LayerStats,
        target: &QuantTarget<'_>,
    ) -> Result<Quantized> {
        self.supports(&target.scheme)?;
        let input = Input::new(self.name(), &weight, target)?;
        let coder = self.coder(target.scheme, input.absmax())?;
        Ok(round_matrix(&coder, &input)?.into())
    }
}

/// Refuses integers of one bit, whose symmetric grid is lopsided beyond use.
pub(crate) fn two_bits_or_more(method: &str, scheme: &QuantScheme) -> Result<()> {
    scheme.check()?;
    match scheme.number {
        NumberFormat::Int { bits: 1 } => Err(Error::UnsupportedScheme {
            method: method.to_string(),
            scheme: *scheme,
            reason: "integers have 2 to 8 bits".to_string(),
        }),
        _ => Ok(()),
    }
}
