#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! GGUF files that are written: bytes, and models that come back as they were.

use std::path::{Path, PathBuf};

use prune_checkpoint::{
    BlockType, Checkpoint, Error, Format, GgufExport, GgufOptions, GgufTensor, GgufType, GgufTypes,
    GgufValue, GgufWriter, HfWriter, WriterOptions,
};
use prune_core::{DType, QuantScheme, QuantizedMatrix, QuantizedParts, TensorInfo, TensorSource};
use serde_json::{Value, json};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, b| {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
        crc
    })
}

fn replacing() -> GgufOptions {
    GgufOptions { overwrite: true, ..GgufOptions::default() }
}

fn q4_0() -> GgufType {
    GgufType::Blocks(BlockType::Q4_0)
}

/// Written by gguf 0.19.0 (`GGUFWriter`) and read back by it.
#[test]
fn a_file_matches_that_of_the_python_package() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("w.gguf");
    let metadata = vec![
        ("general.architecture".to_string(), GgufValue::String("llama".to_string())),
        ("general.alignment".to_string(), GgufValue::U32(32)),
    ];
    let tensor = GgufTensor { name: "w".to_string(), shape: vec![2, 32], kind: q4_0() };
    let writer = GgufWriter::create(&out, metadata, vec![tensor], &GgufOptions::default()).unwrap();
    let sine = |i: usize, j: usize| (7.0 * i as f64 + 3.0 * j as f64).sin() as f32;
    let values: Vec<f32> = (0..64).map(|k| sine(k / 32, k % 32)).collect();
    let bytes = BlockType::Q4_0.encode("w", &values).unwrap();
    writer.write("w", &bytes).unwrap();
    writer.finish().unwrap();
    let file = std::fs::read(&out).unwrap();
    assert_eq!(file.len(), 224);
    assert_eq!(crc32(&file), 0x552b_60cc);
    // 143 bytes of header, filled up to the alignment, as the 36 bytes of data are.
    assert_eq!(file[135..143], 0u64.to_le_bytes(), "the offset of the tensor");
    assert!(file[143..160].iter().chain(&file[196..]).all(|b| *b == 0));
    let hex: String = file[160..196].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "00b0e837ca55ac738e916fb04fd02ff01ff1ff2f0df40bf619e837da45bc738e916fb04f");
    let back = BlockType::Q4_0.decode("w", &file[160..196]).unwrap();
    assert_eq!(back[..6], [-0.0, 0.125, -0.25, 0.375, -0.5, 0.625]);
    assert!(back[0].is_sign_negative());
    for (a, want) in
        back[32..].iter().zip([0.624695, -0.499756, 0.374817, -0.249878, 0.124939, 0.0])
    {
        assert!((f64::from(*a) - want).abs() < 5.1e-7, "{a} {want}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn plans_that_ggml_would_refuse_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("w.gguf");
    let tensor = |name: &str, shape: &[usize], kind| GgufTensor {
        name: name.to_string(),
        shape: shape.to_vec(),
        kind,
    };
    let f32s = GgufType::Plain(DType::F32);
    for (tensors, word) in [
        (vec![tensor("w", &[2, 33], q4_0())], "32 elements"),
        (vec![tensor("w", &[2], f32s), tensor("w", &[3], f32s)], "twice"),
        (vec![tensor(&"w".repeat(64), &[2], f32s)], "63"),
        (vec![tensor("w", &[], f32s)], "dimensions"),
        (vec![tensor("w", &[1, 1, 1, 1, 1], f32s)], "dimensions"),
        (vec![tensor("w", &[2], GgufType::Plain(DType::U8))], "U8"),
        (vec![tensor("w", &[usize::MAX, 2], f32s)], "divide"),
    ] {
        let e = GgufWriter::create(&out, Vec::new(), tensors, &GgufOptions::default()).unwrap_err();
        assert!(matches!(e, Error::Plan { .. }));
        assert!(e.to_string().contains(word), "{e}");
    }
    let twice = vec![("k".to_string(), GgufValue::U32(1)), ("k".to_string(), GgufValue::U32(2))];
    assert!(matches!(
        GgufWriter::create(&out, twice, Vec::new(), &GgufOptions::default()),
        Err(Error::Plan { .. })
    ));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn tensors_are_written_once_and_all() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("w.gguf");
    let create = |overwrite| {
        let kind = GgufType::Plain(DType::F32);
        let tensors = ["a", "b"].map(|n| GgufTensor { name: n.into(), shape: vec![1], kind });
        GgufWriter::create(
            &out,
            Vec::new(),
            tensors.to_vec(),
            &GgufOptions { overwrite, ..GgufOptions::default() },
        )
    };
    let writer = create(false).unwrap();
    assert!(matches!(writer.write("c", &[0; 4]), Err(Error::NotPlanned { .. })));
    assert!(matches!(writer.write("a", &[0; 5]), Err(Error::PlanMismatch { .. })));
    writer.write("a", &[0; 4]).unwrap();
    assert!(matches!(writer.write("a", &[0; 4]), Err(Error::WrittenTwice { .. })));
    let e = writer.finish().unwrap_err();
    assert!(matches!(e, Error::NotWritten { ref tensor, missing: 1 } if tensor == "b"), "{e}");
    assert!(!out.exists());
    std::fs::write(&out, b"old").unwrap();
    assert!(matches!(create(false), Err(Error::OutputExists { .. })));
    let writer = create(true).unwrap();
    writer.write("a", &[0; 4]).unwrap();
    writer.write("b", &[0; 4]).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
    writer.finish().unwrap();
    assert!(std::fs::read(&out).unwrap().starts_with(b"GGUF"));
}

fn tiny_llama() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-llama")
}

