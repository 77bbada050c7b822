use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{read, values};

/// Turns the pairs (i, i + half) of every head by the angles of the row's position.
struct Rotate {
    /// `(tokens, half)`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// Heads of a row.
    width: usize,
}

impl Rotate {
    fn apply(&self, x: &[f32], sign: f32) -> Vec<f32> {
        let tokens = self.cos.len() / self.half;
        let mut out = vec![0f32; x.len()];
        let rows = out.par_chunks_mut(self.width).zip(x.par_chunks(self.width)).enumerate();
        rows.for_each(|(row, (out, x))| {
            let at = row % tokens * self.half;
            let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
            let heads = out.chunks_mut(2 * self.half).zip(x.chunks(2 * self.half));
            for (out, x) in heads {
                let ((a, b), (x, y)) = (out.split_at_mut(self.half), x.split_at(self.half));
                for i in 0..self.half {
                    a[i] = x[i] * cos[i] - sign * y[i] * sin[i];
                    b[i] = y[i] * cos[i] + sign * x[i] * sin[i];
                }
            }
        });
        out
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "trainable-rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(values(x, layout)?, 1.0)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = read(dy, |dy| self.apply(dy, -1.0))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// The rotary embedding of `(sequences · tokens, heads · 2 · half)`, from tables `(tokens, half)`.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = cos.dim(1)?;
    let (cos, sin) = (cos.flatten_all()?.to_vec1()?, sin.flatten_all()?.to_vec1()?);
    x.apply_op1(Rotate { cos, sin, half, width: x.dim(1)? })
}
