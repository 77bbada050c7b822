//! An encoder of two blocks, eight wide, whose weights are a formula, and its tokenizer.

use prune_core::{DType, Error, Result, TensorInfo, TensorSource, encode_f32};
use serde_json::{Value, json};

/// Tensors in memory.
pub(crate) struct Tensors(Vec<(TensorInfo, Vec<u8>)>, Vec<TensorInfo>);

impl TensorSource for Tensors {
    fn tensors(&self) -> &[TensorInfo] {
        &self.1
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
        let found = self.0.iter().find(|(info, _)| info.name == name);
        let (_, bytes) = found.ok_or_else(|| Error::UnknownTensor(name.into()))?;
        buf.copy_from_slice(&bytes[offset..offset + buf.len()]);
        Ok(())
    }
}

pub(crate) fn config(family: &str, activation: &str) -> Value {
    json!({
        "model_type": family, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "hidden_act": activation, "layer_norm_eps": 1e-12,
        "vocab_size": 16, "max_position_embeddings": 10,
        "type_vocab_size": if family == "bert" { 2 } else { 1 },
        "pad_token_id": u32::from(family != "bert"),
    })
}

/// Element `i` of a tensor is `sin(0.7 i + s)`, `s` the sum of the bytes of its name, times 0.4 for
/// matrices and 0.1 for biases and norms, whose scales it is added to 1 for; in f64, rounded to f32.
/// The names in the file have `prefix` before them; `rename` changes them after that.
pub(crate) fn weights(config: &Value, prefix: &str, rename: impl Fn(String) -> String) -> Tensors {
    let size = |field: &str| config[field].as_u64().unwrap() as usize;
    let (hidden, inner) = (size("hidden_size"), size("intermediate_size"));
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_string(), vec![size("vocab_size"), hidden]),
        (
            "embeddings.position_embeddings.weight".to_string(),
            vec![size("max_position_embeddings"), hidden],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_string(),
            vec![size("type_vocab_size"), hidden],
        ),
        ("embeddings.LayerNorm.weight".to_string(), vec![hidden]),
        ("embeddings.LayerNorm.bias".to_string(), vec![hidden]),
    ];
    for block in 0..size("num_hidden_layers") {
        for (role, rows, cols) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ] {
            shapes.push((format!("encoder.layer.{block}.{role}.weight"), vec![rows, cols]));
            shapes.push((format!("encoder.layer.{block}.{role}.bias"), vec![rows]));
        }
        for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
            for part in ["weight", "bias"] {
                shapes.push((format!("encoder.layer.{block}.{norm}.{part}"), vec![hidden]));
            }
        }
    }
    let mut tensors: Vec<(TensorInfo, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let start: u32 = name.bytes().map(u32::from).sum();
            let value = |i: usize| {
                let wave = (0.7 * i as f64 + f64::from(start)).sin();
                (if name.ends_with("LayerNorm.weight") {
                    1.0 + 0.1 * wave
                } else if name.ends_with("bias") {
                    0.1 * wave
                } else {
                    0.4 * wave
                }) as f32
            };
            let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
            let bytes = encode_f32(&name, DType::F32, &values).unwrap();
            let name = rename(format!("{prefix}{name}"));
            (TensorInfo { name, dtype: DType::F32, shape }, bytes)
        })
        .collect();
    tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let infos = tensors.iter().map(|(info, _)| info.clone()).collect();
    Tensors(tensors, infos)
}

/// A WordPiece tokenizer of 16 tokens with the normalisation and special tokens of BERT.
#[allow(dead_code)]
pub(crate) fn tokenizer_json() -> Vec<u8> {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", "on", "mat", "a", "##t",
        ".", "dog", "run", "##ning",
    ];
    let vocab: Value =
        words.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let added: Vec<Value> = words[..4]
        .iter()
        .enumerate()
        .map(|(id, word)| {
            json!({"id": id, "content": word, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let special = |word: &str, kind: u8| json!({"SpecialToken": {"id": word, "type_id": kind}});
    let text = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
    let entry = |word: &str, id: u8| json!({"id": word, "ids": [id], "tokens": [word]});
    let json = json!({
        "version": "1.0",
        // Stored limits must not shorten or fill up a text.
        "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)],
            "pair": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0), text("B", 1),
                special("[SEP]", 1)],
            "special_tokens": {"[CLS]": entry("[CLS]", 2), "[SEP]": entry("[SEP]", 3)},
        },
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    });
    serde_json::to_vec(&json).unwrap()
}