fn export(source: &Checkpoint, out: &Path, types: &GgufTypes) -> Result<Checkpoint, Error> {
    let export = GgufExport::create(out, source, types, &replacing())?;
    for tensor in source.tensors() {
        export.write(&tensor.name, &source.read_f32(&tensor.name).unwrap())?;
    }
    export.finish()?;
    Checkpoint::open(out)
}

#[test]
fn a_model_comes_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(&tiny_llama()).unwrap();
    let out = directory.path().join("tiny.gguf");
    let types = GgufTypes::uniform(GgufType::Plain(DType::F32));
    let back = export(&source, &out, &types).unwrap();
    assert_eq!(back.format(), Format::Gguf);
    assert_eq!(back.tensors().len(), source.tensors().len());
    for tensor in source.tensors() {
        assert_eq!(back.info(&tensor.name).unwrap().shape, tensor.shape);
        let (a, b) = (source.read_f32(&tensor.name), back.read_f32(&tensor.name));
        assert!(a.unwrap() == b.unwrap(), "{}", tensor.name);
    }
    let (config, stored) = (source.config().unwrap(), back.config().unwrap());
    for (field, value) in config.as_object().unwrap() {
        if let Some(found) = stored.get(field)
            && field != "torch_dtype"
        {
            assert_eq!(found, value, "{field}");
        }
    }
    let parse = |model: &Checkpoint| -> Value {
        serde_json::from_slice(&model.tokenizer_json().unwrap().unwrap()).unwrap()
    };
    let (a, b) = (parse(&source), parse(&back));
    assert_eq!(a["model"]["vocab"], b["model"]["vocab"]);
    let joined = |v: &Value| -> Vec<String> {
        let text = |m: &Value| match m {
            Value::String(s) => s.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        v["model"]["merges"].as_array().unwrap().iter().map(text).collect()
    };
    assert_eq!(joined(&a), joined(&b));
    let names = |v: &Value| -> Vec<(u64, String, bool)> {
        let one = |t: &Value| {
            let content = t["content"].as_str().unwrap().to_string();
            (t["id"].as_u64().unwrap(), content, t["special"].as_bool().unwrap())
        };
        v["added_tokens"].as_array().unwrap().iter().map(one).collect()
    };
    assert_eq!(names(&a), names(&b));
}

#[test]
fn every_type_is_written_and_read() {
    let directory = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(&tiny_llama()).unwrap();
    for name in [
        "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "NVFP4", "Q2_K", "Q3_K",
        "Q4_K", "Q5_K", "Q6_K",
    ] {
        let out = directory.path().join("tiny.gguf");
        let kind: GgufType = name.parse().unwrap();
        let back = export(&source, &out, &GgufTypes::standard(kind)).unwrap();
        let tensor = "model.layers.0.self_attn.q_proj.weight";
        let (a, b) = (source.read_f32(tensor).unwrap(), back.read_f32(tensor).unwrap());
        let error: f32 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
        let size: f32 = a.iter().map(|x| x * x).sum();
        // Two bits keep most of the energy, eight nearly all.
        assert!(error < 0.2 * size, "{name}: {error} of {size}");
    }
}

