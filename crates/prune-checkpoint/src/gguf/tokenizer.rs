use std::collections::HashMap;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::metadata::Metadata;
use super::tokenizer_config::token;
use crate::Result;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

// `tokenizer.ggml.token_type`
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// The longest piece, in bytes, whose merges are derived from scores: the work grows with the
/// square of the length, and SentencePiece trains pieces of at most 16 characters by default.
const LONGEST_PIECE: usize = 256;
/// The most merges derived from scores for each token, and for a small vocabulary in all. Real
/// vocabularies have two to three a token; one of pieces made of each other has as many as the
/// longest piece has bytes, each as long as its piece.
const MERGES_PER_TOKEN: usize = 16;
const SMALL_MERGES: usize = 4096;

/// The bytes of `tokenizer.json`; `None` when the file has no vocabulary.
pub(super) fn rebuild(metadata: &Metadata) -> Result<Option<Vec<u8>>> {
    let Some(tokens) = metadata.strings(TOKENS)? else {
        return Ok(None);
    };
    let vocabulary = Vocabulary::new(metadata, tokens)?;
    let tokenizer = match metadata.str(MODEL)? {
        Some("gpt2") => byte_level(metadata, &vocabulary)?,
        Some("llama") => sentence_piece(metadata, &vocabulary)?,
        _ => return Err(metadata.wrong(MODEL, "`gpt2` (byte-level BPE) or `llama`")),
    };
    serde_json::to_vec(&tokenizer)
        .map(Some)
        .map_err(|_| metadata.wrong(TOKENS, "tokens that JSON can hold"))
}

struct Vocabulary<'m> {
    tokens: &'m [String],
    types: Option<Vec<i64>>,
    ids: HashMap<&'m str, usize>,
}

