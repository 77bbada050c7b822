//! Damaged and hostile checkpoint files: an error or a model all of which can be read, never a
//! panic, and no more memory than the file justifies. The functions under test are the fuzz targets
//! of `fuzz/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub, dead_code)]

#[path = "../../../fuzz/src/bounded.rs"]
mod bounded;
#[path = "../../../fuzz/src/checkpoint.rs"]
mod checkpoint;
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/damage.rs"]
mod damage;
#[path = "../../../fuzz/src/damage_text.rs"]
mod damage_text;
mod gguf_builder;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use damage::{Edit, number, place};
use gguf_builder::{Gguf, Meta};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    vec(any::<Edit>(), 0..most)
}

/// The seeds of every target, read once.
static SEEDS: LazyLock<BTreeMap<&str, Vec<Vec<u8>>>> = LazyLock::new(|| {
    let contents = |target| corpus::seeds(HERE, target).into_iter().map(|(_, bytes)| bytes);
    ["safetensors", "index", "gguf"].map(|target| (target, contents(target).collect())).into()
});

fn seed(target: &str, index: Index) -> Vec<u8> {
    index.get(&SEEDS[target]).clone()
}

/// Bits of JSON, put together at random.
fn json_soup() -> impl Strategy<Value = String> {
    let token = select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"w\"",
        "\"dtype\"",
        "\"F32\"",
        "\"BF16\"",
        "\"shape\"",
        "\"data_offsets\"",
        "\"__metadata__\"",
        "\"format\"",
        "\"weight_map\"",
        "\"metadata\"",
        "\"a\"",
        "\"x.safetensors\"",
        "\"y.safetensors\"",
        "0",
        "1",
        "4",
        "-1",
        "1e9",
        "1.5",
        "18446744073709551615",
        "18446744073709551616",
        "null",
        "true",
        "\"\\u0000\"",
        "\"\\ud800\"",
        " ",
        "\"",
    ]);
    vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

fn safetensors(header: &[u8], data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, &vec![1; data]].concat()
}

/// Damages the header of a file as JSON and sets its length right again.
fn damage_header(file: &[u8], edits: &[Edit]) -> Vec<u8> {
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let Some((header, data)) = file[8..].split_at_checked(length) else { return file.to_vec() };
    let header = damage_text::json(header, edits);
    [&(header.len() as u64).to_le_bytes(), &header[..], data].concat()
}

/// Keys that the reader looks at, without the architecture.
const KEYS: [&str; 28] = [
    "general.architecture",
    "general.alignment",
    "split.count",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.chat_template",
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.freq_base",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
];

const NAMES: [&str; 8] = [
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "blk.0.attn_q.weight",
    "blk.0.attn_k.weight",
    "blk.0.ffn_down.weight",
    "rope_freqs.weight",
    "blk.18446744073709551615.attn_q.weight",
];

fn meta(value: u8) -> Meta {
    let n = number(value / 4);
    match value % 13 {
        0 => Meta::U32(n as u32),
        1 => Meta::F32(n as f32),
        2 => Meta::F32(f32::NAN),
        3 => Meta::Bool(value > 127),
        4 => Meta::Str(["", "llama", "gpt2", "linear", "smollm", "\u{0}"][usize::from(value) % 6]),
        5 => Meta::Strs((0..value).map(|i| "a".repeat(i.into())).collect()),
        6 => Meta::Strs(["a", "b", "ab", "a b", "", "▁", "é"].map(String::from).to_vec()),
        7 => Meta::I32s((0..i32::from(value % 9)).collect()),
        8 => Meta::F32s((0..value % 9).map(f32::from).collect()),
        9 => Meta::Raw(u32::from(value), n.to_le_bytes().to_vec()),
        10 => Meta::Raw(10, n.to_le_bytes().to_vec()),
        11 => Meta::Raw(11, n.to_le_bytes().to_vec()),
        // A list that says that it has `n` elements.
        _ => Meta::Raw(9, [&u32::from(value % 14).to_le_bytes()[..], &n.to_le_bytes()].concat()),
    }
}