#[test]
fn quantised_matrices_keep_their_codes_and_row_order() {
    let directory = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(&tiny_llama()).unwrap();
    let out = directory.path().join("tiny.gguf");
    let export =
        GgufExport::create(&out, &source, &GgufTypes::uniform(q4_0()), &GgufOptions::default())
            .unwrap();
    let name = "model.layers.0.self_attn.k_proj.weight";
    let shape = source.info(name).unwrap().shape.clone();
    let parts = QuantizedParts {
        scheme: QuantScheme::int(4).unwrap().group(32),
        codes: ndarray::Array2::from_shape_fn((shape[0], shape[1]), |(r, c)| ((r + c) % 16) as u8),
        scales: ndarray::Array2::from_shape_fn((shape[0], shape[1] / 32), |(r, g)| {
            0.125 + 0.25 * ((r + g) % 7) as f32
        }),
        zeros: None,
        global_scale: None,
        group_index: None,
        column_scales: None,
    };
    let matrix = QuantizedMatrix::from_parts(name, parts).unwrap();
    assert!(matches!(
        export.write_quantized("model.layers.0.mlp.down_proj.weight", &matrix),
        Err(Error::PlanMismatch { .. })
    ));
    for tensor in source.tensors() {
        match tensor.name == name {
            true => export.write_quantized(name, &matrix).unwrap(),
            false => export.write(&tensor.name, &source.read_f32(&tensor.name).unwrap()).unwrap(),
        }
    }
    export.finish().unwrap();
    let back = Checkpoint::open(&out).unwrap().read_matrix(name).unwrap();
    assert_eq!(back, matrix.dequantize());
}

/// A model of one block, two heads of four rows, with this configuration.
fn model(
    path: &Path,
    config: &Value,
    tokenizer: Option<&Value>,
    extra: Option<&str>,
) -> Checkpoint {
    let mut plan: Vec<TensorInfo> = [
        ("model.embed_tokens.weight", vec![5, 8]),
        ("model.norm.weight", vec![8]),
        ("model.layers.0.self_attn.q_proj.weight", vec![8, 8]),
        ("model.layers.0.self_attn.q_proj.bias", vec![8]),
        ("model.layers.0.self_attn.k_proj.weight", vec![4, 8]),
    ]
    .into_iter()
    .map(|(name, shape)| TensorInfo { name: name.into(), dtype: DType::F32, shape })
    .collect();
    if let Some(name) = extra {
        plan.push(TensorInfo { name: name.into(), dtype: DType::F32, shape: vec![2, 8] });
    }
    let options = WriterOptions { plan: plan.clone(), overwrite: true, ..WriterOptions::default() };
    let mut writer = HfWriter::create(path, options).unwrap();
    for tensor in &plan {
        let values: Vec<u8> =
            (0..tensor.numel()).flat_map(|i| (i as f32 * 0.5).to_le_bytes()).collect();
        writer.write_tensor(tensor, &values).unwrap();
    }
    writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
    if let Some(tokenizer) = tokenizer {
        writer.add_file("tokenizer.json", tokenizer.to_string().as_bytes()).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(path).unwrap()
}

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "vocab_size": 5,
        "bos_token_id": 1, "eos_token_id": [2, 3],
    })
}

fn f32s() -> GgufTypes {
    GgufTypes::uniform(GgufType::Plain(DType::F32))
}

#[test]
fn queries_biases_and_scaled_positions_survive_for_every_architecture() {
    let directory = tempfile::tempdir().unwrap();
    let (path, out) = (directory.path().join("model"), directory.path().join("m.gguf"));
    for kind in ["llama", "mistral", "qwen2", "qwen3"] {
        let mut config = config();
        config["model_type"] = json!(kind);
        let source = model(&path, &config, None, None);
        let back = export(&source, &out, &f32s()).unwrap();
        for tensor in source.tensors() {
            let (a, b) = (source.read_f32(&tensor.name), back.read_f32(&tensor.name));
            assert_eq!(a.unwrap(), b.unwrap(), "{kind}: {}", tensor.name);
        }
    }
    for rope in [
        json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }),
        json!({ "rope_parameters": { "rope_type": "linear", "factor": 4.0, "rope_theta": 1e6 } }),
    ] {
        let mut config = config();
        config.as_object_mut().unwrap().extend(rope.as_object().unwrap().clone());
        let back = export(&model(&path, &config, None, None), &out, &f32s()).unwrap();
        assert_eq!(back.config().unwrap()["rope_scaling"]["factor"], 4.0);
    }
    let mut config = config();
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    config["rope_scaling"] = llama3.clone();
    // Heads of four rows have two frequencies; the lower one has to be low enough to tell.
    config["rope_theta"] = json!(1e12);
    let back = export(&model(&path, &config, None, None), &out, &f32s()).unwrap();
    assert_eq!(back.config().unwrap()["rope_scaling"], llama3);
}

