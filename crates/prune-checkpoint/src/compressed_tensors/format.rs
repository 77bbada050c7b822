use prune_core::{
    DType, Granularity, LayerId, NumberFormat, QuantScheme, QuantizedMatrix, TensorInfo, ZeroPoint,
    dense_words, encode_f32, pack_dense,
};
use serde_json::Value;

use super::config;
use crate::quantized::{check_extras, refuse, scale_dtype, words_to_bytes};
use crate::{QuantFormat, Result};

/// compressed-tensors' `pack-quantized`, as vLLM and transformers read it.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompressedTensors;

const NAME: &str = "compressed-tensors";

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
        let no = |expected| refuse(NAME, layer, format!("`{scheme}`"), expected);
        let NumberFormat::Int { bits } = scheme.number else {
            return Err(no("integers of 1 to 8 bits"));
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
        let plan = self.plan(layer, rows, cols, &scheme)?;
        check_extras(NAME, layer, matrix)?;
        if matrix.group_index().is_some() {
            return Err(refuse(
                NAME,
                layer,
                "groups in the order of activations".to_string(),
                "groups in the order of the columns, which readers expect since 0.19; quantise \
                 with static groups",
            ));
        }
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