/// Changes one thing of a GGUF file, which stays well formed around it.
fn change(gguf: &mut Gguf, (at, kind, value): Edit) {
    let key = KEYS[place(at, KEYS.len())];
    let tensor = place(at, gguf.tensors.len());
    match kind % 12 {
        0 | 1 => gguf.set(key, meta(value)),
        2 => gguf.unset(key),
        3 if !gguf.tensors.is_empty() => {
            let dims = &mut gguf.tensors[tensor].dims;
            match value % 3 {
                0 => dims.push(number(value)),
                1 => drop(dims.pop()),
                _ => dims
                    .iter_mut()
                    .take(1 + usize::from(value % 2))
                    .for_each(|d| *d = number(value)),
            }
        }
        4 if !gguf.tensors.is_empty() => gguf.tensors[tensor].kind = u32::from(value % 42),
        5 if !gguf.tensors.is_empty() => gguf.tensors[tensor].offset = Some(number(value)),
        6 => gguf.tensor_count = Some(number(value)),
        7 => gguf.field_count = Some(number(value)),
        8 => {
            let rows = 1 + u64::from(value % 8);
            gguf.tensor(NAMES[place(at, NAMES.len())], &[8, rows], 8 * rows as usize);
        }
        9 => {
            gguf.alignment = 1 << (value % 8);
            gguf.set("general.alignment", Meta::U32(1 << (value % 8)));
        }
        10 if !gguf.tensors.is_empty() => gguf.tensors[tensor].data.resize(value.into(), value),
        11 => gguf.version = number(value) as u32,
        _ => {}
    }
}

/// A complete model with the vocabulary of SentencePiece, of byte-level BPE, or without one.
fn model(architecture: &'static str, vocabulary: usize) -> Gguf {
    let mut gguf = Gguf::model(architecture);
    let mut set = |key: &str, value| gguf.set(&format!("tokenizer.ggml.{key}"), value);
    match vocabulary {
        0 => {
            set("model", Meta::Str("llama"));
            let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁"];
            set("tokens", Meta::Strs(tokens.map(String::from).to_vec()));
            set("token_type", Meta::I32s(vec![2, 3, 3, 1, 1, 1, 1]));
            set("scores", Meta::F32s(vec![0.0, 0.0, 0.0, -2.0, -3.0, -1.0, -4.0]));
            set("bos_token_id", Meta::U32(1));
        }
        1 => {
            set("model", Meta::Str("gpt2"));
            set("pre", Meta::Str("smollm"));
            set("tokens", Meta::Strs(["a", "b", "ab", "<s>"].map(String::from).to_vec()));
            set("token_type", Meta::I32s(vec![1, 1, 1, 3]));
            set("merges", Meta::Strs(vec!["a b".to_string()]));
            set("bos_token_id", Meta::U32(3));
        }
        _ => {}
    }
    gguf
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_or_read(bytes in vec(any::<u8>(), 0..300)) {
        checkpoint::safetensors(&bytes);
        checkpoint::gguf(&bytes);
        checkpoint::index(&bytes);
    }

    #[test]
    fn safetensors_with_any_header_are_refused_or_read(header in json_soup(), data in 0usize..20) {
        checkpoint::safetensors(&safetensors(format!("{{{header}").as_bytes(), data));
    }

    #[test]
    fn damaged_safetensors_are_refused_or_read(
        index in any::<Index>(),
        header in edits(4),
        bytes in edits(3),
    ) {
        let file = damage_header(&seed("safetensors", index), &header);
        checkpoint::safetensors(&damage::bytes(file, &bytes));
    }

    #[test]
    fn any_index_is_refused_or_read(index in json_soup()) {
        checkpoint::index(format!("{{{index}").as_bytes());
    }

    #[test]
    fn damaged_indexes_are_refused_or_read(
        index in any::<Index>(),
        values in edits(4),
        bytes in edits(2),
    ) {
        let index = damage_text::json(&seed("index", index), &values);
        checkpoint::index(&damage::bytes(index, &bytes));
    }

    #[test]
    fn damaged_gguf_files_are_refused_or_read(index in any::<Index>(), bytes in edits(5)) {
        checkpoint::gguf(&damage::bytes(seed("gguf", index), &bytes));
    }

    #[test]
    fn gguf_files_with_any_fields_are_refused_or_read(
        architecture in select(vec!["llama", "llama", "qwen2", "qwen3"]),
        vocabulary in 0usize..3,
        changes in edits(6),
        bytes in edits(2),
    ) {
        let mut gguf = model(architecture, vocabulary);
        changes.iter().for_each(|edit| change(&mut gguf, *edit));
        checkpoint::gguf(&damage::bytes(gguf.bytes(), &bytes));
    }
}

