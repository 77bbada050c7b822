use std::path::Path;

use prune_core::{
    Granularity, LayerId, QuantScheme, ZeroPoint, pack_dense, pack_planar, unpack_dense,
    unpack_planar,
};
use serde_json::{Map, Value, json};

use super::format::GptqFormat;
use crate::{Error, Result};

/// Widths that GPTQModel stores in bit planes, with zero points as they are, whatever the version.
const ONLY_PLANAR: [u32; 3] = [5, 6, 7];

impl GptqFormat {
    const ALL: [Self; 3] = [Self::V1, Self::V2, Self::Planar];

    /// What a checkpoint calls it.
    fn checkpoint_format(self) -> &'static str {
        match self {
            GptqFormat::V1 => "gptq",
            GptqFormat::V2 => "gptq_v2",
            GptqFormat::Planar => "gptq_p",
        }
    }

    /// Whether codes of this width lie in bit planes. Those of 1, 2, 4 and 8 bits are the same
    /// either way.
    pub(super) fn is_planar(self, bits: u32) -> bool {
        self == GptqFormat::Planar || ONLY_PLANAR.contains(&bits)
    }

    /// What a zero point is more than stored.
    pub(super) fn zero_offset(self, bits: u32) -> u8 {
        u8::from(self == GptqFormat::V1 && !self.is_planar(bits))
    }

    /// `codes` in words.
    pub(super) fn pack(self, codes: &[u8], bits: u32) -> Vec<u32> {
        match self.is_planar(bits) {
            true => pack_planar(codes, bits),
            false => pack_dense(codes, bits),
        }
    }

    /// The first `count` codes in words made by [`GptqFormat::pack`].
    pub(super) fn unpack(
        self,
        words: &[u32],
        bits: u32,
        count: usize,
    ) -> prune_core::Result<Vec<u8>> {
        match self.is_planar(bits) {
            true => unpack_planar(words, bits, count),
            false => unpack_dense(words, bits, count),
        }
    }

    /// The version that a file with codes of these widths says it is.
    fn of_file(self, bits: &[u32]) -> Result<Self> {
        if self != GptqFormat::V2 || !bits.iter().any(|b| ONLY_PLANAR.contains(b)) {
            return Ok(self);
        }
        // It would make codes of three bits planar, too, which have been packed without.
        match bits.contains(&3) {
            false => Ok(GptqFormat::Planar),
            true => Err(Error::Plan {
                what: "gptq".to_string(),
                reason: "layers of 5, 6 or 7 bits, which lie in bit planes, beside layers of 3 \
                         bits, which do not, have no name; take the format `gptq-p`"
                    .to_string(),
            }),
        }
    }
}

/// What `quantization_config` says.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) version: GptqFormat,
    pub(super) bits: u32,
    /// `None` for whole rows.
    pub(super) group: Option<usize>,
}

impl Config {
    pub(super) fn parse(path: &Path, json: &Value) -> Result<Self> {
        let wrong = |field: &str, expected: &str| Error::Field {
            path: path.to_path_buf(),
            field: format!("{field} of quantization_config"),
            found: match &json[field] {
                Value::Null => "missing".to_string(),
                value => value.to_string().chars().take(60).collect(),
            },
            expected: expected.to_string(),
        };
        let format = ["checkpoint_format", "format"]
            .iter()
            .find_map(|field| json[*field].as_str())
            .unwrap_or("gptq");
        let version = GptqFormat::ALL.into_iter().find(|v| v.checkpoint_format() == format);
        let version = version.ok_or_else(|| Error::Unsupported {
            path: path.to_path_buf(),
            what: format!(
                "the GPTQ checkpoint format `{}`",
                format.chars().take(60).collect::<String>()
            ),
            instead: "`gptq`, `gptq_v2` and `gptq_p` are read".to_string(),
        })?;
        let bits = json["bits"]
            .as_u64()
            .filter(|b| (2..=8).contains(b))
            .ok_or_else(|| wrong("bits", "2 to 8"))?;
        let group = match json["group_size"].as_i64() {
            Some(-1) => None,
            Some(n) if n > 0 => Some(usize::try_from(n).unwrap_or(usize::MAX)),
            None if json["group_size"].is_null() => Some(128),
            _ => return Err(wrong("group_size", "-1 or at least 1")),
        };
        Ok(Self { version, bits: bits as u32, group })
    }
}

/// Bits and group size of a scheme; −1 for whole rows.
fn numbers(scheme: &QuantScheme) -> (u32, i64) {
    let group = match scheme.granularity {
        Granularity::Group(n) => i64::try_from(n).unwrap_or(i64::MAX),
        _ => -1,
    };
    (scheme.number.bits(), group)
}

/// `quantization_config` for these layers. The most common scheme stands for all; layers with
/// another one are listed under `dynamic`, as GPTQModel has it.
pub(super) fn write(
    version: GptqFormat,
    layers: &[(LayerId, QuantScheme)],
    dense: &[LayerId],
) -> Result<Value> {
    let mut counts: Vec<(QuantScheme, usize)> = Vec::new();
    for (_, scheme) in layers {
        match counts.iter_mut().find(|(s, _)| s == scheme) {
            Some((_, n)) => *n += 1,
            None => counts.push((*scheme, 1)),
        }
    }
    // Of equally common ones the first.
    let main = counts.iter().rev().max_by_key(|(_, n)| *n).map(|(s, _)| *s).ok_or_else(|| {
        Error::Plan { what: "gptq".to_string(), reason: "no layer is quantised".to_string() }
    })?;
    let widths: Vec<u32> = counts.iter().map(|(s, _)| s.number.bits()).collect();
    let version = version.of_file(&widths)?;
    let symmetric = |s: &QuantScheme| s.zero == ZeroPoint::Symmetric;
    let (bits, group_size) = numbers(&main);
    let mut dynamic = Map::new();
    for (layer, scheme) in layers.iter().filter(|(_, s)| *s != main) {
        let (bits, group_size) = numbers(scheme);
        dynamic.insert(
            format!("+:^{}$", regex::escape(layer.as_str())),
            json!({ "bits": bits, "group_size": group_size, "sym": symmetric(scheme) }),
        );
    }
    for layer in dense.iter().filter(|l| l.as_str() != "lm_head") {
        dynamic.insert(format!("-:^{}$", regex::escape(layer.as_str())), json!({}));
    }
    let mut config = json!({
        "quant_method": "gptq",
        "checkpoint_format": version.checkpoint_format(),
        "bits": bits,
        "group_size": group_size,
        // Whether or not columns were reordered, `g_idx` says it; readers that trust this field
        // more than the tensor then look at the tensor.
        "desc_act": true,
        "static_groups": false,
        "sym": symmetric(&main),
        "lm_head": false,
        "true_sequential": true,
        "damp_percent": 0.01,
        "pack_dtype": "int32",
        "model_name_or_path": null,
        "model_file_base_name": "model",
        "meta": { "quantizer": [format!("prune:{}", env!("CARGO_PKG_VERSION"))] },
    });
    if let (Some(fields), false) = (config.as_object_mut(), dynamic.is_empty()) {
        fields.insert("dynamic".to_string(), Value::Object(dynamic));
    }
    Ok(config)
}
