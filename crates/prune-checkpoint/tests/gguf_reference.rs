#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! GGUF files against what the reference implementations read from them.

use std::path::PathBuf;

use prune_checkpoint::{Checkpoint, Contents, Format};
use prune_core::{DType, TensorSource};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn every_tensor_has_the_bits_that_the_reference_gives() {
    let gguf = Checkpoint::open(&fixture("llama.gguf")).unwrap();
    let reference = Checkpoint::open(&fixture("llama.safetensors")).unwrap();
    assert_eq!(gguf.format(), Format::Gguf);
    assert_eq!(gguf.tensors(), reference.tensors());
    for tensor in gguf.tensors() {
        let (found, expected) = (gguf.read(&tensor.name), reference.read(&tensor.name));
        assert!(found.unwrap() == expected.unwrap(), "{}", tensor.name);
    }
}

#[test]
fn f16_and_bf16_stay_as_they_are_and_blocks_become_f32() {
    let gguf = Checkpoint::open(&fixture("llama.gguf")).unwrap();
    let dtype = |name| gguf.info(name).unwrap().dtype;
    assert_eq!(dtype("lm_head.weight"), DType::F16);
    assert_eq!(dtype("model.layers.0.self_attn.k_proj.weight"), DType::BF16);
    assert_eq!(dtype("model.layers.0.self_attn.q_proj.weight"), DType::F32);
    assert_eq!(dtype("model.layers.3.mlp.down_proj.weight"), DType::F32);
}

#[test]
fn every_range_of_a_tensor_is_a_slice_of_the_whole() {
    let gguf = Checkpoint::open(&fixture("llama.gguf")).unwrap();
    for tensor in gguf.tensors() {
        let whole = gguf.read(&tensor.name).unwrap();
        for start in (0..whole.len()).step_by(37) {
            for length in [0, 1, 3, 4, 31, 128, 131, 1025, whole.len()] {
                let length = length.min(whole.len() - start);
                let mut part = vec![0xa5; length];
                gguf.read_at(&tensor.name, start, &mut part).unwrap();
                assert!(
                    part == whole[start..start + length],
                    "{} from {start} for {length}",
                    tensor.name
                );
            }
        }
    }
}

#[test]
fn the_configuration_says_what_the_metadata_says() {
    let gguf = Checkpoint::open(&fixture("llama.gguf")).unwrap();
    assert_eq!(
        gguf.config().unwrap(),
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": true,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": 8,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 256,
            "max_position_embeddings": 128,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": 2,
            "num_hidden_layers": 10,
            "num_key_value_heads": 1,
            "pad_token_id": null,
            "rms_norm_eps": 1e-5,
            "rope_scaling": null,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": 5,
        })
    );
}

#[test]
fn merges_of_a_sentencepiece_vocabulary_are_those_that_transformers_derives() {
    let gguf = Checkpoint::open(&fixture("llama.gguf")).unwrap();
    let tokenizer: Value =
        serde_json::from_slice(&gguf.tokenizer_json().unwrap().unwrap()).unwrap();
    let expected: Value =
        serde_json::from_slice(&std::fs::read(fixture("llama_merges.json")).unwrap()).unwrap();
    assert_eq!(tokenizer["model"]["merges"], expected);
    assert_eq!(tokenizer["model"]["vocab"]["<0x00>"], 3);
    assert_eq!(tokenizer["model"]["unk_token"], "<unk>");
    assert_eq!(tokenizer["added_tokens"].as_array().unwrap().len(), 3);
    assert_eq!(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
}

#[test]
fn a_gguf_file_brings_the_files_of_a_model_directory() {
    let gguf = Checkpoint::open(&fixture("llama.gguf")).unwrap();
    let files = gguf.auxiliary_files().unwrap();
    let names: Vec<_> = files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        names,
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    );
    let json = |index: usize| -> Value {
        let Contents::Bytes(bytes) = &files[index].contents else { panic!() };
        serde_json::from_slice(bytes).unwrap()
    };
    assert_eq!(json(0), gguf.config().unwrap());
    assert_eq!(json(1), json!({ "bos_token_id": 1, "eos_token_id": 2 }));
    assert_eq!(json(3)["chat_template"], "{{ messages }}");
    assert_eq!(json(3)["bos_token"], "<s>");
    assert_eq!(json(3)["unk_token"], "<unk>");
    assert_eq!(json(3)["model_max_length"], 128);
}
