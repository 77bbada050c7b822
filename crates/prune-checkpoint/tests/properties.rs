#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Whatever comes in, nothing panics; whatever is written, comes back.

mod gguf_builder;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gguf_builder::{Gguf, Meta};
use proptest::prelude::*;
use proptest::sample::Index;
use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions, tensor_digest};
use prune_core::{DType, TensorInfo, TensorSource};

/// Opens `path` and, if that works, asks for everything.
fn try_everything(path: &Path) {
    let Ok(model) = Checkpoint::open(path) else { return };
    for tensor in model.tensors() {
        if tensor.nbytes() > 1 << 20 {
            continue;
        }
        let whole = model.read(&tensor.name).unwrap();
        let mut part = vec![0; whole.len() / 2];
        model.read_at(&tensor.name, whole.len() - part.len(), &mut part).unwrap();
        assert_eq!(part, whole[whole.len() - part.len()..]);
    }
    let _ = model.config();
    let _ = model.tokenizer_json();
    let _ = model.auxiliary_files();
}

fn try_bytes(name: &str, bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    try_everything(&path);
}

/// Overwrites, removes and inserts bytes at random places.
fn mutate(mut bytes: Vec<u8>, edits: &[(Index, u8, u8)]) -> Vec<u8> {
    for (at, kind, value) in edits {
        let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
        match kind % 5 {
            0 => bytes.insert(at, *value),
            1 if !bytes.is_empty() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ if !bytes.is_empty() => bytes[at] = *value,
            _ => {}
        }
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    // Values that turn lengths and structure upside down come up more often.
    let value = prop_oneof![Just(0), Just(0xff), Just(b'"'), Just(b'}'), Just(b'9'), any::<u8>()];
    prop::collection::vec((any::<Index>(), any::<u8>(), value), 1..6)
}

fn valid_safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}} "#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(0..19);
    bytes
}

fn valid_gguf() -> Vec<u8> {
    let mut gguf = Gguf::model("llama");
    gguf.set("tokenizer.ggml.model", Meta::Str("llama"));
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁"].map(String::from);
    gguf.set("tokenizer.ggml.tokens", Meta::Strs(tokens.to_vec()));
    gguf.set("tokenizer.ggml.token_type", Meta::I32s(vec![2, 3, 3, 1, 1, 1, 1]));
    gguf.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0, 0.0, 0.0, -2.0, -3.0, -1.0, -4.0]));
    gguf.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    gguf.bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        name in prop::sample::select(vec!["m.safetensors", "m.gguf", "m.safetensors.index.json"]),
    ) {
        try_bytes(name, &bytes);
    }

    #[test]
    fn arbitrary_headers_of_the_right_length_never_panic(
        header in r#"[{}\[\]":,a-z0-9 \\.-]{0,120}"#,
        data in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let header = format!("{{{header}");
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        try_bytes("m.safetensors", &bytes);
    }

    #[test]
    fn damaged_safetensors_never_panic(edits in edits()) {
        try_bytes("m.safetensors", &mutate(valid_safetensors(), &edits));
    }

    #[test]
    fn damaged_gguf_files_never_panic(edits in edits()) {
        try_bytes("m.gguf", &mutate(valid_gguf(), &edits));
    }

    #[test]
    fn damaged_files_of_every_block_type_never_panic(edits in edits()) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama.gguf");
        try_bytes("m.gguf", &mutate(fs::read(fixture).unwrap(), &edits));
    }

    #[test]
    fn damaged_indexes_never_panic(edits in edits()) {
        let directory = tempfile::tempdir().unwrap();
        let index = br#"{"metadata":{"total_size":19},"weight_map":{"a":"x.safetensors","b":"x.safetensors"}}"#;
        fs::write(directory.path().join("x.safetensors"), valid_safetensors()).unwrap();
        let index = mutate(index.to_vec(), &edits);
        fs::write(directory.path().join("model.safetensors.index.json"), index).unwrap();
        try_everything(directory.path());
    }
}

const DTYPES: [DType; 15] = [
    DType::F64,
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::F8E5M2,
    DType::I64,
    DType::I32,
    DType::I16,
    DType::I8,
    DType::U64,
    DType::U32,
    DType::U16,
    DType::U8,
    DType::Bool,
];

/// Tensors of any dtype and small shape, by name.
fn tensors() -> impl Strategy<Value = Vec<(TensorInfo, Vec<u8>)>> {
    let tensor = (prop::sample::select(DTYPES.to_vec()), prop::collection::vec(0usize..5, 0..4))
        .prop_flat_map(|(dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.size();
            (Just(dtype), Just(shape), prop::collection::vec(any::<u8>(), bytes))
        });
    let name = r#"[a-z0-9."\\é/]{1,8}"#;
    prop::collection::btree_map(name, tensor, 0..10).prop_map(|map: BTreeMap<_, _>| {
        map.into_iter()
            .map(|(name, (dtype, shape, bytes))| (TensorInfo { name, dtype, shape }, bytes))
            .collect()
    })
}

fn write(out: &Path, tensors: &[(TensorInfo, Vec<u8>)], shard_size: u64) {
    let plan = tensors.iter().map(|(info, _)| info.clone()).collect();
    let options = WriterOptions { plan, shard_size, ..WriterOptions::default() };
    let mut writer = HfWriter::create(out, options).unwrap();
    for (info, bytes) in tensors {
        writer.write_tensor(info, bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_string(), fs::read(&path).unwrap())
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn what_is_written_is_read_back_from_one_file_and_from_many(
        tensors in tensors(),
        shard_size in 1u64..400,
    ) {
        let directory = tempfile::tempdir().unwrap();
        for (name, shard_size) in [("one", u64::MAX), ("many", shard_size)] {
            let out = directory.path().join(name);
            write(&out, &tensors, shard_size);
            let model = Checkpoint::open(&out).unwrap();
            let infos: Vec<_> = tensors.iter().map(|(info, _)| info.clone()).collect();
            prop_assert_eq!(model.tensors(), infos);
            for (info, bytes) in &tensors {
                prop_assert_eq!(&model.read(&info.name).unwrap(), bytes);
                prop_assert_eq!(
                    tensor_digest(&model, &info.name).unwrap(),
                    prune_checkpoint::digest(bytes)
                );
            }
        }
    }

    #[test]
    fn the_order_of_plan_and_arrival_does_not_change_a_byte(
        tensors in tensors(),
        shuffled in any::<u64>(),
        shard_size in 1u64..400,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        write(&a, &tensors, shard_size);
        let mut other = tensors;
        let middle = shuffled as usize % other.len().max(1);
        other.rotate_left(middle);
        other.reverse();
        write(&b, &other, shard_size);
        prop_assert_eq!(contents(&a), contents(&b));
    }
}