impl<'m> Vocabulary<'m> {
    fn new(metadata: &Metadata, tokens: &'m [String]) -> Result<Self> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(metadata.wrong(
                    TOKENS,
                    format!("every token once, where tokens {first} and {id} are the same"),
                ));
            }
        }
        let types = metadata.integers(TYPES)?;
        if types.as_ref().is_some_and(|t| t.len() != tokens.len()) {
            return Err(
                metadata.wrong(TYPES, format!("one type for each of {} tokens", tokens.len()))
            );
        }
        Ok(Vocabulary { tokens, types, ids })
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.as_ref().map_or(NORMAL, |t| t[id])
    }

    /// Whether a token only fills a gap between the vocabulary and the rows of the embedding.
    fn is_filler(&self, id: usize) -> bool {
        self.kind(id) == UNUSED && self.tokens[id] == format!("[PAD{id}]")
    }

    /// The tokens that are found in text before it is split.
    fn added(&self) -> Vec<AddedToken<'m>> {
        self.tokens
            .iter()
            .enumerate()
            .filter(|(id, _)| matches!(self.kind(*id), UNKNOWN | CONTROL | USER_DEFINED))
            .map(|(id, content)| AddedToken {
                id,
                content,
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: false,
                special: self.kind(id) != USER_DEFINED,
            })
            .collect()
    }

    fn entries(&self) -> Entries<'m> {
        let entries = self.tokens.iter().map(String::as_str).enumerate();
        Entries(entries.filter(|(id, _)| !self.is_filler(*id)).map(|(id, t)| (t, id)).collect())
    }

    /// The merges in the file, each checked against the vocabulary.
    fn merges(&self, metadata: &Metadata) -> Result<Option<Vec<String>>> {
        let Some(merges) = metadata.strings(MERGES)? else {
            return Ok(None);
        };
        for (number, merge) in merges.iter().enumerate() {
            let known = merge.split_once(' ').is_some_and(|(left, right)| {
                self.ids.contains_key(left)
                    && self.ids.contains_key(right)
                    && self.ids.contains_key(format!("{left}{right}").as_str())
            });
            if !known {
                return Err(metadata.wrong(
                    MERGES,
                    format!("two tokens whose union is a token, where merge {number} is not"),
                ));
            }
        }
        Ok(Some(merges.to_vec()))
    }

    /// The merges that the scores of SentencePiece imply: every way to make a piece of two others,
    /// best piece first.
    ///
    /// This is the order of `generate_merges` of transformers: by score, then by the lengths of the
    /// parts in characters, all descending, then by the numbers of the parts.
    fn merges_from_scores(&self, metadata: &Metadata) -> Result<Vec<String>> {
        let scores = metadata.floats(SCORES)?.filter(|s| s.len() == self.tokens.len());
        let Some(scores) = scores else {
            let expected = format!("one score for each of {} tokens", self.tokens.len());
            return Err(metadata.wrong(SCORES, expected));
        };
        let piece = |text: &str| {
            let id = *self.ids.get(text)?;
            matches!(self.kind(id), NORMAL | USER_DEFINED | UNUSED).then_some(id)
        };
        let most = MERGES_PER_TOKEN.saturating_mul(self.tokens.len()).saturating_add(SMALL_MERGES);
        let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
        for (token, score) in self.tokens.iter().zip(scores) {
            if piece(token).is_none() {
                continue;
            }
            if token.len() > LONGEST_PIECE {
                let expected = format!("pieces of at most {LONGEST_PIECE} bytes");
                return Err(metadata.wrong(TOKENS, expected));
            }
            let mut splits: Vec<(usize, usize, &str, &str)> = token
                .char_indices()
                .skip(1)
                .filter_map(|(at, _)| {
                    let (left, right) = token.split_at(at);
                    Some((piece(left)?, piece(right)?, left, right))
                })
                .collect();
            splits.sort_unstable();
            merges.extend(splits.into_iter().map(|(_, _, left, right)| {
                (score, left.chars().count(), right.chars().count(), left, right)
            }));
            if merges.len() > most {
                let expected = format!("pieces that make at most {most} merges of each other");
                return Err(metadata.wrong(TOKENS, expected));
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
        Ok(merges.into_iter().map(|(.., left, right)| format!("{left} {right}")).collect())
    }
}

/// Byte-level BPE, the tokenizer of GPT-2 and its descendants.
fn byte_level<'m>(
    metadata: &'m Metadata,
    vocabulary: &Vocabulary<'m>,
) -> Result<TokenizerJson<'m>> {
    let pre = metadata.str(PRE)?;
    let Some(style) = pre.and_then(ByteLevelStyle::named) else {
        return Err(metadata.wrong(
            PRE,
            "`smollm`, `llama-bpe`, `qwen2`, `tekken`, `gpt-2` or `default`; the splitting of \
             other tokenizers is not known, so take tokenizer.json from the original model",
        ));
    };
    let merges = vocabulary
        .merges(metadata)?
        .ok_or_else(|| metadata.wrong(MERGES, "a list of merges for a byte-level tokenizer"))?;
    let pre_tokenizer = match style.split {
        Split::Gpt2 => byte_level_splitter(true),
        Split::Digits => json!({ "pretokenizers": [
            { "individual_digits": true, "type": "Digits" },
            byte_level_splitter(true),
        ], "type": "Sequence" }),
        Split::Regex(regex) => json!({ "pretokenizers": [
            { "behavior": "Isolated", "invert": false, "pattern": { "Regex": regex }, "type": "Split" },
            byte_level_splitter(false),
        ], "type": "Sequence" }),
    };
    Ok(TokenizerJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: vocabulary.added(),
        normalizer: if style.nfc { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer,
        post_processor: template(metadata, vocabulary, style.adds_bos)?,
        decoder: json!({
            "add_prefix_space": true,
            "trim_offsets": true,
            "type": "ByteLevel",
            "use_regex": true,
        }),
        model: Bpe {
            kind: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: style.ignores_merges,
            vocab: vocabulary.entries(),
            merges,
        },
    })
}

fn byte_level_splitter(use_regex: bool) -> Value {
    json!({
        "add_prefix_space": false,
        "trim_offsets": true,
        "type": "ByteLevel",
        "use_regex": use_regex,
    })
}

/// How a byte-level tokenizer differs from that of GPT-2.
struct ByteLevelStyle {
    split: Split,
    nfc: bool,
    adds_bos: bool,
    ignores_merges: bool,
}

