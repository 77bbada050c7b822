//! The fused operations of a block: softmax, SwiGLU and the norm of encoders.
//!
//! The exponential is our own: plain additions and multiplications that give the same bits on
//! every platform, and that the compiler can vectorise.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use half::f16;
use rayon::prelude::*;

/// `e^x` for finite or infinite `x`, with a relative error below 2e-7; 0 below −87.
///
/// Cody-Waite reduction to `|r| <= ln 2 / 2`, then a polynomial of degree 6.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let y = x.clamp(-87.0, 88.0);
    let n = (y * LOG2E + ROUND) - ROUND;
    let r = y - n * LN2_HI - n * LN2_LO;
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // n is an integer in -126..=127: build 2^n in the exponent field.
    let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { p * scale }
}

/// See [`crate::LlamaModel::with_rounded_inputs`]; the same tensor without a block.
pub(crate) fn round_inputs(x: &Tensor, block: Option<usize>) -> Result<Tensor> {
    let Some(block) = block else { return Ok(x.clone()) };
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    let mut values = x.flatten_all()?.to_vec1::<f32>()?;
    values.par_chunks_mut(width).for_each(|row| {
        for block in row.chunks_mut(block) {
            let most = block.iter().fold(0f32, |most, x| most.max(x.abs()));
            let (scale, inverse) = (most / 127.0, if most > 0.0 { 127.0 / most } else { 0.0 });
            let stored = f16::from_f32(scale).to_f32();
            block.iter_mut().for_each(|x| *x = (*x * inverse).round() * stored);
        }
    });
    Tensor::from_vec(values, x.shape(), x.device())
}

/// Softmax over the last dimension of scores `(heads, rows, keys)`, multiplied by `scale` first.
struct Softmax {
    sees: Sees,
    scale: f32,
}

/// Which keys a row of scores sees.
enum Sees {
    All,
    /// Query `first + row % queries` sees keys `0..=` itself.
    Before {
        queries: usize,
        first: usize,
    },
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "attention-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let scores = contiguous(storage, layout)?;
        let keys = layout.dims().last().copied().unwrap_or(1);
        let mut out = vec![0f32; scores.len()];
        for (r, (row, scores)) in out.chunks_mut(keys).zip(scores.chunks(keys)).enumerate() {
            let seen = match self.sees {
                Sees::All => keys,
                Sees::Before { queries, first } => (first + r % queries + 1).min(keys),
            };
            let (row, scores) = (&mut row[..seen], &scores[..seen]);
            let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            for (p, s) in row.iter_mut().zip(scores) {
                *p = exp((s - max) * self.scale);
            }
            let inverse = 1.0 / sum(row);
            row.iter_mut().for_each(|p| *p *= inverse);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// The sum in eight fixed lanes: vectorises, and does not depend on the machine.
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// `silu(gate) · up`.
struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(gate, gate_layout)?, contiguous(up, up_layout)?);
        let out = gate.iter().zip(up).map(|(g, u)| g / (1.0 + exp(-g)) * u).collect();
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

/// `(x - mean) / √(variance + eps) · scale + shift` over the last dimension.
///
/// candle's own takes the variance as the mean of the squares less the square of the mean, which
/// cancels where the mean is far from zero.
struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, x_layout)?;
        let (scale, shift) = (contiguous(scale, scale_layout)?, contiguous(shift, shift_layout)?);
        let width = scale.len().max(1);
        let mut out = vec![0f32; x.len()];
        for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
            let mean = sum(x) / width as f32;
            for (o, x) in out.iter_mut().zip(x) {
                *o = x - mean;
            }
            let squares = squared_sum(out);
            let inverse = 1.0 / (squares / width as f32 + self.eps).sqrt();
            for ((o, scale), shift) in out.iter_mut().zip(scale).zip(shift) {
                *o = *o * inverse * scale + shift;
            }
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// The sum of the squares, in the lanes of [`sum`].
fn squared_sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v * v;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => candle_core::bail!("a contiguous tensor is needed, found {layout:?}"),
    }
}

/// See [`Softmax`].
pub(crate) fn softmax(scores: &Tensor, scale: f32) -> Result<Tensor> {
    scores.apply_op1_no_bwd(&Softmax { sees: Sees::All, scale })
}

