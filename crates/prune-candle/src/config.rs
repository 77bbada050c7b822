use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// The `model_type`s that [`LlamaConfig`] accepts.
pub const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// The hyper-parameters of a Llama-family model, as `config.json` states them.
///
/// Llama 2 and 3, SmolLM2, Mistral, Qwen2 and Qwen3 are one architecture with options: grouped
/// key/value heads, biases on q, k and v, normalised q and k, scaled rotary frequencies, a tied
/// output matrix. What a field asks for and this crate cannot do is refused by name.
///
/// ```
/// use prune_candle::LlamaConfig;
/// let json = serde_json::json!({
///     "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
///     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
///     "rms_norm_eps": 1e-5, "vocab_size": 100, "tie_word_embeddings": true,
/// });
/// let config = LlamaConfig::from_json(&json)?;
/// assert_eq!((config.head_dim, config.rope_theta), (16, 10000.0));
/// # Ok::<(), prune_candle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Which of [`FAMILIES`].
    pub model_type: String,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width of the gated layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are scaled.
    pub rope_scaling: RopeScaling,
    /// Token ids.
    pub vocab_size: usize,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether the three MLP layers have a bias.
    pub mlp_bias: bool,
    /// Whether q and k are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// Longest sequence for which full attention equals the model's sliding window.
    pub sliding_window: Option<usize>,
}

/// How the rotary frequencies are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, smooth in between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_position_embeddings: f64,
    },
}

#[derive(Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// transformers 5 keeps theta and scaling together here.
    rope_parameters: Option<Value>,
    vocab_size: usize,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<Value>,
}

impl LlamaConfig {
    /// The configuration that `config.json` states.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`], [`Error::Config`] naming the field, [`Error::ConfigSyntax`].
    pub fn from_json(json: &Value) -> Result<Self> {
        // The family decides first: of another one, other fields may be missing.
        let family = json.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        if !FAMILIES.contains(&family) {
            return Err(Error::UnsupportedModel { found: family.to_string() });
        }
        let raw: Raw = serde_json::from_value(json.clone())?;
        refuse_unsupported(&raw)?;
        let qwen2 = raw.model_type == "qwen2";
        let heads = raw.num_attention_heads;
        let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
        check_sizes(&[
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("vocab_size", raw.vocab_size),
        ])?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(config(
                "num_key_value_heads",
                kv_heads,
                format!("a divisor of num_attention_heads = {heads}"),
            ));
        }
        let head_dim = match raw.head_dim {
            Some(d) => d,
            None if raw.hidden_size.is_multiple_of(heads) => raw.hidden_size / heads,
            None => {
                return Err(config(
                    "num_attention_heads",
                    heads,
                    format!("a divisor of hidden_size = {}", raw.hidden_size),
                ));
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 16 {
            return Err(config("head_dim", head_dim, "an even number up to 65536"));
        }
        if !(raw.rms_norm_eps > 0.0 && raw.rms_norm_eps < 1.0) {
            return Err(config("rms_norm_eps", raw.rms_norm_eps, "between 0 and 1"));
        }
        let rope = raw.rope_parameters.as_ref();
        let rope_theta = raw
            .rope_theta
            .or_else(|| rope.and_then(|r| r.get("rope_theta")).and_then(Value::as_f64))
            .unwrap_or(10_000.0);
        if !(rope_theta.is_finite() && rope_theta > 1.0) {
            return Err(config("rope_theta", rope_theta, "above 1"));
        }
        // Qwen2 and Qwen3 carry a `sliding_window` that counts only with `use_sliding_window`.
        let windowed = raw.use_sliding_window.unwrap_or(raw.model_type == "mistral");
        Ok(Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta,
            rope_scaling: rope_scaling(raw.rope_scaling.as_ref().or(rope))?,
            vocab_size: raw.vocab_size,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: raw.attention_bias.unwrap_or(qwen2),
            output_bias: raw.attention_bias.unwrap_or(false) && !qwen2,
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            qk_norm: raw.model_type == "qwen3",
            sliding_window: raw.sliding_window.filter(|_| windowed),
            model_type: raw.model_type,
        })
    }
}