#[test]
fn every_seed_is_accepted_or_refused_as_its_name_says() {
    corpus::check(HERE, "safetensors", checkpoint::safetensors);
    corpus::check(HERE, "index", checkpoint::index);
    corpus::check(HERE, "gguf", checkpoint::gguf);
}

#[test]
#[ignore = "writes the seed corpus"]
fn write_seeds() {
    let write = |target: &str, name: &str, bytes: &[u8]| corpus::write(HERE, target, name, bytes);
    let fixture = |name: &str| std::fs::read(format!("{HERE}/tests/fixtures/{name}")).unwrap();
    write("safetensors", "valid-every-dtype", &fixture("mixed.safetensors"));
    write("safetensors", "valid-empty", &safetensors(b"{}", 0));
    write(
        "safetensors",
        "valid-two",
        &safetensors(
            br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}} "#,
            19,
        ),
    );
    write(
        "safetensors",
        "valid-no-elements",
        &safetensors(
            br#"{"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"z":{"dtype":"F16","shape":[0,9223372036854775807],"data_offsets":[8,8]}}"#,
            8,
        ),
    );
    let nested = format!(r#"{{"w":{{"x":{}"#, "[".repeat(5_000));
    write("safetensors", "hostile-nested", &safetensors(nested.as_bytes(), 0));
    let dims = format!(r#"{{"w":{{"dtype":"U8","shape":[{}1]"#, "1,".repeat(5_000));
    write("safetensors", "hostile-dimensions", &safetensors(dims.as_bytes(), 0));
    write(
        "index",
        "valid-two-shards",
        br#"{"metadata":{"total_size":7},"weight_map":{"a":"x.safetensors","b":"x.safetensors","c":"y.safetensors"}}"#,
    );
    write(
        "index",
        "valid-one-shard",
        br#"{"weight_map":{"b":"x.safetensors","a":"x.safetensors"},"more":[{"x":null}]}"#,
    );
    write("index", "hostile-path", br#"{"weight_map":{"a":"../x.safetensors"}}"#);
    let nested = format!(r#"{{"weight_map":{{"a":"x.safetensors"}},"x":{}"#, "[".repeat(5_000));
    write("index", "hostile-nested", nested.as_bytes());
    write("gguf", "valid-sentence-piece", &model("llama", 0).bytes());
    write("gguf", "valid-byte-level", &model("qwen2", 1).bytes());
    write("gguf", "valid-no-vocabulary", &model("qwen3", 2).bytes());
    write("gguf", "valid-every-block-type", &fixture("llama.gguf"));
    // Pieces of which every prefix and suffix is a piece: each has a merge for each of its bytes.
    let mut gguf = model("llama", 0);
    let runs = |unit: &str, longest| (1..longest).map(|n| unit.repeat(n)).collect::<Vec<_>>();
    let tokens = [runs("a", 257), runs("b", 257), runs("ab", 128), runs("▁", 85)].concat();
    gguf.set("tokenizer.ggml.token_type", Meta::I32s(vec![1; tokens.len()]));
    gguf.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0; tokens.len()]));
    gguf.set("tokenizer.ggml.tokens", Meta::Strs(tokens));
    write("gguf", "edge-runs", &gguf.bytes());
}
