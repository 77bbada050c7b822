use prune_core::{
    DType, Granularity, LayerId, NumberFormat, QuantScheme, QuantizedMatrix, ScaleFormat,
    TensorInfo, ZeroPoint, encode_f32, pack_awq,
};
use serde_json::{Value, json};

use crate::quantized::{check_extras, refuse, words_to_bytes};
use crate::{Error, QuantFormat, Result};

/// AWQ `gemm`, as AutoAWQ, transformers and vLLM read it.
///
/// | tensor | dtype | shape | contents |
/// |---|---|---|---|
/// | `qweight` | I32 | `[in, out / 8]` | codes along the outputs, in the order 0 2 4 6 1 3 5 7 |
/// | `qzeros` | I32 | `[in / group, out / 8]` | zero points in the same order |
/// | `scales` | F16 | `[in / group, out]` | |
///
/// Four bits, zero points, one group size for all layers. Symmetric matrices get the zero point 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AwqFormat;

const NAME: &str = "awq";

impl QuantFormat for AwqFormat {
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
        let no = |expected| refuse(NAME, layer, format!("`{scheme}` of {rows} x {cols}"), expected);
        if scheme.number != (NumberFormat::Int { bits: 4 }) || scheme.zero == ZeroPoint::Float {
            return Err(no("`int4` with `sym` or `asym` zero points"));
        }
        if scheme.scale != ScaleFormat::F16 {
            return Err(no("f16 scales"));
        }
        let groups = match scheme.granularity {
            Granularity::PerChannel => 1,
            Granularity::Group(n) if cols.is_multiple_of(n) => cols / n,
            _ => return Err(no("groups that divide the input channels")),
        };
        if !rows.is_multiple_of(8) {
            return Err(no("rows that are a multiple of 8"));
        }
        let tensor = |ending: &str, dtype, shape| TensorInfo {
            name: format!("{layer}.{ending}"),
            dtype,
            shape,
        };
        Ok(vec![
            tensor("qweight", DType::I32, vec![cols, rows / 8]),
            tensor("qzeros", DType::I32, vec![groups, rows / 8]),
            tensor("scales", DType::F16, vec![groups, rows]),
        ])
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
                "groups in the order of the columns; quantise with static groups",
            ));
        }
        let mut words = Vec::with_capacity(plan[0].numel());
        let mut column = vec![0u8; rows];
        for codes in matrix.codes().columns() {
            column.iter_mut().zip(codes).for_each(|(to, from)| *to = *from);
            words.extend(pack_awq(&column));
        }
        let (mut zeros, mut scales) = (Vec::new(), Vec::new());
        for g in 0..plan[1].shape[0] {
            scales.extend((0..rows).map(|r| matrix.scales()[[r, g]]));
            let of_group: Vec<u8> = match matrix.zeros() {
                Some(zeros) => (0..rows).map(|r| zeros[[r, g]] as u8).collect(),
                None => vec![8; rows],
            };
            zeros.extend(pack_awq(&of_group));
        }
        let scales = encode_f32(&plan[2].name, DType::F16, &scales)
            .map_err(|e| refuse(NAME, layer, e.to_string(), "scales within f16"))?;
        let bytes = [words_to_bytes(&words), words_to_bytes(&zeros), scales];
        Ok(plan.into_iter().zip(bytes).collect())
    }

    fn config(&self, layers: &[(LayerId, QuantScheme)], dense: &[LayerId]) -> Result<Value> {
        let refuse = |what: String, reason: &str| Error::Plan { what, reason: reason.to_string() };
        let (_, first) =
            layers.first().ok_or_else(|| refuse("awq".to_string(), "no layer is quantised"))?;
        if let Some((layer, _)) = layers.iter().find(|(_, s)| s.granularity != first.granularity) {
            return Err(refuse(layer.weight_name(), "AWQ has one group size for all layers"));
        }
        let group_size = match first.granularity {
            Granularity::Group(n) => i64::try_from(n).unwrap_or(i64::MAX),
            _ => -1,
        };
        // Readers skip a layer whose name contains one of these.
        let rest: Vec<&str> =
            dense.iter().map(LayerId::as_str).filter(|l| *l != "lm_head").collect();
        Ok(json!({
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": group_size,
            "zero_point": true,
            "modules_to_not_convert": if rest.is_empty() { Value::Null } else { json!(rest) },
        }))
    }

    fn files(&self, layers: &[(LayerId, QuantScheme)]) -> Result<Vec<(&'static str, Value)>> {
        let config = self.config(layers, &[])?;
        Ok(vec![(
            "quant_config.json",
            json!({
                "zero_point": true,
                "q_group_size": config["group_size"],
                "w_bit": 4,
                "version": "GEMM",
            }),
        )])
    }
}
