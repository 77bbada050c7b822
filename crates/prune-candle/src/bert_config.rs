use serde::Deserialize;
use serde_json::Value;

use crate::config::{check_sizes, config, refuse_quantized};
use crate::{Error, Result};

/// The `model_type`s that [`BertConfig`] accepts.
pub const ENCODER_FAMILIES: [&str; 3] = ["bert", "roberta", "xlm-roberta"];

/// The hyper-parameters of a BERT-like encoder, as `config.json` states them.
///
/// BERT, RoBERTa and XLM-RoBERTa, and the sentence encoders made of them, are one architecture:
/// learned positions, attention in both directions, and a norm after each of the two halves of a
/// block. RoBERTa counts its positions from the padding token's id on.
///
/// ```
/// use prune_candle::{Activation, BertConfig};
/// let json = serde_json::json!({
///     "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536,
///     "num_hidden_layers": 6, "num_attention_heads": 12, "hidden_act": "gelu",
///     "layer_norm_eps": 1e-12, "vocab_size": 30522, "max_position_embeddings": 512,
///     "type_vocab_size": 2,
/// });
/// let config = BertConfig::from_json(&json)?;
/// assert_eq!((config.head_dim(), config.activation), (32, Activation::Gelu));
/// # Ok::<(), prune_candle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Which of [`ENCODER_FAMILIES`].
    pub model_type: String,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward half.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads; divides the width.
    pub num_attention_heads: usize,
    /// Between the two feed-forward layers.
    pub activation: Activation,
    /// Added to the variance in every norm.
    pub layer_norm_eps: f64,
    /// Token ids.
    pub vocab_size: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token type table.
    pub type_vocab_size: usize,
    /// The id that fills up shorter texts; RoBERTa's positions start after it.
    pub pad_token_id: u32,
}

/// The function between the two feed-forward layers of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)` with the exact normal distribution function (`gelu`).
    Gelu,
    /// Its approximation by `tanh` (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)` (`relu`).
    Relu,
}

#[derive(Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
    add_cross_attention: Option<bool>,
}

impl BertConfig {
    /// The configuration that `config.json` states.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`], [`Error::Config`] naming the field, [`Error::ConfigSyntax`].
    pub fn from_json(json: &Value) -> Result<Self> {
        // The family decides first: of another one, other fields may be missing.
        let family = json.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        if !ENCODER_FAMILIES.contains(&family) {
            return Err(Error::UnsupportedModel { found: family.to_string() });
        }
        refuse_quantized(json.get("quantization_config"))?;
        let raw: Raw = serde_json::from_value(json.clone())?;
        check_sizes(&[
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
            ("vocab_size", raw.vocab_size),
            ("max_position_embeddings", raw.max_position_embeddings),
            ("type_vocab_size", raw.type_vocab_size),
        ])?;
        if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            return Err(config(
                "num_attention_heads",
                raw.num_attention_heads,
                format!("a divisor of hidden_size = {}", raw.hidden_size),
            ));
        }
        if !(raw.layer_norm_eps > 0.0 && raw.layer_norm_eps < 1.0) {
            return Err(config("layer_norm_eps", raw.layer_norm_eps, "between 0 and 1"));
        }
        let activation = match raw.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => {
                let known = "`gelu`, `gelu_new`, `gelu_pytorch_tanh` or `relu`";
                return Err(config("hidden_act", other, known));
            }
        };
        if let Some(kind) = raw.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(config("position_embedding_type", kind, "`absolute`"));
        }
        if raw.is_decoder == Some(true) || raw.add_cross_attention == Some(true) {
            return Err(config("is_decoder", "true", "false: decoders of this family are not run"));
        }
        let config = Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            activation,
            layer_norm_eps: raw.layer_norm_eps,
            vocab_size: raw.vocab_size,
            max_position_embeddings: raw.max_position_embeddings,
            type_vocab_size: raw.type_vocab_size,
            // The defaults of the two configuration classes.
            pad_token_id: raw.pad_token_id.unwrap_or(u32::from(raw.model_type != "bert")),
            model_type: raw.model_type,
        };
        if config.max_tokens() == 0 {
            return Err(crate::config::config(
                "max_position_embeddings",
                config.max_position_embeddings,
                format!("more than pad_token_id + 1 = {}", config.first_position()),
            ));
        }
        Ok(config)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The most tokens of a text, special ones included.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position())
    }

    /// The position of the first token.
    pub(crate) fn first_position(&self) -> usize {
        if self.model_type == "bert" { 0 } else { self.pad_token_id as usize + 1 }
    }

    /// The position of every token: RoBERTa gives padding its own, and does not count it.
    pub(crate) fn positions(&self, tokens: &[u32]) -> Vec<usize> {
        let bert = self.model_type == "bert";
        let mut next = self.first_position();
        let mut position = |token: &u32| {
            if !bert && *token == self.pad_token_id {
                return self.pad_token_id as usize;
            }
            next += 1;
            next - 1
        };
        tokens.iter().map(&mut position).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(changes: &[(&str, Value)]) -> Value {
        let mut json = json!({"model_type": "bert", "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "vocab_size": 40, "max_position_embeddings": 24,
            "type_vocab_size": 2});
        for (field, value) in changes {
            json[*field] = value.clone();
        }
        json
    }

    #[test]
    fn unsupported_features_are_refused_by_name() {
        for (field, value, says) in [
            ("model_type", json!("mamba"), "`mamba` is not supported"),
            ("hidden_act", json!("silu"), "hidden_act is silu; expected `gelu`"),
            ("position_embedding_type", json!("relative_key"), "expected `absolute`"),
            ("is_decoder", json!(true), "is_decoder is true"),
            ("num_attention_heads", json!(3), "a divisor of hidden_size = 16"),
            ("layer_norm_eps", json!(0), "layer_norm_eps is 0"),
            ("quantization_config", json!({"bits": 4}), "quantization_config"),
            ("hidden_size", json!(0), "between 1 and 2^28"),
        ] {
            let err = BertConfig::from_json(&with(&[(field, value)])).unwrap_err().to_string();
            assert!(err.contains(says), "{err}");
        }
    }

    #[test]
    fn roberta_counts_positions_from_the_padding_token_on() {
        let bert = BertConfig::from_json(&with(&[])).unwrap();
        assert_eq!((bert.positions(&[5, 0, 6]), bert.max_tokens()), (vec![0, 1, 2], 24));
        let roberta = with(&[("model_type", json!("roberta")), ("pad_token_id", json!(1))]);
        let roberta = BertConfig::from_json(&roberta).unwrap();
        assert_eq!((roberta.positions(&[5, 1, 6]), roberta.max_tokens()), (vec![2, 1, 3], 22));
        let short =
            with(&[("model_type", json!("roberta")), ("max_position_embeddings", json!(2))]);
        assert!(BertConfig::from_json(&short).is_err());
    }
}