#[test]
fn what_llama_cpp_has_no_word_for_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, out) = (directory.path().join("model"), directory.path().join("m.gguf"));
    for (field, value, word) in [
        ("model_type", json!("gpt2"), "model_type"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_attention_heads", json!(3), "num_attention_heads"),
        ("num_key_value_heads", json!(7), "num_key_value_heads"),
        ("hidden_size", json!("8"), "hidden_size"),
        ("rms_norm_eps", json!(-1), "rms_norm_eps"),
        ("rms_norm_eps", Value::Null, "rms_norm_eps"),
        ("intermediate_size", json!(1u64 << 40), "intermediate_size"),
        ("rope_scaling", json!({ "rope_type": "yarn" }), "rope_scaling"),
        ("rope_scaling", json!({ "rope_type": "linear" }), "factor"),
        ("rope_scaling", json!({ "rope_type": "llama3", "factor": 8 }), "low_freq_factor"),
    ] {
        let mut config = config();
        config[field] = value;
        let e = GgufExport::create(
            &out,
            &model(&path, &config, None, None),
            &f32s(),
            &GgufOptions::default(),
        );
        let e = e.unwrap_err();
        assert!(matches!(e, Error::Field { .. }), "{e}");
        assert!(e.to_string().contains(word), "{e}");
    }
    let odd = model(&path, &config(), None, Some("model.layers.0.mlp.experts.0.weight"));
    let e = GgufExport::create(&out, &odd, &f32s(), &GgufOptions::default()).unwrap_err();
    assert!(matches!(e, Error::Unsupported { .. }), "{e}");
}

fn tokenizer() -> Value {
    json!({
        "added_tokens": [{ "id": 0, "content": "<s>", "special": true }],
        "pre_tokenizer": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3 }, "merges": ["a b"] },
    })
}

#[test]
fn vocabularies_are_filled_up_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let (path, out) = (directory.path().join("model"), directory.path().join("m.gguf"));
    let back = export(&model(&path, &config(), Some(&tokenizer()), None), &out, &f32s()).unwrap();
    let json: Value = serde_json::from_slice(&back.tokenizer_json().unwrap().unwrap()).unwrap();
    assert_eq!(json["model"]["vocab"], tokenizer()["model"]["vocab"]);
    assert_eq!(json["model"]["merges"], json!(["a b"]));
    type Damage = fn(&mut Value);
    let cases: [(Damage, &str); 6] = [
        (|t| t["model"]["type"] = json!("Unigram"), "Unigram"),
        (|t| t["model"]["vocab"]["z"] = json!(5), "`z`"),
        (|t| t["model"]["vocab"]["z"] = json!(-1), "`z`"),
        (|t| t["added_tokens"][0]["id"] = json!(99), "`<s>`"),
        (|t| t["model"]["merges"] = json!(["ab", 3]), "merge 0"),
        (
            |t| t["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "Regex": "x" } }),
            "pre_tokenizer",
        ),
    ];
    for (damage, word) in cases {
        let mut tokenizer = tokenizer();
        damage(&mut tokenizer);
        let source = model(&path, &config(), Some(&tokenizer), None);
        let e = GgufExport::create(&out, &source, &f32s(), &replacing()).unwrap_err();
        assert!(matches!(e, Error::Field { .. }), "{e}");
        assert!(e.to_string().contains(word), "{e}");
    }
}

/// The merges of SentencePiece come back from the scores that were made of them.
#[test]
fn sentence_piece_merges_survive_as_scores() {
    let directory = tempfile::tempdir().unwrap();
    let (path, out) = (directory.path().join("model"), directory.path().join("m.gguf"));
    let tokenizer = json!({
        "added_tokens": [{ "id": 0, "content": "<unk>", "special": true }],
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }] },
        "model": {
            "type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
            "vocab": { "<unk>": 0, "a": 1, "b": 2, "ab": 3, "aba": 4 },
            "merges": [["a", "b"], ["ab", "a"]],
        },
    });
    let back = export(&model(&path, &config(), Some(&tokenizer), None), &out, &f32s()).unwrap();
    let json: Value = serde_json::from_slice(&back.tokenizer_json().unwrap().unwrap()).unwrap();
    assert_eq!(json["model"]["merges"], json!(["a b", "ab a"]));
    assert_eq!(json["model"]["byte_fallback"], true);
    assert_eq!(json["model"]["unk_token"], "<unk>");
}
