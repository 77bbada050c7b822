use std::path::Path;

use prune_core::{Granularity, LayerId, QuantScheme, ZeroPoint};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One less than they are, modulo 2^bits.
    V1,
    /// As they are.
    V2,
}

/// What `quantization_config` says.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) version: Version,
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
        let version = match format {
            "gptq" => Version::V1,
            "gptq_v2" => Version::V2,
            other => {
                return Err(Error::Unsupported {
                    path: path.to_path_buf(),
                    what: format!(
                        "the GPTQ checkpoint format `{}`",
                        other.chars().take(60).collect::<String>()
                    ),
                    instead: "`gptq` and `gptq_v2` are read".to_string(),
                });
            }
        };
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
    version: Version,
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
        "checkpoint_format": match version {
            Version::V1 => "gptq",
            Version::V2 => "gptq_v2",
        },
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