enum Split {
    Gpt2,
    Digits,
    Regex(&'static str),
}

impl ByteLevelStyle {
    /// The style that llama.cpp calls `pre`, with the splitting of the original tokenizer.
    fn named(pre: &str) -> Option<Self> {
        let style = |split, nfc, adds_bos, ignores_merges| {
            Some(ByteLevelStyle { split, nfc, adds_bos, ignores_merges })
        };
        match pre {
            "gpt-2" | "default" => style(Split::Gpt2, false, false, false),
            "smollm" => style(Split::Digits, false, false, false),
            "llama-bpe" | "llama3" | "llama-v3" => style(Split::Regex(LLAMA3), false, true, true),
            "qwen2" => style(Split::Regex(QWEN2), true, false, false),
            "tekken" => style(Split::Regex(TEKKEN), false, true, true),
            _ => None,
        }
    }
}

pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// SentencePiece BPE with byte fallback, the tokenizer of Llama 1 and 2 and of Mistral.
fn sentence_piece<'m>(
    metadata: &'m Metadata,
    vocabulary: &Vocabulary<'m>,
) -> Result<TokenizerJson<'m>> {
    let merges = match vocabulary.merges(metadata)? {
        Some(merges) => merges,
        None => vocabulary.merges_from_scores(metadata)?,
    };
    let unknown = match token(metadata, vocabulary.tokens, "tokenizer.ggml.unknown_token_id")? {
        Some(token) => Some(token),
        None => (0..vocabulary.tokens.len())
            .find(|id| vocabulary.kind(*id) == UNKNOWN)
            .map(|id| vocabulary.tokens[id].as_str()),
    };
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![];
    let mut decoders = vec![
        json!({ "content": " ", "pattern": { "String": "▁" }, "type": "Replace" }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.push(json!({ "prepend": "▁", "type": "Prepend" }));
        decoders.push(json!({ "content": " ", "start": 1, "stop": 0, "type": "Strip" }));
    }
    normalizers.push(json!({ "content": "▁", "pattern": { "String": " " }, "type": "Replace" }));
    Ok(TokenizerJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: vocabulary.added(),
        normalizer: json!({ "normalizers": normalizers, "type": "Sequence" }),
        pre_tokenizer: Value::Null,
        post_processor: template(metadata, vocabulary, true)?,
        decoder: json!({ "decoders": decoders, "type": "Sequence" }),
        model: Bpe {
            kind: "BPE",
            dropout: None,
            unk_token: unknown,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: vocabulary.entries(),
            merges,
        },
    })
}

/// The post-processor that puts the beginning and end tokens around a text; null for neither.
fn template(metadata: &Metadata, vocabulary: &Vocabulary<'_>, adds_bos: bool) -> Result<Value> {
    let adds_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
    let adds_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let mut specials = serde_json::Map::new();
    let mut special = |wanted: bool, key: &str| -> Result<Option<String>> {
        if !wanted {
            return Ok(None);
        }
        let content = token(metadata, vocabulary.tokens, key)?
            .ok_or_else(|| metadata.wrong(key, "a token, since it is put around every text"))?;
        let id = vocabulary.ids.get(content).copied().unwrap_or_default();
        let entry = json!({ "id": content, "ids": [id], "tokens": [content] });
        specials.insert(content.to_string(), entry);
        Ok(Some(content.to_string()))
    };
    let bos = special(adds_bos, "tokenizer.ggml.bos_token_id")?;
    let eos = special(adds_eos, "tokenizer.ggml.eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let around = |sequence: &str, type_id: u8| {
        let token = |t: &String| json!({ "SpecialToken": { "id": t, "type_id": type_id } });
        let text = json!({ "Sequence": { "id": sequence, "type_id": type_id } });
        let parts = bos.iter().map(token).chain([text]);
        parts.chain(eos.iter().map(token)).collect::<Vec<_>>()
    };
    let pair: Vec<Value> = around("A", 0).into_iter().chain(around("B", 1)).collect();
    Ok(json!({
        "pair": pair,
        "single": around("A", 0),
        "special_tokens": specials,
        "type": "TemplateProcessing",
    }))
}

#[derive(Serialize)]
struct TokenizerJson<'m> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<AddedToken<'m>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'m>,
}

#[derive(Serialize)]
struct AddedToken<'m> {
    id: usize,
    content: &'m str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct Bpe<'m> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'m str>,
    continuing_subword_prefix: Option<&'static str>,
    end_of_word_suffix: Option<&'static str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Entries<'m>,
    merges: Vec<String>,
}

/// Tokens and their numbers, in the order of the numbers.
struct Entries<'m>(Vec<(&'m str, usize)>);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}
