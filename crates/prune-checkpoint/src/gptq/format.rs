use prune_core::{
    DType, Granularity, LayerId, NumberFormat, QuantScheme, QuantizedMatrix, ScaleFormat,
    TensorInfo, ZeroPoint, encode_f32,
};
use serde_json::Value;

use super::config;
use crate::quantized::{check_extras, refuse, words_to_bytes};
use crate::{QuantFormat, Result};

/// GPTQ, in the three forms that its checkpoints take.
///
/// | tensor | dtype | shape | contents |
/// |---|---|---|---|
/// | `qweight` | I32 | `[in · bits / 32, out]` | codes along the inputs |
/// | `qzeros` | I32 | `[groups, out · bits / 32]` | zero points along the outputs |
/// | `scales` | F16 | `[groups, out]` | |
/// | `g_idx` | I32 | `[in]` | the group of each input channel |
///
/// Both dimensions have to be multiples of 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GptqFormat {
    /// v1, as AutoGPTQ and readers before v2 expect it: zero points less one, modulo 2^bits.
    ///
    /// A zero point of 0 has no place: AutoGPTQ lets it run into the fields above, some readers take
    /// what wraps to be 2^bits. Matrices that have one are refused; symmetric ones never do. Holds
    /// 2, 3, 4 and 8 bits: readers of other widths take zero points as they are.
    V1,
    /// v2, as GPTQModel and vLLM read it: zero points as they are.
    ///
    /// Codes of 2, 3, 4 and 8 bits are dense, as in [`pack_dense`](prune_core::pack_dense). For 5, 6
    /// and 7 bits GPTQModel knows only bit planes ([`pack_planar`](prune_core::pack_planar)) and the
    /// checkpoint format `gptq_p`, as which models with such layers are marked. There 3 bits are
    /// planar, too: models with both take [`GptqFormat::Planar`].
    #[default]
    V2,
    /// GPTQModel's checkpoint format `gptq_p`: zero points as they are, codes in bit planes, as
    /// [`pack_planar`](prune_core::pack_planar) lays them. For 2, 4 and 8 bits the words are those
    /// of v2.
    ///
    /// From GPTQModel 7.7.0 (`utils/planar_packing.py`).
    Planar,
}

impl QuantFormat for GptqFormat {
    fn name(&self) -> &'static str {
        match self {
            GptqFormat::V1 => "gptq-v1",
            GptqFormat::V2 => "gptq",
            GptqFormat::Planar => "gptq-p",
        }
    }

    fn plan(
        &self,
        layer: &LayerId,
        rows: usize,
        cols: usize,
        scheme: &QuantScheme,
    ) -> Result<Vec<TensorInfo>> {
        let found = || format!("`{scheme}` of {rows} x {cols}");
        let no = |expected| refuse(self.name(), layer, found(), expected);
        let NumberFormat::Int { bits: bits @ 2..=8 } = scheme.number else {
            return Err(no("integers of 2 to 8 bits"));
        };
        if *self == GptqFormat::V1 && self.is_planar(bits.into()) {
            return Err(no("2, 3, 4 or 8 bits; for others take `gptq` or `gptq-p`"));
        }
        if scheme.zero == ZeroPoint::Float {
            return Err(no("`sym` or `asym` zero points"));
        }
        if scheme.scale != ScaleFormat::F16 {
            return Err(no("f16 scales"));
        }
        let groups = match scheme.granularity {
            Granularity::PerChannel => 1,
            Granularity::Group(n) => cols.div_ceil(n),
            _ => return Err(no("`channel` or `gN`")),
        };
        if !rows.is_multiple_of(32) || !cols.is_multiple_of(32) {
            return Err(no("rows and columns that are multiples of 32"));
        }
        let words = |n: usize| n / 32 * usize::from(bits);
        let tensor = |ending: &str, dtype, shape| TensorInfo {
            name: format!("{layer}.{ending}"),
            dtype,
            shape,
        };
        Ok(vec![
            tensor("qweight", DType::I32, vec![words(cols), rows]),
            tensor("qzeros", DType::I32, vec![groups, words(rows)]),
            tensor("scales", DType::F16, vec![groups, rows]),
            tensor("g_idx", DType::I32, vec![cols]),
        ])
    }

    fn encode(
        &self,
        layer: &LayerId,
        matrix: &QuantizedMatrix,
    ) -> Result<Vec<(TensorInfo, Vec<u8>)>> {
        let (rows, cols, scheme) = (matrix.rows(), matrix.cols(), matrix.scheme());
        let plan = self.plan(layer, rows, cols, &scheme)?;
        check_extras(self.name(), layer, matrix)?;
        let bits = scheme.number.bits();
        let groups = plan[1].shape[0];

        let mut packed = vec![0u32; plan[0].numel()];
        for (r, row) in matrix.codes().outer_iter().enumerate() {
            let words = self.pack(row.as_slice().unwrap_or_default(), bits);
            for (k, word) in words.into_iter().enumerate() {
                packed[k * rows + r] = word;
            }
        }
        let middle = 1u8 << (bits - 1);
        let less = self.zero_offset(bits);
        if less > 0 && matrix.zeros().is_some_and(|z| z.iter().any(|z| *z == 0.0)) {
            let found = "a zero point of 0".to_string();
            let expected = "zero points of at least 1, which v1 stores less one; write v2, `gptq`";
            return Err(refuse(self.name(), layer, found, expected));
        }
        let mut zeros = Vec::with_capacity(plan[1].numel());
        let mut scales = Vec::with_capacity(groups * rows);
        for g in 0..groups {
            scales.extend((0..rows).map(|r| matrix.scales()[[r, g]]));
            let of_group: Vec<u8> = match matrix.zeros() {
                Some(zeros) => (0..rows).map(|r| zeros[[r, g]] as u8 - less).collect(),
                None => vec![middle - less; rows],
            };
            zeros.extend(self.pack(&of_group, bits));
        }
        let scales = encode_f32(&plan[2].name, DType::F16, &scales)
            .map_err(|e| refuse(self.name(), layer, e.to_string(), "scales within f16"))?;
        let size = match scheme.granularity {
            Granularity::Group(n) => n,
            _ => cols.max(1),
        };
        let index: Vec<u32> = match matrix.group_index() {
            Some(index) => index.to_vec(),
            None => (0..cols).map(|c| (c / size) as u32).collect(),
        };
        let bytes =
            [words_to_bytes(&packed), words_to_bytes(&zeros), scales, words_to_bytes(&index)];
        Ok(plan.into_iter().zip(bytes).collect())
    }

    fn config(&self, layers: &[(LayerId, QuantScheme)], dense: &[LayerId]) -> Result<Value> {
        config::write(*self, layers, dense)
    }

    fn files(&self, layers: &[(LayerId, QuantScheme)]) -> Result<Vec<(&'static str, Value)>> {
        Ok(vec![("quantize_config.json", config::write(*self, layers, &[])?)])
    }
}
