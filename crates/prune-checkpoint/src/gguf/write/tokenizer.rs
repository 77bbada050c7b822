use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::super::tokenizer::{LLAMA3, QWEN2, TEKKEN};
use super::file::GgufValue;
use crate::{Error, Result};

// `tokenizer.ggml.token_type`
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What a model directory says about its tokenizer.
pub(super) struct Sources<'a> {
    pub(super) path: &'a Path,
    pub(super) tokenizer: &'a Value,
    /// `tokenizer_config.json`; null where there is none.
    pub(super) settings: &'a Value,
    pub(super) config: &'a Value,
    /// A template in a file of its own.
    pub(super) chat_template: Option<String>,
    /// Rows of the embedding.
    pub(super) vocabulary: usize,
}

struct Token<'a> {
    text: Cow<'a, str>,
    kind: i32,
}

impl<'a> Sources<'a> {
    fn wrong(&self, field: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Field {
            path: self.path.to_path_buf(),
            field: format!("{field} of tokenizer.json"),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// The metadata that llama.cpp needs to split text as the tokenizer does.
    pub(super) fn metadata(&self) -> Result<Vec<(String, GgufValue)>> {
        let model = &self.tokenizer["model"];
        let kind = model["type"].as_str().unwrap_or("");
        if kind != "BPE" {
            return Err(self.wrong("model.type", format!("`{kind}`"), "`BPE`"));
        }
        let sentence_piece = model["byte_fallback"].as_bool() == Some(true);
        let tokens = self.tokens(sentence_piece)?;
        let merges = self.merges()?;
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let text = |v: &str| GgufValue::String(v.to_string());
        let mut out = Vec::new();
        out.push((key("model"), text(if sentence_piece { "llama" } else { "gpt2" })));
        out.push((key("pre"), text(if sentence_piece { "default" } else { self.splitting()? })));
        let texts = tokens.iter().map(|t| t.text.to_string()).collect();
        out.push((key("tokens"), GgufValue::Strings(texts)));
        out.push((key("token_type"), GgufValue::I32s(tokens.iter().map(|t| t.kind).collect())));
        if sentence_piece {
            out.push((key("scores"), GgufValue::F32s(scores(&tokens, &merges))));
            let prefix = self.has_step("normalizer", "normalizers", "Prepend");
            out.push((key("add_space_prefix"), GgufValue::Bool(prefix)));
        } else {
            let joined = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
            out.push((key("merges"), GgufValue::Strings(joined)));
            out.push((key("add_space_prefix"), GgufValue::Bool(false)));
        }
        let ids: HashMap<&str, usize> =
            tokens.iter().enumerate().map(|(id, t)| (&*t.text, id)).collect();
        for (name, setting) in [
            ("bos_token_id", "bos_token"),
            ("eos_token_id", "eos_token"),
            ("unknown_token_id", "unk_token"),
            ("padding_token_id", "pad_token"),
        ] {
            if let Some(id) = self.special(setting, &ids)
                && id < tokens.len()
            {
                out.push((key(name), GgufValue::U32(id as u32)));
            }
        }
        for (name, at_start) in [("add_bos_token", true), ("add_eos_token", false)] {
            out.push((key(name), GgufValue::Bool(self.adds(at_start))));
        }
        let inline = self.settings["chat_template"].as_str().map(str::to_string);
        if let Some(template) = inline.or_else(|| self.chat_template.clone()) {
            out.push(("tokenizer.chat_template".to_string(), GgufValue::String(template)));
        }
        Ok(out)
    }

    /// Every row of the embedding has a token; those without one are called as llama.cpp's
    /// converter calls them.
    fn tokens(&self, sentence_piece: bool) -> Result<Vec<Token<'a>>> {
        let mut slots: Vec<Option<Token<'a>>> = (0..self.vocabulary).map(|_| None).collect();
        let beyond = |text: &str, id: &Value| {
            self.wrong(
                "vocabulary",
                format!("token `{}` with number {id}", text.chars().take(40).collect::<String>()),
                format!("numbers below the {} rows of the embedding", self.vocabulary),
            )
        };
        let vocab = self.tokenizer["model"]["vocab"]
            .as_object()
            .ok_or_else(|| self.wrong("model.vocab", "no object", "tokens with their numbers"))?;
        let unknown = self.tokenizer["model"]["unk_token"].as_str();
        for (text, id) in vocab {
            let slot = id.as_u64().and_then(|id| slots.get_mut(usize::try_from(id).ok()?));
            let kind = match sentence_piece {
                true if Some(text.as_str()) == unknown => UNKNOWN,
                true if is_byte(text) => BYTE,
                _ => NORMAL,
            };
            let slot = slot.ok_or_else(|| beyond(text, id))?;
            *slot = Some(Token { text: Cow::Borrowed(text), kind });
        }
        for added in self.tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let text = added["content"].as_str().unwrap_or("");
            let slot = added["id"].as_u64().and_then(|id| slots.get_mut(usize::try_from(id).ok()?));
            let kind = match added["special"].as_bool() {
                _ if sentence_piece && Some(text) == unknown => UNKNOWN,
                Some(true) => CONTROL,
                _ => USER_DEFINED,
            };
            let slot = slot.ok_or_else(|| beyond(text, &added["id"]))?;
            *slot = Some(Token { text: Cow::Borrowed(text), kind });
        }
        let filler = |id: usize| Token { text: Cow::Owned(format!("[PAD{id}]")), kind: UNUSED };
        let filled = slots.into_iter().enumerate();
        Ok(filled.map(|(id, t)| t.unwrap_or_else(|| filler(id))).collect())
    }

