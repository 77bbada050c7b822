#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Configurations and tokenizers that GGUF metadata can describe.

mod gguf_builder;

use gguf_builder::{Gguf, Meta};
use prune_checkpoint::{Checkpoint, Error};
use prune_core::TensorSource;
use serde_json::{Value, json};

fn open(gguf: &Gguf) -> Checkpoint {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, gguf.bytes()).unwrap();
    // The open file outlives its directory.
    Checkpoint::open(&path).unwrap()
}

fn tokens(list: &[&str]) -> Meta {
    Meta::Strs(list.iter().map(ToString::to_string).collect())
}

fn byte_level(pre: &'static str) -> Gguf {
    let mut gguf = Gguf::model("llama");
    gguf.set("tokenizer.ggml.model", Meta::Str("gpt2"));
    gguf.set("tokenizer.ggml.pre", Meta::Str(pre));
    gguf.set("tokenizer.ggml.tokens", tokens(&["<s>", "a", "b", "ab", "<think>", "[PAD5]"]));
    gguf.set("tokenizer.ggml.token_type", Meta::I32s(vec![3, 1, 1, 1, 4, 5]));
    gguf.set("tokenizer.ggml.merges", tokens(&["a b"]));
    gguf.set("tokenizer.ggml.bos_token_id", Meta::U32(0));
    gguf
}

fn tokenizer(gguf: &Gguf) -> Value {
    serde_json::from_slice(&open(gguf).tokenizer_json().unwrap().unwrap()).unwrap()
}

