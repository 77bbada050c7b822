use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::config;
use super::metadata::Metadata;
use crate::Result;

/// The `tokenizer_config.json` of the model; `None` when the file has no vocabulary.
pub(super) fn rebuild(metadata: &Metadata) -> Result<Option<Value>> {
    let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")? else {
        return Ok(None);
    };
    let mut fields: BTreeMap<&str, Value> = BTreeMap::new();
    // The class that takes `tokenizer.json` as it is.
    fields.insert("tokenizer_class", "PreTrainedTokenizerFast".into());
    fields.insert("clean_up_tokenization_spaces", false.into());
    fields.insert("model_input_names", json!(["input_ids", "attention_mask"]));
    let architecture = config::architecture(metadata)?;
    if let Some(context) = metadata.integer(&format!("{architecture}.context_length"))? {
        fields.insert("model_max_length", context.into());
    }
    for (field, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ] {
        if let Some(token) = token(metadata, tokens, key)? {
            fields.insert(field, token.into());
        }
    }
    if let Some(template) = metadata.str("tokenizer.chat_template")? {
        fields.insert("chat_template", template.into());
    }
    Ok(Some(Value::Object(fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect())))
}

/// The `generation_config.json` of the model.
pub(super) fn generation(metadata: &Metadata) -> Result<Value> {
    let mut fields: BTreeMap<&str, Value> = BTreeMap::new();
    for (field, key) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(id) = metadata.integer(key)? {
            fields.insert(field, id.into());
        }
    }
    Ok(Value::Object(fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect()))
}

/// The token whose number is in `key`.
pub(super) fn token<'t>(
    metadata: &Metadata,
    tokens: &'t [String],
    key: &str,
) -> Result<Option<&'t str>> {
    let Some(id) = metadata.integer(key)? else {
        return Ok(None);
    };
    usize::try_from(id)
        .ok()
        .and_then(|id| tokens.get(id))
        .map(|t| Some(t.as_str()))
        .ok_or_else(|| metadata.wrong(key, format!("a token below {}", tokens.len())))
}