    fn merges(&self) -> Result<Vec<(&'a str, &'a str)>> {
        let merges = self.tokenizer["model"]["merges"].as_array();
        let pair = |merge: &'a Value| match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(parts) => match &parts[..] {
                [Value::String(a), Value::String(b)] => Some((a.as_str(), b.as_str())),
                _ => None,
            },
            _ => None,
        };
        merges
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(number, merge)| {
                pair(merge).ok_or_else(|| {
                    let found = format!("{merge} as merge {number}");
                    self.wrong("model.merges", found, "pairs of tokens")
                })
            })
            .collect()
    }

    /// What llama.cpp calls the way in which the tokenizer splits text before merging.
    fn splitting(&self) -> Result<&'static str> {
        let mut digits = false;
        let mut regex = None;
        for step in steps(&self.tokenizer["pre_tokenizer"], "pretokenizers") {
            match step["type"].as_str() {
                Some("Digits") if step["individual_digits"].as_bool() == Some(true) => {
                    digits = true
                }
                Some("Split") => regex = step["pattern"]["Regex"].as_str(),
                _ => {}
            }
        }
        match (digits, regex) {
            (true, None) => Ok("smollm"),
            (false, None) => Ok("gpt-2"),
            (false, Some(LLAMA3)) => Ok("llama-bpe"),
            (false, Some(QWEN2)) => Ok("qwen2"),
            (false, Some(TEKKEN)) => Ok("tekken"),
            (_, other) => Err(self.wrong(
                "pre_tokenizer",
                other.unwrap_or("digits and another split").chars().take(60).collect::<String>(),
                "the splitting of GPT-2, SmolLM, Llama 3, Qwen 2 or Tekken",
            )),
        }
    }

    fn has_step(&self, field: &str, list: &str, kind: &str) -> bool {
        steps(&self.tokenizer[field], list).any(|s| s["type"].as_str() == Some(kind))
    }

    /// The number of a special token, from the settings or from the model's configuration.
    fn special(&self, setting: &str, ids: &HashMap<&str, usize>) -> Option<usize> {
        let named = match &self.settings[setting] {
            Value::String(text) => Some(text.as_str()),
            Value::Object(token) => token.get("content").and_then(Value::as_str),
            _ => None,
        };
        if let Some(id) = named.and_then(|text| ids.get(text)) {
            return Some(*id);
        }
        let field = &self.config[format!("{setting}_id")];
        let first = field.as_array().and_then(|ids| ids.first()).unwrap_or(field);
        first.as_u64().and_then(|id| usize::try_from(id).ok())
    }

    /// Whether a text gets a token at its start, or at its end.
    fn adds(&self, at_start: bool) -> bool {
        let setting = if at_start { "add_bos_token" } else { "add_eos_token" };
        if let Some(set) = self.settings[setting].as_bool() {
            return set;
        }
        let template = steps(&self.tokenizer["post_processor"], "processors")
            .find(|s| s["type"].as_str() == Some("TemplateProcessing"));
        let single = template.and_then(|t| t["single"].as_array());
        let end = single.and_then(|s| if at_start { s.first() } else { s.last() });
        end.is_some_and(|part| part.get("SpecialToken").is_some())
    }
}

/// The steps of a sequence, or the only one.
fn steps<'v>(value: &'v Value, list: &str) -> Box<dyn Iterator<Item = &'v Value> + 'v> {
    match value[list].as_array() {
        Some(all) => Box::new(all.iter()),
        None if value.is_object() => Box::new(std::iter::once(value)),
        None => Box::new(std::iter::empty()),
    }
}

/// `<0x0A>`: a byte of SentencePiece.
fn is_byte(text: &str) -> bool {
    text.strip_prefix("<0x")
        .and_then(|t| t.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// Scores of SentencePiece that give the merges in their order: llama.cpp merges the pair whose
/// union scores highest. What no merge makes scores lowest.
fn scores(tokens: &[Token<'_>], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (i, (a, b)) in merges.iter().enumerate() {
        rank.entry(format!("{a}{b}")).or_insert(i);
    }
    // Ranks of tokens, not of merges: several merges make one token, and f32 counts to 2^24.
    let mut made: Vec<(usize, usize)> =
        tokens.iter().enumerate().filter_map(|(id, t)| Some((*rank.get(&*t.text)?, id))).collect();
    made.sort_unstable();
    let mut scores = vec![-(made.len() as f32); tokens.len()];
    for (place, (_, id)) in made.iter().enumerate() {
        scores[*id] = -(place as f32);
    }
    for (score, token) in scores.iter_mut().zip(tokens) {
        if matches!(token.kind, UNKNOWN | CONTROL | BYTE) {
            *score = 0.0;
        }
    }
    scores
}
