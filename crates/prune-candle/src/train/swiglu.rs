use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{read, values};
use crate::ops::exp;

const CHUNK: usize = 1 << 13;

/// `silu(gate) · up`.
struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "trainable-swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(gate, gate_layout)?, values(up, up_layout)?);
        let mut out = vec![0f32; gate.len()];
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
        out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (gate, up))| {
            for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                *o = g / (1.0 + exp(-g)) * u;
            }
        });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dg = vec![0f32; gate.elem_count()];
        let mut du = vec![0f32; gate.elem_count()];
        read(gate, |gate| {
            read(up, |up| {
                read(dy, |dy| {
                    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
                    let outputs = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
                    let all = outputs.zip(inputs).zip(dy.par_chunks(CHUNK));
                    all.for_each(|(((dg, du), (gate, up)), dy)| {
                        let values = gate.iter().zip(up).zip(dy);
                        for ((dg, du), ((g, u), d)) in dg.iter_mut().zip(du).zip(values) {
                            let s = 1.0 / (1.0 + exp(-g));
                            *du = d * g * s;
                            *dg = d * u * s * (1.0 + g * (1.0 - s));
                        }
                    });
                })
            })
        })???;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(dg)?), Some(tensor(du)?)))
    }
}

/// See [`SwiGlu`].
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu)
}
