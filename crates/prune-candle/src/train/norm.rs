use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{read, values};

/// Rows of a part of the gradient of a scale.
const ROWS: usize = 64;

/// `x / √(mean x² + ε) · scale` over the last dimension.
struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    fn inverse(&self, x: &[f32]) -> f32 {
        let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        1.0 / ((squares / x.len() as f64) as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "trainable-rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, scale) = (values(x, x_layout)?, values(scale, scale_layout)?);
        let width = scale.len().max(1);
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(out, x)| {
            let inverse = self.inverse(x);
            for ((o, x), s) in out.iter_mut().zip(x).zip(scale) {
                *o = x * inverse * s;
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = scale.elem_count();
        let mut dx = vec![0f32; x.elem_count()];
        let scales = scale.flatten_all()?.to_vec1::<f32>()?;
        let parts: Vec<Vec<f32>> = read(dy, |dy| {
            read(x, |x| {
                let inputs = x.par_chunks(ROWS * width).zip(dy.par_chunks(ROWS * width));
                let part = |(dx, (x, dy)): (&mut [f32], (&[f32], &[f32]))| {
                    let mut ds = vec![0f32; width];
                    let rows = x.chunks(width).zip(dy.chunks(width));
                    for (dx, (x, dy)) in dx.chunks_mut(width).zip(rows) {
                        let inverse = self.inverse(x);
                        let mut product = 0f64;
                        for (((x, dy), s), ds) in x.iter().zip(dy).zip(&scales).zip(&mut ds) {
                            *ds += dy * x * inverse;
                            product += f64::from(x * dy * s);
                        }
                        let pull = (product / width as f64) as f32 * inverse * inverse * inverse;
                        for (((dx, x), dy), s) in dx.iter_mut().zip(x).zip(dy).zip(&scales) {
                            *dx = inverse * s * dy - pull * x;
                        }
                    }
                    ds
                };
                dx.par_chunks_mut(ROWS * width).zip(inputs).map(part).collect()
            })
        })??;
        let mut ds = vec![0f32; width];
        for part in parts {
            ds.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
        }
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        let ds = match scale.track_op() {
            true => Some(Tensor::from_vec(ds, scale.shape(), x.device())?),
            false => None,
        };
        Ok((Some(dx), ds))
    }
}

/// See [`RmsNorm`].
pub(super) fn rms_norm(x: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    x.apply_op2(scale, RmsNorm { eps: eps as f32 })
}
