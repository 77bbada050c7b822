use std::path::{Path, PathBuf};

use prune_core::{Granularity, LayerId, NumberFormat, QuantScheme, ScaleFormat, ZeroPoint};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::fp4::Fp4;
use crate::{Error, Result};

/// The release since which codes are packed without gaps (pull request 732, 2026-06-22).
const DENSE_SINCE: (u64, u64) = (0, 18);

/// The format of integers of 1 to 8 bits.
const INTEGERS: &str = "pack-quantized";
/// The name of several formats in one model, where each group of layers says its own.
const MIXED: &str = "mixed-precision";

/// How the layers of a group are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Integers,
    Fp4(Fp4),
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Layout::Integers => INTEGERS,
            Layout::Fp4(kind) => kind.name(),
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        match name {
            INTEGERS => Some(Layout::Integers),
            _ => Fp4::ALL.into_iter().find(|kind| kind.name() == name).map(Layout::Fp4),
        }
    }

    fn of_scheme(scheme: &QuantScheme) -> Self {
        Fp4::of_scheme(scheme).map_or(Layout::Integers, Layout::Fp4)
    }
}

/// What `quantization_config` says.
#[derive(Debug)]
pub(super) struct Config {
    path: PathBuf,
    groups: Vec<Group>,
    /// Whether the writer's version packs densely, if it says so.
    pub(super) dense: Option<bool>,
}

#[derive(Debug)]
struct Group {
    targets: Vec<Target>,
    weights: Weights,
}

#[derive(Debug)]
enum Target {
    /// A class of modules: any quantised layer.
    Class,
    Name(String),
    Pattern(Regex),
}

/// How the weights of a group are quantised.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights {
    Integers(Integers),
    Fp4(Fp4),
}

/// Integer codes; the format of the scales is that of their tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Integers {
    pub(super) bits: u8,
    pub(super) symmetric: bool,
    pub(super) granularity: Granularity,
}

impl Integers {
    pub(super) fn scheme(self, scale: ScaleFormat) -> QuantScheme {
        QuantScheme {
            number: NumberFormat::Int { bits: self.bits },
            granularity: self.granularity,
            zero: if self.symmetric { ZeroPoint::Symmetric } else { ZeroPoint::Integer },
            scale,
        }
    }
}

impl Config {
    pub(super) fn parse(path: &Path, json: &Value) -> Result<Self> {
        let unsupported = |what: String, instead: &str| Error::Unsupported {
            path: path.to_path_buf(),
            what,
            instead: instead.to_string(),
        };
        let read = "`pack-quantized`, `nvfp4-pack-quantized` and `mxfp4-pack-quantized` are read";
        let format = json["format"].as_str().unwrap_or("");
        let outer = Layout::of_name(format);
        if outer.is_none() && format != MIXED {
            let what = format!("the compressed-tensors format `{}`", short(format));
            return Err(unsupported(what, read));
        }
        let groups = json["config_groups"]
            .as_object()
            .filter(|groups| !groups.is_empty())
            .ok_or_else(|| field(path, "config_groups", &json["config_groups"], "at least one"))?;
        let mut parsed = Vec::new();
        for (name, group) in groups {
            let layout = match (group["format"].as_str(), outer) {
                (None, Some(outer)) => outer,
                (None, None) => {
                    let at = format!("config_groups.{}.format", short(name));
                    return Err(field(path, &at, &group["format"], "the format of the group"));
                }
                (Some(inner), _) => Layout::of_name(inner).ok_or_else(|| {
                    let what = format!("the format `{}` of {}", short(inner), short(name));
                    unsupported(what, read)
                })?,
            };
            parsed.push(Group::parse(path, name, layout, group)?);
        }
        let version = json["version"].as_str().and_then(release);
        let dense = version.map(|v| v >= DENSE_SINCE);
        Ok(Self { path: path.to_path_buf(), groups: parsed, dense })
    }

    /// How a layer is quantised: by its name, else by a pattern, else by its class.
    pub(super) fn of(&self, layer: &LayerId) -> Result<Weights> {
        let name = layer.as_str();
        let by = |matches: &dyn Fn(&Target) -> bool| {
            self.groups.iter().find(|g| g.targets.iter().any(matches)).map(|g| g.weights)
        };
        by(&|t| matches!(t, Target::Name(n) if n == name))
            .or_else(|| by(&|t| matches!(t, Target::Pattern(p) if p.is_match(name))))
            .or_else(|| by(&|t| matches!(t, Target::Class)))
            .ok_or_else(|| Error::Field {
                path: self.path.clone(),
                field: "config_groups".to_string(),
                found: format!("no target that matches the quantised layer `{name}`"),
                expected: "its name, a pattern or its class".to_string(),
            })
    }
}

impl Group {
    fn parse(path: &Path, name: &str, layout: Layout, json: &Value) -> Result<Self> {
        let at = |inner: &str| format!("config_groups.{}.{inner}", short(name));
        let weights = match layout {
            Layout::Integers => Weights::Integers(Integers::parse(path, &at, &json["weights"])?),
            Layout::Fp4(kind) => {
                check_fp4(path, &at, kind, &json["weights"])?;
                Weights::Fp4(kind)
            }
        };
        let mut targets = Vec::new();
        for target in json["targets"].as_array().into_iter().flatten() {
            let text = target.as_str().unwrap_or("");
            targets.push(match text.strip_prefix("re:") {
                Some(pattern) => Target::Pattern(anchored(pattern).map_err(|e| Error::Field {
                    path: path.to_path_buf(),
                    field: at("targets"),
                    found: format!("`{}`: {e}", short(text)),
                    expected: "a regular expression without look-around".to_string(),
                })?),
                // Classes have no dots and start with a capital; layers do not.
                None if text.starts_with(|c: char| c.is_ascii_uppercase())
                    && !text.contains('.') =>
                {
                    Target::Class
                }
                None => Target::Name(text.to_string()),
            });
        }
        Ok(Self { targets, weights })
    }
}

