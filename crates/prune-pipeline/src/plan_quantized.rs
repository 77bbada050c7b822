use prune_checkpoint::GgufType;
use prune_core::{LayerInfo, QuantScheme, Quantizer, Seed, TensorSource, ZeroPoint};

use crate::fold::{folded_norms, scales_channels};
use crate::plan::Action;
use crate::recipe::Rule;
use crate::store::Store;
use crate::{Calibration, Error, Result};

/// The method that quantises to the types of GGUF as llama.cpp does.
pub(crate) const GGML: &str = "ggml";
/// The method that stores the codes that the source has.
pub(crate) const KEEP: &str = "keep";

/// What is known of a rule that quantises.
pub(crate) struct Work<'a> {
    pub(crate) source: &'a dyn TensorSource,
    pub(crate) number: usize,
    pub(crate) rule: &'a Rule,
    pub(crate) seed: Seed,
    pub(crate) store: &'a Store,
    pub(crate) calibration: Option<&'a Calibration<'a>>,
}

/// Whether the method of a rule quantises.
pub(crate) fn is_quantizing(method: &str) -> bool {
    [GGML, KEEP].contains(&method) || prune_quant::QUANTIZERS.iter().any(|(n, _)| *n == method)
}

/// The quantizer of a planned method.
pub(crate) fn quantizer(method: &str) -> Result<Box<dyn Quantizer>> {
    prune_quant::quantizer(method).ok_or_else(|| {
        let known: Vec<&str> = prune_quant::QUANTIZERS.iter().map(|(n, _)| *n).collect();
        Error::recipe("method", format!("`{method}` is unknown; known are {}", known.join(", ")))
    })
}

impl Work<'_> {
    /// The error about a field of the rule.
    pub(crate) fn refuse(&self, field: &str, reason: impl ToString) -> Error {
        Error::recipe(format!("rule {}, {field}", self.number), reason)
    }

    /// The scheme of a layer whose codes have `bits` bits, or as many as the rule's scheme says.
    pub(crate) fn scheme(&self, bits: Option<u8>) -> Result<QuantScheme> {
        let text = self.rule.scheme.as_deref().unwrap_or_default();
        let text = match bits {
            None => text.to_string(),
            Some(bits) => format!("int{bits} {text}"),
        };
        text.parse().map_err(|e| self.refuse("scheme", e))
    }

    /// The type of a layer in a GGUF file.
    pub(crate) fn kind(&self, bits: Option<u8>) -> Result<GgufType> {
        let text = match (bits, self.rule.scheme.as_deref()) {
            (None, Some(text)) => text,
            (Some(2), None) => "Q2_K",
            (Some(3), None) => "Q3_K",
            (Some(4), None) => "Q4_K",
            (Some(5), None) => "Q5_K",
            (Some(6), None) => "Q6_K",
            (Some(8), None) => "Q8_0",
            (Some(bits), None) => {
                let reason = format!("are {bits}; GGUF has types of 2 to 6 and 8");
                return Err(self.refuse("bits", reason));
            }
            (Some(_), Some(_)) => {
                return Err(self.refuse("scheme", "names the type; leave out `bits`"));
            }
            (None, None) => return Err(self.refuse("scheme", "is missing; such as `q4_k`")),
        };
        text.parse().map_err(|e: prune_checkpoint::Error| self.refuse("scheme", e))
    }

    /// The bits of each layer; `None` where the scheme says them.
    fn bits(&self, layers: &[LayerInfo]) -> Result<Vec<Option<u8>>> {
        let rule = self.rule;
        if !rule.levels.is_empty() {
            return crate::layer_bits::layer_bits(self, layers);
        }
        if rule.allocate.is_some() {
            return Err(
                self.refuse("allocate", "divides bits among `levels`, of which none is given")
            );
        }
        let Some(bits) = rule.bits else { return Ok(vec![None; layers.len()]) };
        if bits.fract() != 0.0 || !(1.0..=8.0).contains(&bits) {
            let reason = format!("are {bits}; without `levels` they are whole, from 2 to 8");
            return Err(self.refuse("bits", reason));
        }
        Ok(vec![Some(bits as u8); layers.len()])
    }
}

/// What is done to the layers of a rule that quantises.
pub(crate) fn plan_quantized(
    work: &Work<'_>,
    layers: Vec<LayerInfo>,
) -> Result<Vec<(String, Action)>> {
    let rule = work.rule;
    let method = rule.method.as_deref().unwrap_or_default();
    for (field, given) in [
        ("sparsity", rule.sparsity.is_some()),
        ("pattern", rule.pattern.is_some()),
        ("scope", rule.scope.is_some()),
    ] {
        if given {
            let reason = format!("is for pruners; `{method}` quantises");
            return Err(work.refuse(field, reason));
        }
    }
    let bits = work.bits(&layers)?;
    let mut norms = Vec::new();
    if scales_channels(method) && !matches!(work.store, Store::Dense) {
        for name in folded_norms(work.source, &layers)? {
            norms.push((name, Action::Fold { method: method.into() }));
        }
    }
    let mut actions = layers
        .iter()
        .zip(bits)
        .map(|(layer, bits)| {
            let name = layer.id.weight_name();
            let [rows, cols] = layer.shape[..] else {
                return Err(Error::plan(name, "is no matrix"));
            };
            let action = match method {
                GGML => {
                    if !matches!(work.store, Store::Gguf) {
                        let reason = "quantises to the types of GGUF; say `format: gguf`";
                        return Err(work.refuse("method", reason));
                    }
                    Action::Encode { kind: work.kind(bits)?.fitting(cols).to_string() }
                }
                KEEP if rule.scheme.is_none() && matches!(work.store, Store::Dense) => Action::Copy,
                KEEP if rule.scheme.is_none() => {
                    let reason = "has no codes to keep; quantise it";
                    return Err(Error::plan(name, reason));
                }
                _ => {
                    let scheme = work.scheme(bits)?;
                    if method != KEEP {
                        quantizer(method)?.supports(&scheme)?;
                    }
                    work.store.check(&layer.id, rows, cols, method, &scheme)?;
                    let keep_zeros = rule.keep_zeros == Some(true);
                    if keep_zeros && scheme.zero == ZeroPoint::Float {
                        let reason = "has no code for zero, which is to be kept; take `sym` or \
                                      `asym`, or say `keep_zeros: false`";
                        return Err(work.refuse("scheme", reason));
                    }
                    let scheme = scheme.to_string();
                    Action::Quantize { method: method.into(), scheme, keep_zeros }
                }
            };
            Ok((name, action))
        })
        .collect::<Result<Vec<_>>>()?;
    actions.extend(norms);
    Ok(actions)
}
