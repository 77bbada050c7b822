use prune_core::{
    DType, Granularity, LayerId, NumberFormat, QuantScheme, QuantizedMatrix, TensorInfo, ZeroPoint,
    dense_words, encode_f32, pack_dense,
};
use serde_json::Value;

use super::config;
use super::fp4::Fp4;
use crate::quantized::{check_extras, refuse, scale_dtype, words_to_bytes};
use crate::{QuantFormat, Result};

/// compressed-tensors, as vLLM and transformers read it: `pack-quantized` for integers,
/// `nvfp4-pack-quantized` and `mxfp4-pack-quantized` for FP4, and `mixed-precision` where a model
/// has layers of several of them.
///
/// Integers of 1 to 8 bits:
///
/// | tensor | dtype | shape | contents |
/// |---|---|---|---|
/// | `weight_packed` | I32 | `[out, ⌈in · bits / 32⌉]` | codes, dense along the inputs |
/// | `weight_scale` | that of the scheme | `[out, in / group]`, `[out, 1]` or `[1]` | scales |
/// | `weight_zero_point` | I32 | `[⌈out · bits / 32⌉, groups]` | packed along the outputs |
/// | `weight_shape` | I64 | `[2]` | `[out, in]` |
///
/// Codes are packed without gaps, as since release 0.18; for 1, 2, 4 and 8 bits older readers see
/// the same. An order of groups (`weight_g_idx`) is not written: readers have dropped it.
///
/// FP4, with the schemes [`QuantScheme::nvfp4`] and [`QuantScheme::mxfp4`]:
///
/// | tensor | dtype | shape | contents |
/// |---|---|---|---|
/// | `weight_packed` | U8 | `[out, in / 2]` | two codes a byte, the even one in the low nibble |
/// | `weight_scale` | F8_E4M3 (NVFP4) | `[out, in / 16]` | scales |
/// | `weight_scale` | U8 (MXFP4) | `[out, in / 32]` | exponents of scales, plus 127 (E8M0) |
/// | `weight_global_scale` | F32 (NVFP4) | `[1]` | what all scales are divided by: 2688 over the largest magnitude |
///
/// ModelOpt stores the inverse of that last number, and calls it `weight_scale_2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompressedTensors;

pub(super) const NAME: &str = "compressed-tensors";

impl QuantFormat for CompressedTensors {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(
        &self,
        layer: &LayerId,
        rows: usize,
        cols: usize,
        scheme: &QuantScheme,
    ) -> Result<Vec<TensorInfo>> {
        if let Some(kind) = Fp4::of_scheme(scheme) {
            return kind.plan(layer, rows, cols);
        }
        let no = |expected| refuse(NAME, layer, format!("`{scheme}`"), expected);
        let NumberFormat::Int { bits } = scheme.number else {
            return Err(no("integers of 1 to 8 bits, `nvfp4` or `mxfp4`"));
        };
        if scheme.zero == ZeroPoint::Float {
            return Err(no("`sym` or `asym` zero points"));
        }
        let scale = scale_dtype(scheme.scale).ok_or_else(|| no("f16, bf16 or f32 scales"))?;
        let scales = match scheme.granularity {
            Granularity::PerTensor => vec![1],
            Granularity::PerChannel => vec![rows, 1],
            Granularity::Group(n) if cols.is_multiple_of(n) => vec![rows, cols / n],
            Granularity::Group(_) => {
                return Err(no("groups that divide the input channels, without a rest"));
            }
            Granularity::Flat(_) => return Err(no("groups within rows")),
        };
        let words = |n: usize| {
            dense_words(n, u32::from(bits)).ok_or_else(|| no("a matrix that fits in memory"))
        };
        let tensor = |ending: &str, dtype, shape| TensorInfo {
            name: format!("{layer}.{ending}"),
            dtype,
            shape,
        };
        let mut plan = vec![
            tensor("weight_packed", DType::I32, vec![rows, words(cols)?]),
            tensor("weight_scale", scale, scales.clone()),
            tensor("weight_shape", DType::I64, vec![2]),
        ];
        if scheme.zero == ZeroPoint::Integer {
            plan.push(match scales[..] {
                [_, groups] => tensor("weight_zero_point", DType::I32, vec![words(rows)?, groups]),
                // One for the whole tensor is not packed.
                _ => tensor("weight_zero_point", DType::I8, vec![1]),
            });
        }
        Ok(plan)
    }

    fn encode(
        &self,
        layer: &LayerId,
        matrix: &QuantizedMatrix,
    ) -> Result<Vec<(TensorInfo, Vec<u8>)>> {
        let (rows, cols, scheme) = (matrix.rows(), matrix.cols(), matrix.scheme());
        if matrix.group_index().is_some() {
            return Err(refuse(
                NAME,
                layer,
                "groups in the order of activations".to_string(),
                "groups in the order of the columns, which readers expect since 0.19; quantise \
                 with static groups",
            ));
        }
        if let Some(kind) = Fp4::of_scheme(&scheme) {
            return kind.encode(layer, matrix);
        }
        let plan = self.plan(layer, rows, cols, &scheme)?;
        check_extras(NAME, layer, matrix)?;
        let bits = scheme.number.bits();
        let mut packed = Vec::with_capacity(plan[0].nbytes());
        for row in matrix.codes().outer_iter() {
            packed.extend(words_to_bytes(&pack_dense(row.as_slice().unwrap_or_default(), bits)));
        }
        let scales: Vec<f32> = matrix.scales().iter().copied().collect();
        let scales = encode_f32(&plan[1].name, plan[1].dtype, &scales)
            .map_err(|e| refuse(NAME, layer, e.to_string(), "scales that their format holds"))?;
        let shape = [rows as u64, cols as u64].iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut bytes = vec![packed, scales, shape];
        if let Some(zeros) = matrix.zeros() {
            let middle = 1u8 << (bits - 1);
            bytes.push(match scheme.granularity {
                Granularity::PerTensor => {
                    zeros.iter().map(|z| (*z as u8).wrapping_sub(middle)).collect()
                }
                _ => {
                    // Each column of zero points is a bitstream of its own.
                    let columns: Vec<Vec<u32>> = (zeros.columns().into_iter())
                        .map(|c| pack_dense(&c.iter().map(|z| *z as u8).collect::<Vec<_>>(), bits))
                        .collect();
                    let words = plan[3].shape[0];
                    let at = |w: usize| columns.iter().map(move |c| c[w].to_le_bytes());
                    (0..words).flat_map(at).flatten().collect()
                }
            });
        }
        Ok(plan.into_iter().zip(bytes).collect())
    }

    fn config(&self, layers: &[(LayerId, QuantScheme)], dense: &[LayerId]) -> Result<Value> {
        Ok(config::write(layers, dense))
    }
}
