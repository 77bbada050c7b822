#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Damaged and malicious inputs: each gets a typed error that names what is wrong, and leaves no
//! output.

mod gguf_builder;

use std::fs;
use std::path::Path;

use gguf_builder::{Gguf, Meta, Q4_0};
use prune_checkpoint::{Checkpoint, Error, HfWriter, WriterOptions};
use prune_core::TensorSource;

/// A safetensors file with this header and these bytes of data.
fn safetensors(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; data]].concat()
}

fn one_tensor(entry: &str, data: usize) -> Vec<u8> {
    safetensors(format!(r#"{{"w":{entry}}}"#), data)
}

fn good(names: &[&str]) -> Vec<u8> {
    let entries: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(i, n)| {
            format!(r#""{n}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1)
        })
        .collect();
    safetensors(format!("{{{}}}", entries.join(",")), names.len())
}

/// A model of architecture llama, changed.
fn gguf(change: impl FnOnce(&mut Gguf)) -> Vec<u8> {
    let mut gguf = Gguf::model("llama");
    change(&mut gguf);
    gguf.bytes()
}

struct Case {
    name: &'static str,
    files: Vec<(&'static str, Vec<u8>)>,
    /// The variant, by the name that `Debug` gives it.
    variant: &'static str,
    /// Tensor or field, which the message has to contain.
    names: &'static str,
}

fn single(name: &'static str, bytes: Vec<u8>, variant: &'static str, names: &'static str) -> Case {
    Case { name, files: vec![("model.safetensors", bytes)], variant, names }
}

fn sharded(
    name: &'static str,
    index: &str,
    shards: Vec<(&'static str, Vec<u8>)>,
    variant: &'static str,
    names: &'static str,
) -> Case {
    let mut files = vec![("model.safetensors.index.json", index.as_bytes().to_vec())];
    files.extend(shards);
    Case { name, files, variant, names }
}

fn of_gguf(name: &'static str, bytes: Vec<u8>, variant: &'static str, names: &'static str) -> Case {
    Case { name, files: vec![("model.gguf", bytes)], variant, names }
}

fn safetensors_cases() -> Vec<Case> {
    let huge_header = [(1u64 << 40).to_le_bytes().as_slice(), b"{}"].concat();
    let long_header = [(1_000u64).to_le_bytes().as_slice(), b"{}"].concat();
    vec![
        single("empty file", vec![], "Truncated", "header length"),
        single("header of length 0", vec![0; 8], "Json", "header"),
        single("header longer than the file", long_header, "Truncated", "header"),
        single("header above the limit", huge_header, "TooLarge", "header length"),
        single("header that is not UTF-8", safetensors(b"{\"\xff\":1}", 0), "Json", "UTF-8"),
        single("header that is not JSON", safetensors("{\"w\":", 0), "Json", "header"),
        single("header that is a list", safetensors("[1, 2]", 0), "Json", "header"),
        single("header with text after it", safetensors("{} x", 0), "Json", "header"),
        single(
            "header nested beyond measure",
            safetensors(format!("{{\"w\":{{\"x\":{}", "[".repeat(100_000)), 0),
            "Json",
            "`w`",
        ),
        single(
            "tensor listed twice",
            safetensors(
                r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                    "w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                2,
            ),
            "DuplicateTensor",
            "`w`",
        ),
        single("entry that is a number", one_tensor("1", 0), "Tensor", "`w`"),
        single(
            "entry without dtype",
            one_tensor(r#"{"shape":[1],"data_offsets":[0,1]}"#, 1),
            "Tensor",
            "dtype",
        ),
        single(
            "entry with two shapes",
            one_tensor(r#"{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,1]}"#, 1),
            "Tensor",
            "shape",
        ),
        single(
            "unknown dtype",
            one_tensor(r#"{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}"#, 1),
            "Tensor",
            "Q9",
        ),
        single(
            "negative shape",
            one_tensor(r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}"#, 1),
            "Tensor",
            "shape",
        ),
        single(
            "fractional shape",
            one_tensor(r#"{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}"#, 1),
            "Tensor",
            "shape",
        ),
        single(
            "shape that overflows",
            one_tensor(
                r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,1]}"#,
                1,
            ),
            "Tensor",
            "shape",
        ),
        single(
            "shape of a million dimensions",
            one_tensor(
                &format!(
                    r#"{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}"#,
                    "1,".repeat(1_000_000)
                ),
                1,
            ),
            "Tensor",
            "shape",
        ),
        single(
            "shape that does not fill its offsets",
            one_tensor(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4),
            "Tensor",
            "data_offsets",
        ),
        single(
            "offsets backwards",
            one_tensor(r#"{"dtype":"U8","shape":[1],"data_offsets":[1,0]}"#, 1),
            "Tensor",
            "data_offsets",
        ),
        single(
            "three offsets",
            one_tensor(r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#, 1),
            "Tensor",
            "data_offsets",
        ),
        single(
            "tensors that overlap",
            safetensors(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                    "b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                3,
            ),
            "Overlap",
            "`b`",
        ),
        single(
            "two names for the same bytes",
            safetensors(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                    "b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
                2,
            ),
            "Overlap",
            "`b`",
        ),
        single(
            "hole between tensors",
            safetensors(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                    "b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
                3,
            ),
            "Hole",
            "`b`",
        ),
        single(
            "tensor past the end",
            one_tensor(r#"{"dtype":"U8","shape":[9],"data_offsets":[0,9]}"#, 8),
            "Truncated",
            "`w`",
        ),
        single(
            "bytes after the last tensor",
            one_tensor(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8]}"#, 9),
            "TrailingBytes",
            "1 bytes",
        ),
        single(
            "metadata that is no object of strings",
            safetensors(r#"{"__metadata__":{"format":1}}"#, 0),
            "Tensor",
            "__metadata__",
        ),
    ]
}

fn index_cases() -> Vec<Case> {
    let map = |entries: &str| format!(r#"{{"metadata":{{}},"weight_map":{{{entries}}}}}"#);
    vec![
        sharded("index cut off", "{\"weight_map\":", vec![], "Json", "index"),
        sharded("index without weight_map", "{}", vec![], "Field", "weight_map"),
        sharded("empty weight_map", &map(""), vec![], "Field", "weight_map"),
        sharded("weight_map of numbers", &map(r#""w":1"#), vec![], "Json", "`w`"),
        sharded(
            "shard in another directory",
            &map(r#""w":"../evil.safetensors""#),
            vec![],
            "ShardName",
            "../evil",
        ),
        sharded(
            "shard with an absolute path",
            &map(r#""w":"/etc/a.safetensors""#),
            vec![],
            "ShardName",
            "/etc/a",
        ),
        sharded(
            "shard on another drive",
            &map(r#""w":"C:evil.safetensors""#),
            vec![],
            "ShardName",
            "C:evil",
        ),
        sharded(
            "shard that is a pickle",
            &map(r#""w":"pytorch_model.bin""#),
            vec![],
            "ShardName",
            "pytorch_model.bin",
        ),
        sharded(
            "tensor sent to two shards",
            &map(r#""w":"a.safetensors","w":"b.safetensors""#),
            vec![],
            "DuplicateTensor",
            "`w`",
        ),
        sharded(
            "missing shard",
            &map(r#""v":"a.safetensors","w":"b.safetensors""#),
            vec![("a.safetensors", good(&["v"]))],
            "MissingShard",
            "b.safetensors",
        ),
        sharded(
            "tensor missing from its shard",
            &map(r#""v":"a.safetensors","w":"a.safetensors""#),
            vec![("a.safetensors", good(&["v"]))],
            "NotInShard",
            "`w`",
        ),
        sharded(
            "tensor in another shard than the index says",
            &map(r#""v":"a.safetensors","w":"b.safetensors""#),
            vec![("a.safetensors", good(&["v", "w"])), ("b.safetensors", good(&[]))],
            "NotInShard",
            "`w`",
        ),
        sharded(
            "tensor in two shards",
            &map(r#""v":"a.safetensors","w":"b.safetensors""#),
            vec![("a.safetensors", good(&["v", "w"])), ("b.safetensors", good(&["w"]))],
            "TwoShards",
            "`w`",
        ),
        sharded(
            "tensor that the index does not know",
            &map(r#""v":"a.safetensors""#),
            vec![("a.safetensors", good(&["v", "w"]))],
            "NotInIndex",
            "`w`",
        ),
    ]
}

fn gguf_cases() -> Vec<Case> {
    vec![
        of_gguf("GGUF of 3 bytes", b"GGU".to_vec(), "Truncated", "magic"),
        of_gguf("bad magic", gguf(|g| g.magic = *b"GGML"), "Field", "magic"),
        of_gguf("version 1", gguf(|g| g.version = 1), "Field", "version"),
        of_gguf("big-endian file", gguf(|g| g.version = 3 << 24), "Field", "byte order"),
        of_gguf(
            "more tensors than any model",
            gguf(|g| g.tensor_count = Some(u64::MAX)),
            "TooLarge",
            "number of tensors",
        ),
        of_gguf(
            "more tensors than the file has room for",
            gguf(|g| g.tensor_count = Some(900_000)),
            "Truncated",
            "900000 tensors",
        ),
        of_gguf(
            "more fields than any model",
            gguf(|g| g.field_count = Some(u64::MAX)),
            "TooLarge",
            "metadata fields",
        ),
        of_gguf(
            "string longer than the file",
            gguf(|g| g.set("general.name", Meta::Raw(8, u64::MAX.to_le_bytes().to_vec()))),
            "Truncated",
            "general.name",
        ),
        of_gguf(
            "list longer than the file",
            gguf(|g| {
                let head = [5u32.to_le_bytes().as_slice(), &(1u64 << 61).to_le_bytes()].concat();
                g.set("general.list", Meta::Raw(9, head));
            }),
            "Truncated",
            "general.list",
        ),
        of_gguf(
            "list of strings longer than the file",
            gguf(|g| {
                let head = [8u32.to_le_bytes().as_slice(), &(1u64 << 40).to_le_bytes()].concat();
                g.set("general.list", Meta::Raw(9, head));
            }),
            "Truncated",
            "general.list",
        ),
        of_gguf(
            "list of lists",
            gguf(|g| {
                let head = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
                g.set("general.list", Meta::Raw(9, head));
            }),
            "Field",
            "general.list",
        ),
        of_gguf(
            "unknown metadata type",
            gguf(|g| g.set("general.name", Meta::Raw(99, vec![]))),
            "Field",
            "general.name",
        ),
        of_gguf(
            "metadata that is not UTF-8",
            gguf(|g| {
                let text = [2u64.to_le_bytes().as_slice(), b"\xff\xff"].concat();
                g.set("general.name", Meta::Raw(8, text));
            }),
            "Field",
            "general.name",
        ),
        of_gguf(
            "field twice",
            gguf(|g| g.fields.push(("llama.block_count".into(), Meta::U32(1)))),
            "Field",
            "llama.block_count",
        ),
        of_gguf(
            "field of the wrong type",
            gguf(|g| g.set("llama.block_count", Meta::Str("one"))),
            "Field",
            "llama.block_count",
        ),
        of_gguf(
            "missing field",
            gguf(|g| g.unset("llama.attention.head_count")),
            "Field",
            "llama.attention.head_count",
        ),
        of_gguf(
            "no heads",
            gguf(|g| g.set("llama.attention.head_count", Meta::U32(0))),
            "Field",
            "llama.attention.head_count",
        ),
        of_gguf(
            "heads that do not divide the rows",
            gguf(|g| {
                g.set("llama.attention.head_count", Meta::U32(3));
                g.set("llama.attention.key_length", Meta::U32(4));
            }),
            "Tensor",
            "blk.0.attn_q.weight",
        ),
        of_gguf(
            "alignment 0",
            gguf(|g| g.set("general.alignment", Meta::U32(0))),
            "Field",
            "general.alignment",
        ),
        of_gguf(
            "alignment 3",
            gguf(|g| g.set("general.alignment", Meta::U32(3))),
            "Field",
            "general.alignment",
        ),
        of_gguf(
            "unknown architecture",
            gguf(|g| g.set("general.architecture", Meta::Str("mamba"))),
            "Unsupported",
            "mamba",
        ),
        of_gguf(
            "part of a split file",
            gguf(|g| g.set("split.count", Meta::U32(2))),
            "Unsupported",
            "split",
        ),
        of_gguf(
            "data cut off",
            {
                let mut bytes = gguf(|_| {});
                bytes.truncate(bytes.len() - 1);
                bytes
            },
            "Truncated",
            "blk.0.attn_q.weight",
        ),
        of_gguf(
            "offset past the end",
            gguf(|g| g.tensors[1].offset = Some(1 << 40)),
            "Truncated",
            "blk.0.attn_q.weight",
        ),
        of_gguf(
            "offset at the end of the numbers",
            gguf(|g| g.tensors[1].offset = Some(u64::MAX - 31)),
            "Truncated",
            "blk.0.attn_q.weight",
        ),
        of_gguf(
            "offset off the alignment",
            gguf(|g| g.tensors[1].offset = Some(97)),
            "Tensor",
            "blk.0.attn_q.weight",
        ),
        of_gguf(
            "GGUF tensors that overlap",
            gguf(|g| g.tensors[1].offset = Some(64)),
            "Overlap",
            "token_embd.weight",
        ),
        of_gguf(
            "hole between GGUF tensors",
            gguf(|g| {
                g.tensors[1].offset = Some(160);
                g.tensors[1].data.extend([0; 64]);
            }),
            "Hole",
            "blk.0.attn_q.weight",
        ),
        of_gguf(
            "row that is no whole number of blocks",
            gguf(|g| g.tensors[0].kind = Q4_0),
            "Tensor",
            "token_embd.weight",
        ),
        of_gguf(
            "unknown ggml type",
            gguf(|g| g.tensors[0].kind = 77),
            "Tensor",
            "token_embd.weight",
        ),
        of_gguf("type that is not read", gguf(|g| g.tensors[0].kind = 20), "Tensor", "IQ4_NL"),
        of_gguf(
            "five dimensions",
            gguf(|g| g.tensors[0].dims = vec![8, 3, 1, 1, 1]),
            "Tensor",
            "token_embd.weight",
        ),
        of_gguf(
            "dimension 0",
            gguf(|g| g.tensors[0].dims = vec![8, 0]),
            "Tensor",
            "token_embd.weight",
        ),
        of_gguf(
            "dimensions that overflow",
            gguf(|g| g.tensors[0].dims = vec![1 << 33, 1 << 33]),
            "Tensor",
            "token_embd.weight",
        ),
        of_gguf(
            "GGUF tensor twice",
            gguf(|g| g.tensor("token_embd.weight", &[8, 3], 24)),
            "DuplicateTensor",
            "token_embd.weight",
        ),
        of_gguf(
            "tensor of a mixture of experts",
            gguf(|g| g.tensor("blk.0.ffn_gate_exps.weight", &[8, 16, 2], 256)),
            "Unsupported",
            "ffn_gate_exps",
        ),
        of_gguf(
            "rotary factors of unknown origin",
            gguf(|g| g.tensor("rope_freqs.weight", &[2], 2)),
            "Unsupported",
            "rope_freqs",
        ),
    ]
}

/// The whole way of a checkpoint through this crate.
fn copy(model: &Path, out: &Path) -> Result<(), Error> {
    let source = Checkpoint::open(model)?;
    let plan = source.tensors().to_vec();
    let options = WriterOptions { plan, ..WriterOptions::default() };
    let mut writer = HfWriter::create(out, options)?;
    for tensor in source.tensors() {
        writer.write_tensor(tensor, &source.read(&tensor.name).unwrap())?;
    }
    for file in source.auxiliary_files()? {
        writer.copy_file(&file)?;
    }
    writer.finish()
}

fn variant(error: &Error) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(', '{']).next().unwrap().to_string()
}

#[test]
fn every_hostile_input_gets_an_error_that_names_it_and_leaves_no_output() {
    let cases: Vec<Case> =
        safetensors_cases().into_iter().chain(index_cases()).chain(gguf_cases()).collect();
    assert!(cases.len() >= 20);
    let mut wrong = Vec::new();
    for case in &cases {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("model");
        fs::create_dir(&model).unwrap();
        for (name, bytes) in &case.files {
            fs::write(model.join(name), bytes).unwrap();
        }
        let opened = match case.files[0].0 {
            gguf if gguf.ends_with(".gguf") => model.join(gguf),
            _ => model.clone(),
        };
        match copy(&opened, &directory.path().join("out")) {
            Ok(()) => wrong.push(format!("{}: accepted", case.name)),
            Err(e) if variant(&e) != case.variant || !e.to_string().contains(case.names) => {
                wrong.push(format!("{}: {}: {e}", case.name, variant(&e)));
            }
            Err(_) => {}
        }
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{}: {left:?}", case.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_error_while_auxiliary_files_are_made_leaves_no_output() {
    let mut gguf = Gguf::model("llama");
    gguf.set("tokenizer.ggml.tokens", Meta::Strs(vec!["a".into(), "b".into()]));
    gguf.set("tokenizer.ggml.model", Meta::Str("gpt2"));
    gguf.set("tokenizer.ggml.pre", Meta::Str("some-new-one"));
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model.gguf");
    fs::write(&model, gguf.bytes()).unwrap();
    let error = copy(&model, &directory.path().join("out")).unwrap_err();
    assert!(matches!(error, Error::Field { .. }), "{error:?}");
    assert!(error.to_string().contains("some-new-one"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_gives_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let bytes = good(&["a", "b", "c"]);
    fs::write(&path, &bytes).unwrap();
    let model = Checkpoint::open(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
    assert_eq!(model.read("a").unwrap(), [0]);
    let prune_core::Error::External { source, .. } = model.read("c").unwrap_err() else { panic!() };
    let error = source.downcast_ref::<Error>().unwrap();
    assert!(matches!(error, Error::Truncated { .. }), "{error:?}");
    assert!(error.to_string().contains("`c`"), "{error}");
}
