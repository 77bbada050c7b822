use std::path::Path;

use serde_json::Value;

use super::file::GgufValue;
use crate::{Error, Result};

/// The configuration of a model, with errors that name the field.
pub(super) struct Config<'a> {
    pub(super) path: &'a Path,
    pub(super) json: &'a Value,
}

/// What the tensors and the metadata are made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    pub(super) architecture: &'static str,
    pub(super) heads: u64,
    pub(super) key_value_heads: u64,
    pub(super) head_size: u64,
}

impl Config<'_> {
    pub(super) fn wrong(&self, field: &str, expected: impl Into<String>) -> Error {
        let found = match self.json.get(field) {
            None => "missing".to_string(),
            Some(value) => value.to_string().chars().take(60).collect(),
        };
        Error::Field {
            path: self.path.to_path_buf(),
            field: field.to_string(),
            found,
            expected: expected.into(),
        }
    }

    fn optional(&self, field: &str) -> Result<Option<u64>> {
        match self.json.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .filter(|n| *n > 0 && *n <= u64::from(u32::MAX))
                .map(Some)
                .ok_or_else(|| self.wrong(field, "a whole number from 1 to 4294967295")),
        }
    }

    fn required(&self, field: &str) -> Result<u64> {
        self.optional(field)?.ok_or_else(|| self.wrong(field, "a whole number from 1 on"))
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        match self.json.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .map(Some)
                .ok_or_else(|| self.wrong(field, "a number above 0")),
        }
    }

    pub(super) fn shape(&self) -> Result<Shape> {
        let known =
            [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")];
        let kind = self.json.get("model_type").and_then(Value::as_str).unwrap_or("");
        let architecture = known
            .into_iter()
            .find(|(name, _)| *name == kind)
            .map(|(_, architecture)| architecture)
            .ok_or_else(|| self.wrong("model_type", "`llama`, `mistral`, `qwen2` or `qwen3`"))?;
        let heads = self.required("num_attention_heads")?;
        let key_value_heads = self.optional("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(key_value_heads) {
            let expected = format!("a divisor of num_attention_heads ({heads})");
            return Err(self.wrong("num_key_value_heads", expected));
        }
        let hidden = self.required("hidden_size")?;
        let head_size = match self.optional("head_dim")? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads ({heads})");
                return Err(self.wrong("hidden_size", expected));
            }
        };
        Ok(Shape { architecture, heads, key_value_heads, head_size })
    }

    /// The keys that describe the model, in llama.cpp's terms. `vocabulary` are the rows of the
    /// embedding.
    pub(super) fn metadata(
        &self,
        shape: &Shape,
        vocabulary: usize,
    ) -> Result<Vec<(String, GgufValue)>> {
        let mut out = Vec::new();
        let key = |name: &str| format!("{}.{name}", shape.architecture);
        let mut number = |name: &str, value: u64| {
            out.push((key(name), GgufValue::U32(value as u32)));
        };
        let hidden = self.required("hidden_size")?;
        number("block_count", self.required("num_hidden_layers")?);
        number("context_length", self.required("max_position_embeddings")?);
        number("embedding_length", hidden);
        number("feed_forward_length", self.required("intermediate_size")?);
        number("attention.head_count", shape.heads);
        number("attention.head_count_kv", shape.key_value_heads);
        if shape.head_size * shape.heads != hidden {
            number("attention.key_length", shape.head_size);
            number("attention.value_length", shape.head_size);
        }
        number("rope.dimension_count", shape.head_size);
        number("vocab_size", vocabulary as u64);
        let epsilon = self
            .number("rms_norm_eps")?
            .ok_or_else(|| self.wrong("rms_norm_eps", "a number above 0"))?;
        out.push((key("attention.layer_norm_rms_epsilon"), GgufValue::F32(epsilon as f32)));
        out.push((key("rope.freq_base"), GgufValue::F32(self.rope_theta()? as f32)));
        if let Some(factor) = self.linear_scaling()? {
            out.push((key("rope.scaling.type"), GgufValue::String("linear".to_string())));
            out.push((key("rope.scaling.factor"), GgufValue::F32(factor as f32)));
        }
        Ok(out)
    }

    /// `rope_scaling`, or `rope_parameters` as transformers 5 calls it.
    fn rope(&self) -> Option<&Value> {
        ["rope_parameters", "rope_scaling"]
            .into_iter()
            .filter_map(|field| self.json.get(field))
            .find(|value| value.is_object())
    }

    fn rope_kind(&self) -> Option<&str> {
        let rope = self.rope()?;
        let kind = rope.get("rope_type").or_else(|| rope.get("type"))?;
        kind.as_str().filter(|kind| *kind != "default")
    }

    pub(super) fn rope_theta(&self) -> Result<f64> {
        if let Some(theta) = self.number("rope_theta")? {
            return Ok(theta);
        }
        let inner = self.rope().and_then(|r| r.get("rope_theta")).and_then(Value::as_f64);
        Ok(inner.filter(|t| t.is_finite() && *t > 0.0).unwrap_or(10_000.0))
    }

    fn linear_scaling(&self) -> Result<Option<f64>> {
        match self.rope_kind() {
            Some("linear") => self.rope_number("factor").map(Some),
            None | Some("llama3") => Ok(None),
            Some(_) => Err(self.wrong("rope_scaling", "none, `linear` or `llama3`")),
        }
    }

    pub(super) fn rope_number(&self, field: &str) -> Result<f64> {
        let value = self.rope().and_then(|r| r.get(field)).and_then(Value::as_f64);
        value
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| self.wrong("rope_scaling", format!("a number above 0 in `{field}`")))
    }

    pub(super) fn is_llama3_scaled(&self) -> bool {
        self.rope_kind() == Some("llama3")
    }
}