impl Integers {
    fn parse(path: &Path, at: &dyn Fn(&str) -> String, weights: &Value) -> Result<Self> {
        let kind = weights["type"].as_str().unwrap_or("int");
        if kind != "int" {
            return Err(field(path, &at("weights.type"), &weights["type"], "`int`"));
        }
        let bits = weights["num_bits"]
            .as_u64()
            .filter(|b| (1..=8).contains(b))
            .ok_or_else(|| field(path, &at("weights.num_bits"), &weights["num_bits"], "1 to 8"))?;
        let group_size = weights["group_size"].as_i64().filter(|n| *n >= 1);
        let strategy = match weights["strategy"].as_str() {
            Some(given) => given,
            None if group_size.is_some() => "group",
            None if weights["group_size"].as_i64() == Some(-1) => "channel",
            None => "tensor",
        };
        let granularity = match (strategy, group_size) {
            ("tensor", _) => Granularity::PerTensor,
            ("channel", _) => Granularity::PerChannel,
            ("group", Some(n)) => Granularity::Group(usize::try_from(n).unwrap_or(usize::MAX)),
            ("group", None) => {
                let value = &weights["group_size"];
                return Err(field(path, &at("weights.group_size"), value, "at least 1"));
            }
            _ => {
                let expected = "`tensor`, `channel` or `group`";
                return Err(field(path, &at("weights.strategy"), &weights["strategy"], expected));
            }
        };
        let symmetric = weights["symmetric"].as_bool().unwrap_or(true);
        Ok(Self { bits: bits as u8, symmetric, granularity })
    }
}

/// The formats of FP4 leave nothing to say about weights, but it may be wrong.
fn check_fp4(path: &Path, at: &dyn Fn(&str) -> String, kind: Fp4, weights: &Value) -> Result<()> {
    let symmetric = match &weights["symmetric"] {
        Value::Null => json!(true),
        given => given.clone(),
    };
    for (name, found, expected) in [
        ("type", &weights["type"], json!("float")),
        ("num_bits", &weights["num_bits"], json!(4)),
        ("strategy", &weights["strategy"], json!(kind.strategy())),
        ("group_size", &weights["group_size"], json!(kind.group())),
        ("symmetric", &symmetric, json!(true)),
    ] {
        if *found != expected {
            let expected = format!("`{expected}` in {}", kind.name());
            return Err(field(path, &at(&format!("weights.{name}")), found, &expected));
        }
    }
    Ok(())
}

/// As Python's `re.match`: from the start of the name on.
fn anchored(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})"))
}

/// Major and minor of a version.
fn release(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.').map(|p| p.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

fn field(path: &Path, name: &str, found: &Value, expected: &str) -> Error {
    Error::Field {
        path: path.to_path_buf(),
        field: format!("{name} of quantization_config"),
        found: if found.is_null() { "missing".to_string() } else { short(&found.to_string()) },
        expected: expected.to_string(),
    }
}

/// `quantization_config` for these layers: one group for each scheme.
pub(super) fn write(layers: &[(LayerId, QuantScheme)], dense: &[LayerId]) -> Value {
    let mut schemes: Vec<(QuantScheme, Vec<&LayerId>)> = Vec::new();
    for (layer, scheme) in layers {
        match schemes.iter_mut().find(|(s, _)| s == scheme) {
            Some((_, members)) => members.push(layer),
            None => schemes.push((*scheme, vec![layer])),
        }
    }
    let one = schemes.len() == 1;
    let layouts: Vec<Layout> = schemes.iter().map(|(s, _)| Layout::of_scheme(s)).collect();
    let mixed = layouts.windows(2).any(|pair| pair[0] != pair[1]);
    let format = match layouts.first() {
        _ if mixed => MIXED,
        Some(layout) => layout.name(),
        None => INTEGERS,
    };
    let mut groups = Map::new();
    for (number, ((scheme, members), layout)) in schemes.iter().zip(&layouts).enumerate() {
        let targets: Vec<&str> = match one {
            true => vec!["Linear"],
            false => members.iter().map(|l| l.as_str()).collect(),
        };
        let (strategy, group_size) = match scheme.granularity {
            Granularity::Group(n) => ("group", json!(n)),
            Granularity::PerChannel => ("channel", Value::Null),
            _ => ("tensor", Value::Null),
        };
        let (kind, strategy, scale_dtype) = match layout {
            Layout::Integers => ("int", strategy, Value::Null),
            Layout::Fp4(kind) => ("float", kind.strategy(), json!(kind.scale_dtype_name())),
        };
        groups.insert(
            format!("group_{number}"),
            json!({
                "targets": targets,
                "weights": {
                    "num_bits": scheme.number.bits(),
                    "type": kind,
                    "symmetric": scheme.zero == ZeroPoint::Symmetric,
                    "strategy": strategy,
                    "group_size": group_size,
                    "block_structure": null,
                    "dynamic": false,
                    "actorder": null,
                    "scale_dtype": scale_dtype,
                    "zp_dtype": null,
                    "observer": "minmax",
                    "observer_kwargs": {},
                },
                "input_activations": null,
                "output_activations": null,
                "format": if mixed { json!(layout.name()) } else { Value::Null },
            }),
        );
    }
    let ignore: Vec<&str> = dense.iter().map(LayerId::as_str).collect();
    json!({
        "quant_method": "compressed-tensors",
        "version": format!("{}.{}.0", DENSE_SINCE.0, DENSE_SINCE.1),
        "format": format,
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "sparsity_config": {},
        "transform_config": {},
    })
}
