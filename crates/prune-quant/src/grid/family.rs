/// How a group of integer codes gets its scale and zero point, and how a weight is rounded: three
/// conventions that are not interchangeable. A scheme with a
/// [`ZeroPoint::Float`](prune_core::ZeroPoint::Float) follows a fourth, which KIVI, KVTuner's paper
/// and Quanto share: `scale = (max − min) / (2^b − 1)`, zero at `−min / scale` exactly.
///
/// `rne` is rounding half to even, `m` the largest code `2^b − 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Family {
    /// compressed-tensors and llm-compressor, which serve W4A16 files. The range always holds 0;
    /// the zero point is added before the one rounding.
    ///
    /// ```text
    /// lo = min(min x, 0)   hi = max(max x, 0)
    /// sym:   scale = max(−lo, hi) / (m/2)
    /// asym:  scale = (hi − lo) / m        zero = rne(−lo / scale)
    /// code = rne(clamp(x / scale + zero, 0, m))
    /// ```
    #[default]
    CompressedTensors,
    /// GPTQ, AutoGPTQ and GPTQModel: ranges as above, but `x / scale` is rounded before the zero
    /// point is added, which differs on ties.
    ///
    /// ```text
    /// code = clamp(rne(x / scale) + zero, 0, m)
    /// ```
    Gptq,
    /// AWQ and AutoAWQ: the range need not hold 0, yet the zero point is a code, so that groups of
    /// one sign lose most of their values. For comparison with AWQ files only.
    ///
    /// ```text
    /// sym:   scale = max(absmax, 1e-5) / (2^(b−1) − 1)
    /// asym:  scale = max(max x − min x, 1e-5) / m    zero = clamp(−rne(min x / scale), 0, m)
    /// code = clamp(rne(x / scale) + zero, 0, m)
    /// ```
    Awq,
}

/// Which part of a group's values its codes span.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Range {
    /// From the smallest to the largest.
    #[default]
    MinMax,
    /// The range, shrunk step by step, that gives the least error. The whole range is among the
    /// candidates, so the error is never above that of [`Range::MinMax`].
    Mse(MseSearch),
    /// The central part that holds this fraction of the values, in (0, 1], between interpolated
    /// quantiles; what lies outside is clipped.
    Percentile(f64),
}

/// The search of [`Range::Mse`]: the range times `1 − i/grid` for `i` from 0 up to `shrink · grid`.
///
/// The error is the sum of `|x̂ − x|^norm`; the defaults are those of GPTQ's quantiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MseSearch {
    /// Steps from the whole range to nothing, at least 1.
    pub grid: u32,
    /// The largest part of the range that is cut off, in (0, 1].
    pub shrink: f64,
    /// The exponent of the error, above 0.
    pub norm: f64,
}

impl Default for MseSearch {
    fn default() -> Self {
        Self { grid: 100, shrink: 0.8, norm: 2.4 }
    }
}

/// How MXFP4 chooses the power of two that a group shares, from the largest magnitude in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MxScale {
    /// `2^(⌊log2 absmax⌋ − 2)`, as the specification of the Open Compute Project and ggml have it.
    /// The largest value may exceed the largest code and lose up to a quarter.
    #[default]
    Floor,
    /// One more where the mantissa of the largest value is 1.75 or above: compressed-tensors.
    RoundUp,
}
