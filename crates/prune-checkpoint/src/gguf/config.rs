use std::collections::BTreeMap;

use prune_core::{DType, TensorInfo};
use serde_json::{Value, json};

use super::metadata::Metadata;
use super::rope::Llama3Scaling;
use crate::Result;

/// The architecture, if it is one whose tensors this crate can name.
pub(super) fn architecture(metadata: &Metadata) -> Result<&'static str> {
    const KEY: &str = "general.architecture";
    let name = metadata.str(KEY)?.ok_or_else(|| metadata.wrong(KEY, "llama, qwen2 or qwen3"))?;
    ["llama", "qwen2", "qwen3"].into_iter().find(|known| *known == name).ok_or_else(|| {
        metadata.unsupported(
            format!("architecture `{}`", name.chars().take(60).collect::<String>()),
            "llama (Llama, Mistral, SmolLM2), qwen2 and qwen3 are",
        )
    })
}

/// How attention is divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) query: u64,
    pub(super) key_value: u64,
    /// Rows of one head.
    pub(super) size: u64,
}

impl Heads {
    pub(super) fn of(metadata: &Metadata, architecture: &str) -> Result<Heads> {
        let key = |name: &str| format!("{architecture}.attention.{name}");
        let head_count = key("head_count");
        let query = metadata.required(&head_count)?;
        let key_value = metadata.integer(&key("head_count_kv"))?.unwrap_or(query);
        let hidden = metadata.required(&format!("{architecture}.embedding_length"))?;
        let size = match metadata.integer(&key("key_length"))? {
            Some(size) => size,
            None => hidden.checked_div(query).unwrap_or(0),
        };
        if query == 0 || key_value == 0 || !query.is_multiple_of(key_value) {
            let expected = format!("a multiple of head_count_kv ({key_value}), both above 0");
            return Err(metadata.wrong(&head_count, expected));
        }
        if metadata.integer(&key("value_length"))?.is_some_and(|v| v != size) {
            return Err(metadata.wrong(&key("value_length"), format!("{size}, as for keys")));
        }
        let rotary = format!("{architecture}.rope.dimension_count");
        if metadata.integer(&rotary)?.is_some_and(|d| d != size) {
            return Err(metadata.unsupported(
                format!("metadata `{rotary}` other than the head size {size}"),
                "only rotary embeddings over whole heads are read",
            ));
        }
        Ok(Heads { query, key_value, size })
    }
}

/// The base of the rotary frequencies.
pub(super) fn rope_theta(metadata: &Metadata, architecture: &str) -> Result<f64> {
    // The default of llama.cpp for files that do not say.
    Ok(metadata.number(&format!("{architecture}.rope.freq_base"))?.unwrap_or(10_000.0))
}

/// The `config.json` of the model.
pub(super) fn rebuild(
    metadata: &Metadata,
    tensors: &[TensorInfo],
    rope: Option<Llama3Scaling>,
) -> Result<Value> {
    let architecture = architecture(metadata)?;
    let key = |name: &str| format!("{architecture}.{name}");
    let heads = Heads::of(metadata, architecture)?;
    let find = |name: &str| tensors.iter().find(|t| t.name == name);
    let has = |end: &str| tensors.iter().any(|t| t.name.ends_with(end));
    let embedding = find("model.embed_tokens.weight").ok_or_else(|| {
        metadata.unsupported(
            "a model without the tensor `token_embd.weight`",
            "it may be an adapter or one part of a split file",
        )
    })?;
    let epsilon = key("attention.layer_norm_rms_epsilon");
    let id = |name: &str| -> Result<Value> {
        Ok(metadata.integer(&format!("tokenizer.ggml.{name}_token_id"))?.into())
    };

    let mut config: BTreeMap<&str, Value> = BTreeMap::new();
    config.insert(
        "architectures",
        json!([match architecture {
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            _ => "LlamaForCausalLM",
        }]),
    );
    config.insert("model_type", architecture.into());
    config.insert("hidden_act", "silu".into());
    config.insert("hidden_size", metadata.required(&key("embedding_length"))?.into());
    config.insert("intermediate_size", metadata.required(&key("feed_forward_length"))?.into());
    config.insert("num_hidden_layers", metadata.required(&key("block_count"))?.into());
    config.insert("num_attention_heads", heads.query.into());
    config.insert("num_key_value_heads", heads.key_value.into());
    config.insert("head_dim", heads.size.into());
    config.insert("max_position_embeddings", metadata.required(&key("context_length"))?.into());
    config.insert(
        "rms_norm_eps",
        metadata.number(&epsilon)?.ok_or_else(|| metadata.wrong(&epsilon, "a number"))?.into(),
    );
    config.insert("rope_theta", rope_theta(metadata, architecture)?.into());
    config.insert("rope_scaling", rope_scaling(metadata, architecture, rope)?);
    config.insert("vocab_size", embedding.shape.first().copied().unwrap_or(0).into());
    config.insert("tie_word_embeddings", find("lm_head.weight").is_none().into());
    config.insert("bos_token_id", id("bos")?);
    config.insert("eos_token_id", id("eos")?);
    config.insert("pad_token_id", id("padding")?);
    config.insert("torch_dtype", torch_dtype(embedding.dtype).into());
    config.insert("use_cache", true.into());
    if architecture != "qwen2" {
        // Qwen2 always has biases on queries, keys and values, and no switch for them.
        config.insert("attention_bias", has("self_attn.q_proj.bias").into());
    }
    if architecture == "llama" {
        config.insert("mlp_bias", has("mlp.gate_proj.bias").into());
    } else {
        config.insert("use_sliding_window", false.into());
    }
    Ok(Value::Object(config.into_iter().map(|(k, v)| (k.to_string(), v)).collect()))
}

fn rope_scaling(
    metadata: &Metadata,
    architecture: &str,
    rope: Option<Llama3Scaling>,
) -> Result<Value> {
    let kind = format!("{architecture}.rope.scaling.type");
    let factor = format!("{architecture}.rope.scaling.factor");
    match (metadata.str(&kind)?.unwrap_or("none"), rope) {
        ("none", None) => Ok(Value::Null),
        ("none", Some(scaling)) => Ok(json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        })),
        ("linear", None) => {
            let factor = metadata
                .number(&factor)?
                .filter(|f| *f > 0.0)
                .ok_or_else(|| metadata.wrong(&factor, "a number above 0"))?;
            Ok(json!({ "rope_type": "linear", "type": "linear", "factor": factor }))
        }
        (_, Some(_)) => Err(metadata.unsupported(
            format!("metadata `{kind}` together with tensor `rope_freqs.weight`"),
            "config.json describes one scaling",
        )),
        (other, None) => Err(metadata.unsupported(
            format!("metadata `{kind}` = `{}`", other.chars().take(60).collect::<String>()),
            "`none`, `linear` and the scaling of Llama 3 are",
        )),
    }
}

/// What PyTorch calls a dtype; the embedding stands for the model, whose norms are often wider.
fn torch_dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F64 => "float64",
        _ => "float32",
    }
}