fn field_error(gguf: &Gguf) -> String {
    let error = open(gguf).tokenizer_json().unwrap_err();
    assert!(matches!(error, Error::Field { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn only_llama_files_have_their_queries_permuted() {
    let rows = |architecture| -> Vec<f32> {
        let values = open(&Gguf::model(architecture))
            .read_f32("model.layers.0.self_attn.q_proj.weight")
            .unwrap();
        values.chunks(8).map(|row| row[0] / 8.0).collect()
    };
    assert_eq!(rows("llama"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(rows("qwen2"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(rows("qwen3"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn numbers_stored_as_f32_are_written_in_their_shortest_form() {
    let config = open(&Gguf::model("qwen3")).config().unwrap();
    assert_eq!(config["rms_norm_eps"], json!(1e-6));
    assert_eq!(config["architectures"], json!(["Qwen3ForCausalLM"]));
    assert_eq!(config["tie_word_embeddings"], true);
    assert_eq!(config["eos_token_id"], Value::Null);
    assert_eq!(config["head_dim"], 4);
}

#[test]
fn a_model_with_its_own_output_matrix_is_not_tied() {
    let mut gguf = Gguf::model("llama");
    gguf.tensor("output.weight", &[8, 3], 24);
    let model = open(&gguf);
    assert_eq!(model.config().unwrap()["tie_word_embeddings"], false);
    assert!(model.info("lm_head.weight").is_ok());
}

#[test]
fn linear_scaling_of_positions_is_kept_and_other_scalings_are_refused() {
    let mut gguf = Gguf::model("llama");
    gguf.set("llama.rope.scaling.type", Meta::Str("linear"));
    gguf.set("llama.rope.scaling.factor", Meta::F32(2.5));
    let scaling = &open(&gguf).config().unwrap()["rope_scaling"];
    assert_eq!(*scaling, json!({ "rope_type": "linear", "type": "linear", "factor": 2.5 }));

    gguf.set("llama.rope.scaling.type", Meta::Str("yarn"));
    let error = open(&gguf).config().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains("yarn"), "{error}");
}

#[test]
fn the_factors_of_llama_3_become_its_scaling() {
    let mut gguf = Gguf::model("llama");
    gguf.set("llama.attention.head_count", Meta::U32(1));
    gguf.set("llama.rope.freq_base", Meta::F32(500_000.0));
    gguf.tensor("rope_freqs.weight", &[4], 4);
    // Heads of 8 rows: frequencies 1, 1/27, 1/707 and 1/18803. Only the last turns slower than
    // once in 8192 positions, and the third is between 2048 and 8192:
    // smooth = (8192 / (2 pi 707.1) - 1) / 3 = 0.28128; 1 / (0.71872 / 8 + 0.28128) = 2.69440.
    let factors = [1.0f32, 1.0, 2.694_397, 8.0];
    gguf.tensors.last_mut().unwrap().data = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
    let model = open(&gguf);
    assert_eq!(
        model.config().unwrap()["rope_scaling"],
        json!({
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    );
    assert!(model.tensors().iter().all(|t| !t.name.contains("rope")));
}

#[test]
fn byte_level_tokenizers_split_as_their_originals_do() {
    let smollm = tokenizer(&byte_level("smollm"));
    let parts = &smollm["pre_tokenizer"]["pretokenizers"];
    assert_eq!(parts[0], json!({ "type": "Digits", "individual_digits": true }));
    assert_eq!(parts[1]["use_regex"], true);
    assert_eq!(smollm["post_processor"], Value::Null);

    let llama = tokenizer(&byte_level("llama-bpe"));
    let regex = llama["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap();
    assert!(regex.contains(r"\p{N}{1,3}"));
    assert_eq!(llama["model"]["ignore_merges"], true);
    assert_eq!(llama["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");

    let qwen = tokenizer(&byte_level("qwen2"));
    assert_eq!(qwen["normalizer"], json!({ "type": "NFC" }));

    assert_eq!(tokenizer(&byte_level("gpt-2"))["pre_tokenizer"]["type"], "ByteLevel");
    assert!(field_error(&byte_level("deepseek-llm")).contains("deepseek-llm"));
}

#[test]
fn control_and_user_tokens_are_added_and_fillers_dropped() {
    let tokenizer = tokenizer(&byte_level("gpt-2"));
    let added: Vec<_> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["id"].as_u64().unwrap(), t["special"].as_bool().unwrap()))
        .collect();
    assert_eq!(added, [(0, true), (4, false)]);
    assert_eq!(
        tokenizer["model"]["vocab"],
        json!({ "<s>": 0, "a": 1, "b": 2, "ab": 3, "<think>": 4 })
    );
    assert_eq!(tokenizer["model"]["merges"], json!(["a b"]));
}

#[test]
fn a_flag_in_the_file_decides_about_the_beginning_token() {
    let mut gguf = byte_level("llama-bpe");
    gguf.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    assert_eq!(tokenizer(&gguf)["post_processor"], Value::Null);
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let mut gguf = byte_level("gpt-2");
    gguf.set("tokenizer.ggml.merges", tokens(&["a c"]));
    assert!(field_error(&gguf).contains("merge 0"));

    let mut gguf = byte_level("gpt-2");
    gguf.unset("tokenizer.ggml.merges");
    assert!(field_error(&gguf).contains("merges"));

    let mut gguf = byte_level("gpt-2");
    gguf.set("tokenizer.ggml.tokens", tokens(&["<s>", "a", "b", "ab", "a", "[PAD5]"]));
    assert!(field_error(&gguf).contains("tokens 1 and 4"));

    let mut gguf = byte_level("gpt-2");
    gguf.set("tokenizer.ggml.token_type", Meta::I32s(vec![1]));
    assert!(field_error(&gguf).contains("token_type"));

    let mut gguf = byte_level("llama-bpe");
    gguf.set("tokenizer.ggml.bos_token_id", Meta::U32(6));
    assert!(field_error(&gguf).contains("bos_token_id"));

    let mut gguf = byte_level("gpt-2");
    gguf.set("tokenizer.ggml.model", Meta::Str("t5"));
    assert!(field_error(&gguf).contains("t5"));

    let mut gguf = byte_level("gpt-2");
    gguf.set("tokenizer.ggml.model", Meta::Str("llama"));
    gguf.unset("tokenizer.ggml.merges");
    gguf.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0]));
    assert!(field_error(&gguf).contains("scores"));
}

#[test]
fn a_file_without_a_vocabulary_has_no_tokenizer() {
    let model = open(&Gguf::model("llama"));
    assert_eq!(model.tokenizer_json().unwrap(), None);
    assert_eq!(model.auxiliary_files().unwrap().len(), 2);
}
