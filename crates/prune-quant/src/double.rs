use std::sync::LazyLock;

/// Scales in a byte each: the double quantisation of bitsandbytes (Dettmers et al. 2023,
/// arXiv 2305.14314, section 3).
///
/// The mean is subtracted, and what is left is rounded to a code book of 256 levels in blocks of
/// 256 that share their largest magnitude.
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleQuantized {
    /// The level of each scale in [`dynamic_levels`].
    pub codes: Vec<u8>,
    /// The largest magnitude of each block.
    pub absmax: Vec<f32>,
    /// The mean of all scales.
    pub offset: f32,
}

/// Scales of a block.
const BLOCK: usize = 256;

impl DoubleQuantized {
    /// The scales that the codes stand for. Where rounding made one 0 or negative, it is the
    /// smallest positive number: a block of weights that are nearly zero.
    pub fn values(&self) -> Vec<f32> {
        let levels = dynamic_levels();
        let value = |(i, code): (usize, &u8)| {
            let scale = levels[usize::from(*code)] * self.absmax[i / BLOCK] + self.offset;
            scale.max(f32::MIN_POSITIVE)
        };
        self.codes.iter().enumerate().map(value).collect()
    }
}

/// `scales` in a byte each. All of them have to be finite.
///
/// ```
/// use prune_quant::double_quantize;
/// let scales: Vec<f32> = (0..600).map(|i| 1.0 + 0.3 * (i as f32 * 0.7).sin()).collect();
/// let small = double_quantize(&scales);
/// assert_eq!((small.codes.len(), small.absmax.len()), (600, 3));
/// for (a, b) in scales.iter().zip(small.values()) {
///     assert!((a - b).abs() < 0.01);
/// }
/// ```
pub fn double_quantize(scales: &[f32]) -> DoubleQuantized {
    let sum: f64 = scales.iter().map(|s| f64::from(*s)).sum();
    let offset = (sum / scales.len().max(1) as f64) as f32;
    let mut codes = Vec::with_capacity(scales.len());
    let mut absmax = Vec::with_capacity(scales.len().div_ceil(BLOCK));
    for block in scales.chunks(BLOCK) {
        let max = block.iter().map(|s| (s - offset).abs()).fold(0.0, f32::max);
        absmax.push(max);
        let code = |s: &f32| nearest(if max == 0.0 { 0.0 } else { (s - offset) / max });
        codes.extend(block.iter().map(code));
    }
    DoubleQuantized { codes, absmax, offset }
}

/// The level nearest to `x`; halfway, the lower one.
fn nearest(x: f32) -> u8 {
    let levels = dynamic_levels();
    let above = levels.partition_point(|l| *l < x).clamp(1, levels.len() - 1);
    let (low, high) = (levels[above - 1], levels[above]);
    let middle = f32::midpoint(low, high);
    (above - usize::from(x <= middle)) as u8
}

/// The 256 levels of bitsandbytes' signed "dynamic" code book, ascending: for each of seven decades
/// from 1e-6 up, twice as many levels as for the one below, evenly spaced, and 0 and 1.
pub fn dynamic_levels() -> &'static [f32; 256] {
    static LEVELS: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let mut levels = vec![0.0f32, 1.0];
        for decade in 0..7i32 {
            let count = 1 << decade;
            let power = 10f64.powi(decade - 6) as f32;
            // `torch.linspace` in f32: from both ends towards the middle, one rounding each.
            let step = (1.0 - 0.1f32) / count as f32;
            let edge = |i: i32| match 2 * i < count {
                true => step.mul_add(i as f32, 0.1),
                false => (-step).mul_add((count - i) as f32, 1.0),
            };
            for i in 0..count {
                let level = power * ((edge(i) + edge(i + 1)) / 2.0);
                levels.extend([level, -level]);
            }
        }
        levels.sort_by(f32::total_cmp);
        std::array::from_fn(|i| levels.get(i).copied().unwrap_or(1.0))
    });
    &LEVELS
}
