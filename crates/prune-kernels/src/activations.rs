use crate::simd::{Job, Simd};

/// How a product with a quantised matrix treats its right-hand side.
///
/// ```
/// use prune_kernels::Activations;
/// assert_eq!(Activations::default(), Activations::F32);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activations {
    /// As it is: the weights become f32 one after the other. Exact up to the rounding of f32.
    #[default]
    F32,
    /// Rounded to 8 bits, a scale for each 32 elements (for each 256 with the K formats), and
    /// multiplied as integers: several times fewer instructions, at an error of about 0.4 % of the
    /// largest element of each block.
    Q8,
    /// As [`Activations::Q8`], with scales and sums rounded to half precision where llama.cpp
    /// stores them so: its numbers, for comparison.
    Q8Ggml,
}

/// Thirty-two elements in 8 bits: blocks Q8_0 and Q8_1.
#[derive(Clone)]
pub(crate) struct Q8Block {
    pub(crate) codes: [i8; 32],
    /// The sum of each four codes.
    pub(crate) sums: [i32; 8],
    pub(crate) scale: f32,
    /// Scale times the sum of all codes.
    pub(crate) sum: f32,
}

/// Two hundred and fifty-six elements in 8 bits: block Q8_K.
#[derive(Clone)]
pub(crate) struct Q8SuperBlock {
    pub(crate) codes: [i8; 256],
    /// The sum of each sixteen codes.
    pub(crate) sums: [i16; 16],
    pub(crate) scale: f32,
}

/// Quantises finite elements, a multiple of 32 of them.
pub(crate) struct ToBlocks<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) precision: Activations,
}

impl Job for ToBlocks<'_> {
    type Output = Vec<Q8Block>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<Q8Block> {
        let mut blocks = Vec::with_capacity(self.x.len() / 32);
        for x in self.x.as_chunks::<32>().0 {
            let mut largest = 0.0f32;
            for v in x {
                largest = largest.max(v.abs());
            }
            let scale = largest / 127.0;
            let inverse = inverse(scale);
            let mut codes = [0i8; 32];
            for i in 0..32 {
                codes[i] = (x[i] * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
            }
            let mut sums = [0i32; 8];
            for i in 0..8 {
                for j in 0..4 {
                    sums[i] += i32::from(codes[4 * i + j]);
                }
            }
            let mut sum = scale * sums.iter().sum::<i32>() as f32;
            let mut stored = scale;
            if self.precision == Activations::Q8Ggml {
                sum = half::f16::from_f32(sum).to_f32();
                stored = half::f16::from_f32(scale).to_f32();
            }
            blocks.push(Q8Block { codes, sums, scale: stored, sum });
        }
        blocks
    }
}

/// Quantises finite elements, a multiple of 256 of them.
pub(crate) struct ToSuperBlocks<'a> {
    pub(crate) x: &'a [f32],
}

impl Job for ToSuperBlocks<'_> {
    type Output = Vec<Q8SuperBlock>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<Q8SuperBlock> {
        let mut blocks = Vec::with_capacity(self.x.len() / 256);
        for x in self.x.as_chunks::<256>().0 {
            let (mut low, mut high) = (0.0f32, 0.0f32);
            for v in x {
                low = low.min(*v);
                high = high.max(*v);
            }
            // The element of the largest magnitude gets the code −127, whatever its sign; the
            // first one does where two are equal, but for the sign that changes nothing.
            let largest = if -low > high {
                low
            } else if high > -low {
                high
            } else {
                x.iter().copied().find(|v| v.abs() == high).unwrap_or(0.0)
            };
            let scale = -largest / 127.0;
            let inverse = inverse(scale);
            let mut codes = [0i8; 256];
            for i in 0..256 {
                codes[i] = (x[i] * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
            }
            let mut sums = [0i16; 16];
            for i in 0..16 {
                for j in 0..16 {
                    sums[i] += i16::from(codes[16 * i + j]);
                }
            }
            // The inverse of the inverse, as the reference has it.
            let scale = if inverse == 0.0 { 0.0 } else { 1.0 / inverse };
            blocks.push(Q8SuperBlock { codes, sums, scale });
        }
        blocks
    }
}

/// 1 / scale; 0 for a block of zeros, and for one so small that the inverse overflows.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelPath;
    use crate::simd::Selected;

    fn cosine() -> Vec<f32> {
        (0..256).map(|j| (0.05 * f64::from(j)).cos() as f32).collect()
    }

    #[test]
    fn a_cosine_has_the_codes_of_the_reference() {
        // Computed with llama.cpp's scalar reference.
        for path in KernelPath::available() {
            let selected = Selected::new(path).unwrap();
            let blocks = selected.run(ToSuperBlocks { x: &cosine() });
            assert!((blocks[0].scale + 0.007874016).abs() < 1e-9);
            assert_eq!(blocks[0].codes[..6], [-127, -127, -126, -126, -124, -123]);
            assert_eq!(blocks[0].sums[..4], [-1839, -764, 780, 1848]);
        }
    }

    #[test]
    fn codes_stay_within_127_and_zeros_are_zero() {
        for path in KernelPath::available() {
            let selected = Selected::new(path).unwrap();
            for scale in [0.0, 1e-45, 1e-38, 1.0, 1e38] {
                let x: Vec<f32> = cosine().iter().map(|v| v * scale).collect();
                for block in selected.run(ToBlocks { x: &x, precision: Activations::Q8 }) {
                    assert!(block.codes.iter().all(|c| *c >= -127) && block.scale.is_finite());
                    assert!(scale > 0.0 || block.codes == [0; 32]);
                }
                for block in selected.run(ToSuperBlocks { x: &x }) {
                    assert!(block.codes.iter().all(|c| *c >= -127) && block.scale.is_finite());
                    assert!(scale > 0.0 || block.codes == [0; 256]);
                }
            }
        }
    }
}