/// An error naming the first size that is 0, or so large that products of sizes could overflow.
pub(crate) fn check_sizes(sizes: &[(&'static str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 28) {
        None => Ok(()),
        Some((field, size)) => Err(config(field, size, "between 1 and 2^28")),
    }
}

pub(crate) fn refuse_quantized(quantization_config: Option<&Value>) -> Result<()> {
    match quantization_config {
        None => Ok(()),
        Some(q) => Err(config("quantization_config", q, "nothing: decode the checkpoint first")),
    }
}

fn refuse_unsupported(raw: &Raw) -> Result<()> {
    if let Some(act) = raw.hidden_act.as_deref()
        && act != "silu"
        && act != "swish"
    {
        return Err(config("hidden_act", act, "`silu`"));
    }
    refuse_quantized(raw.quantization_config.as_ref())?;
    if let Some(p) = raw.partial_rotary_factor
        && p != 1.0
    {
        return Err(config("partial_rotary_factor", p, "1"));
    }
    Ok(())
}

fn rope_scaling(json: Option<&Value>) -> Result<RopeScaling> {
    let Some(json) = json.filter(|j| !j.is_null()) else { return Ok(RopeScaling::None) };
    let kind = json.get("rope_type").or_else(|| json.get("type")).and_then(Value::as_str);
    let number = |field: &'static str| {
        json.get(field)
            .and_then(Value::as_f64)
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| config("rope_scaling", json, format!("a positive `{field}`")))
    };
    match kind {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")?,
        }),
        Some(other) => {
            Err(config("rope_scaling.rope_type", other, "`default`, `linear` or `llama3`"))
        }
    }
}

pub(crate) fn config(
    field: &'static str,
    found: impl std::fmt::Display,
    expected: impl Into<String>,
) -> Error {
    Error::Config { field, found: found.to_string(), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
            "vocab_size": 100})
    }

    fn with(field: &str, value: Value) -> Value {
        let mut json = base();
        json[field] = value;
        json
    }

    #[test]
    fn unsupported_features_are_refused_by_name() {
        for (field, value, says) in [
            ("model_type", json!("mamba"), "`mamba` is not supported; this crate runs llama"),
            ("hidden_act", json!("gelu"), "hidden_act is gelu; expected `silu`"),
            ("rope_scaling", json!({"rope_type": "yarn"}), "rope_scaling.rope_type is yarn"),
            ("rope_scaling", json!({"rope_type": "linear"}), "a positive `factor`"),
            ("quantization_config", json!({"bits": 4}), "quantization_config"),
            ("num_key_value_heads", json!(3), "a divisor of num_attention_heads = 4"),
            ("num_attention_heads", json!(5), "a divisor of hidden_size = 64"),
            ("num_attention_heads", json!(0), "between 1 and 2^28"),
            ("hidden_size", json!(1u64 << 60), "between 1 and 2^28"),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5"),
            ("hidden_size", json!("big"), "config.json: invalid type"),
        ] {
            let err = LlamaConfig::from_json(&with(field, value)).unwrap_err().to_string();
            assert!(err.contains(says), "{err}");
        }
    }

    #[test]
    fn families_differ_in_their_options() {
        let qwen2 = LlamaConfig::from_json(&with("model_type", json!("qwen2"))).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
        let qwen3 = LlamaConfig::from_json(&with("model_type", json!("qwen3"))).unwrap();
        assert!(qwen3.qk_norm && !qwen3.qkv_bias);
        let mut mistral = with("model_type", json!("mistral"));
        mistral["sliding_window"] = json!(4096);
        assert_eq!(LlamaConfig::from_json(&mistral).unwrap().sliding_window, Some(4096));
        let new_style = with("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5}));
        assert_eq!(LlamaConfig::from_json(&new_style).unwrap().rope_theta, 5e5);
    }
}
