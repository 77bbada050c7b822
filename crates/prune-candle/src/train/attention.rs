//! Causal attention in one operation, whose scores are computed again for the backward pass: memory
//! for one matrix of scores a thread, whatever the batch.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{read, values};
use crate::ops::exp;

#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Heads {
    fn q(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The softmax of the scores of one head, row by row, zero after the diagonal.
    fn weights(&self, q: MatRef<'_, f32>, k: MatRef<'_, f32>, scores: &mut [f32]) {
        let t = self.tokens;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let out = MatMut::from_row_major_slice_mut(scores, t, t);
        matmul(out, Accum::Replace, q, k.transpose(), scale, Par::Seq);
        for (row, scores) in scores.chunks_mut(t).enumerate() {
            let (seen, later) = scores.split_at_mut(row + 1);
            let max = seen.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            let mut lanes = [0f32; 8];
            for chunk in seen.chunks_mut(8) {
                for (s, lane) in chunk.iter_mut().zip(&mut lanes) {
                    *s = exp(*s - max);
                    *lane += *s;
                }
            }
            let inverse = 1.0 / lanes.iter().sum::<f32>();
            seen.iter_mut().for_each(|s| *s *= inverse);
            later.fill(0.0);
        }
    }

    /// The head's columns of the rows of one sequence.
    fn head<'a>(&self, values: &'a [f32], width: usize, head: usize) -> MatRef<'a, f32> {
        let all = MatRef::from_row_major_slice(values, self.tokens, width);
        all.subcols(head * self.head_dim, self.head_dim)
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (t, group) = (self.tokens, self.heads / self.kv_heads);
        let mut out = vec![0f32; q.len()];
        out.par_chunks_mut(t * self.q())
            .zip(q.par_chunks(t * self.q()))
            .zip(k.par_chunks(t * self.kv()).zip(v.par_chunks(t * self.kv())))
            .for_each_init(
                || vec![0f32; t * t],
                |scores, ((out, q), (k, v))| {
                    let mut out = MatMut::from_row_major_slice_mut(out, t, self.q());
                    for head in 0..self.heads {
                        let (q, k) =
                            (self.head(q, self.q(), head), self.head(k, self.kv(), head / group));
                        self.weights(q, k, scores);
                        let p = MatRef::from_row_major_slice(&*scores, t, t);
                        let v = self.head(v, self.kv(), head / group);
                        let out = out.as_mut().subcols_mut(head * self.head_dim, self.head_dim);
                        matmul(out, Accum::Replace, p, v, 1.0, Par::Seq);
                    }
                },
            );
        out
    }

    fn backward(&self, q: &[f32], k: &[f32], v: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let (t, d, group) = (self.tokens, self.head_dim, self.heads / self.kv_heads);
        let scale = 1.0 / (d as f32).sqrt();
        let (mut dq, mut dk, mut dv) =
            (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; v.len()]);
        let (wide, narrow) = (t * self.q(), t * self.kv());
        let outputs = dq.par_chunks_mut(wide).zip(dk.par_chunks_mut(narrow));
        let outputs = outputs.zip(dv.par_chunks_mut(narrow));
        let inputs = q.par_chunks(wide).zip(k.par_chunks(narrow)).zip(v.par_chunks(narrow));
        outputs.zip(inputs).zip(dy.par_chunks(wide)).for_each_init(
            || (vec![0f32; t * t], vec![0f32; t * t]),
            |(p, dp), ((((dq, dk), dv), ((q, k), v)), dy)| {
                let mut dq = MatMut::from_row_major_slice_mut(dq, t, self.q());
                let mut dk = MatMut::from_row_major_slice_mut(dk, t, self.kv());
                let mut dv = MatMut::from_row_major_slice_mut(dv, t, self.kv());
                for head in 0..self.heads {
                    let kv = head / group;
                    let (q, dy) = (self.head(q, self.q(), head), self.head(dy, self.q(), head));
                    let (k, v) = (self.head(k, self.kv(), kv), self.head(v, self.kv(), kv));
                    self.weights(q, k, p);
                    {
                        let p = MatRef::from_row_major_slice(&*p, t, t);
                        let dv = dv.as_mut().subcols_mut(kv * d, d);
                        matmul(dv, Accum::Add, p.transpose(), dy, 1.0, Par::Seq);
                        let dp = MatMut::from_row_major_slice_mut(dp, t, t);
                        matmul(dp, Accum::Replace, dy, v.transpose(), 1.0, Par::Seq);
                    }
                    for (row, (p, dp)) in p.chunks(t).zip(dp.chunks_mut(t)).enumerate() {
                        let seen = row + 1;
                        let mean: f32 =
                            p[..seen].iter().zip(&dp[..seen]).map(|(p, dp)| p * dp).sum();
                        for (dp, p) in dp.iter_mut().zip(p) {
                            *dp = p * (*dp - mean);
                        }
                    }
                    let ds = MatRef::from_row_major_slice(&*dp, t, t);
                    let dq = dq.as_mut().subcols_mut(head * d, d);
                    matmul(dq, Accum::Replace, ds, k, scale, Par::Seq);
                    let dk = dk.as_mut().subcols_mut(kv * d, d);
                    matmul(dk, Accum::Add, ds.transpose(), q, scale, Par::Seq);
                }
            },
        );
        [dq, dk, dv]
    }
}

impl CustomOp3 for Heads {
    fn name(&self) -> &'static str {
        "trainable-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (values(q, q_layout)?, values(k, k_layout)?, values(v, v_layout)?);
        Ok((CpuStorage::F32(self.forward(q, k, v)), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradients =
            read(q, |q| read(k, |k| read(v, |v| read(dy, |dy| self.backward(q, k, v, dy)))))???;
        let [dq, dk, dv] = gradients?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}

/// Attention of `(sequences · tokens, heads · head_dim)`, each token to itself and those before it
/// in its sequence; keys and values have `kv_heads`.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
    q.apply_op3(k, v, heads)
}
