//! Products with weight matrices that compute only the gradients that somebody wants.
//!
//! candle's product computes the gradient of both factors: that of a frozen weight would cost a
//! third of the backward pass and as much memory as the weight. Rows are dealt out in bands of fixed
//! height, so that the bits do not depend on the number of threads.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{read, values};

const BAND: usize = 128;

/// `x Wᵀ` of `x` `(rows, in)` and `W` `(out, in)`.
pub(super) fn forward(x: &[f32], weight: &[f32], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
    let w = MatRef::from_row_major_slice(weight, outputs, inputs);
    let mut out = vec![0.0; rows * outputs];
    out.par_chunks_mut(BAND * outputs).zip(x.par_chunks(BAND * inputs)).for_each(|(out, x)| {
        let rows = x.len() / inputs;
        let x = MatRef::from_row_major_slice(x, rows, inputs);
        let out = MatMut::from_row_major_slice_mut(out, rows, outputs);
        matmul(out, Accum::Replace, x, w.transpose(), 1.0, Par::Seq);
    });
    out
}

/// `dy W`: the gradient by `x`.
pub(super) fn by_input(dy: &[f32], weight: &[f32], inputs: usize) -> Vec<f32> {
    let outputs = weight.len() / inputs;
    let w = MatRef::from_row_major_slice(weight, outputs, inputs);
    let mut dx = vec![0.0; dy.len() / outputs * inputs];
    dx.par_chunks_mut(BAND * inputs).zip(dy.par_chunks(BAND * outputs)).for_each(|(dx, dy)| {
        let rows = dy.len() / outputs;
        let dy = MatRef::from_row_major_slice(dy, rows, outputs);
        let dx = MatMut::from_row_major_slice_mut(dx, rows, inputs);
        matmul(dx, Accum::Replace, dy, w, 1.0, Par::Seq);
    });
    dx
}

/// Adds `dyᵀ x`, the gradient by `W`, to `dw`.
pub(super) fn by_weight(dy: &[f32], x: &[f32], inputs: usize, dw: &mut [f32]) {
    let (rows, outputs) = (x.len() / inputs, dw.len() / inputs);
    let x = MatRef::from_row_major_slice(x, rows, inputs);
    let dy = MatRef::from_row_major_slice(dy, rows, outputs);
    dw.par_chunks_mut(BAND * inputs).enumerate().for_each(|(band, dw)| {
        let count = dw.len() / inputs;
        let dy = dy.subcols(band * BAND, count).transpose();
        let dw = MatMut::from_row_major_slice_mut(dw, count, inputs);
        matmul(dw, Accum::Add, dy, x, 1.0, Par::Seq);
    });
}

struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = weight_layout.shape().dims2()?;
        let out = forward(values(x, x_layout)?, values(weight, weight_layout)?, inputs);
        let rows = out.len() / outputs;
        Ok((CpuStorage::F32(out), Shape::from((rows, outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let inputs = weight.dim(1)?;
        read(dy, |dy| -> Result<_> {
            let dx = x.track_op().then(|| read(weight, |w| by_input(dy, w, inputs))).transpose()?;
            let dw = weight.track_op().then(|| {
                let mut dw = vec![0.0; weight.elem_count()];
                read(x, |x| by_weight(dy, x, inputs, &mut dw)).map(|()| dw)
            });
            let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
            let dw = dw.transpose()?;
            let dw = dw.map(|dw| Tensor::from_vec(dw, weight.shape(), x.device())).transpose()?;
            Ok((dx, dw))
        })?
    }
}

/// `x Wᵀ` of `(rows, in)` and `(out, in)`, both contiguous.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.dims2()?.1 != weight.dims2()?.1 {
        candle_core::bail!("{:?} has not the columns of {:?}", x.shape(), weight.shape());
    }
    x.apply_op2(weight, Product)
}