/// Softmax where no query sees a later key; see [`Sees::Before`].
pub(crate) fn causal_softmax(
    scores: &Tensor,
    queries: usize,
    first: usize,
    scale: f32,
) -> Result<Tensor> {
    scores.apply_op1_no_bwd(&Softmax { sees: Sees::Before { queries, first }, scale })
}

/// See [`LayerNorm`].
pub(crate) fn layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op3_no_bwd(scale, shift, &LayerNorm { eps })
}

/// `silu(gate) · up`, element by element.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2_no_bwd(up, &SwiGlu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use prune_checkpoint::BlockType;

    #[test]
    fn exp_is_accurate_to_single_precision() {
        for i in -8_700..8_800 {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2e-7, "exp({x}): relative error {error:e}");
        }
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn inputs_rounded_in_blocks_of_32_are_those_of_a_gguf_block() -> Result<()> {
        let q8 = BlockType::Q8_0;
        let mut values: Vec<f32> = (0..192).map(|i| ((i * i) as f32).sin() * i as f32).collect();
        values[64..96].fill(0.0);
        let x = Tensor::from_vec(values.clone(), (2, 96), &Device::Cpu)?;
        let rounded = round_inputs(&x, Some(32))?.flatten_all()?.to_vec1::<f32>()?;
        let bytes = q8.encode("inputs", &values).map_err(candle_core::Error::wrap)?;
        assert_eq!(rounded, q8.decode("inputs", &bytes).map_err(candle_core::Error::wrap)?);
        // A row ends with a shorter block, and blocks do not reach into the next row.
        let odd = round_inputs(&x, Some(64))?.flatten_all()?.to_vec1::<f32>()?;
        let exact = round_inputs(&x, None)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(exact, values);
        for (row, rounded) in values.chunks(96).zip(odd.chunks(96)) {
            for (x, y) in row.chunks(64).zip(rounded.chunks(64)) {
                let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= most / 127.0 * 0.51));
            }
        }
        Ok(())
    }

    #[test]
    fn causal_softmax_equals_a_masked_softmax() -> Result<()> {
        let scores = Tensor::new(&[[[1f32, 2.0, 3.0], [0.5, -1.0, 2.0]]], &Device::Cpu)?;
        let got = causal_softmax(&scores, 2, 1, 0.5)?.to_vec3::<f32>()?;
        let e = |x: f64| (x * 0.5).exp();
        let first = e(1.0) / (e(1.0) + e(2.0));
        assert!((f64::from(got[0][0][0]) - first).abs() < 1e-6);
        assert_eq!(got[0][0][2], 0.0);
        let last = e(2.0) / (e(0.5) + e(-1.0) + e(2.0));
        assert!((f64::from(got[0][1][2]) - last).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn softmax_sees_every_key() -> Result<()> {
        let scores = Tensor::new(&[[[1f32, 2.0, 3.0]]], &Device::Cpu)?;
        let got = softmax(&scores, 0.5)?.to_vec3::<f32>()?;
        let all: f64 = [0.5f64, 1.0, 1.5].iter().map(|x| x.exp()).sum();
        for (got, x) in got[0][0].iter().zip([0.5f64, 1.0, 1.5]) {
            assert!((f64::from(*got) - x.exp() / all).abs() < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn a_large_mean_does_not_spoil_the_norm() -> Result<()> {
        let x: Vec<f32> = (0..12).map(|i| 10_000.0 + (i % 4) as f32).collect();
        let x = Tensor::from_vec(x, (1, 12), &Device::Cpu)?;
        let (scale, shift) = (
            Tensor::ones(12, candle_core::DType::F32, &Device::Cpu)?,
            Tensor::zeros(12, candle_core::DType::F32, &Device::Cpu)?,
        );
        let got = layer_norm(&x, &scale, &shift, 1e-12)?.to_vec2::<f32>()?;
        for (i, got) in got[0].iter().enumerate() {
            let want = ((i % 4) as f64 - 1.5) / 1.25f64.sqrt();
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}");
        }
        Ok(())
    }
}
