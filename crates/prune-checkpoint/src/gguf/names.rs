/// The Hugging Face name of tensor `gguf` of a Llama-family model of `blocks` blocks.
///
/// `None` for anything else, such as the experts of a mixture.
pub(super) fn hugging_face_name(gguf: &str, blocks: u64) -> Option<String> {
    match gguf {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_string()),
        "output_norm.weight" => return Some("model.norm.weight".to_string()),
        "output.weight" => return Some("lm_head.weight".to_string()),
        _ => {}
    }
    let (block, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let number: u64 = block.parse().ok()?;
    // `blk.+1` and `blk.01` would collide with `blk.1`.
    if number.to_string() != block || number >= blocks {
        return None;
    }
    let (module, parameter) = rest.split_once('.')?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    if parameter != "weight" && parameter != "bias" {
        return None;
    }
    Some(format!("model.layers.{block}.{module}.{parameter}"))
}

/// The GGUF name of tensor `name` of a Llama-family model: the inverse of [`hugging_face_name`].
pub(super) fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_string()),
        "model.norm.weight" => return Some("output_norm.weight".to_string()),
        "lm_head.weight" => return Some("output.weight".to_string()),
        _ => {}
    }
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let number: u64 = block.parse().ok()?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    let gguf = format!("blk.{block}.{module}.{parameter}");
    // Only what reads back as the same tensor.
    (hugging_face_name(&gguf, number + 1).as_deref() == Some(name)).then_some(gguf)
}

#[cfg(test)]
mod tests {
    use super::{gguf_name, hugging_face_name};

    #[test]
    fn names_of_the_converter_are_translated() {
        let name = |n| hugging_face_name(n, 12);
        assert_eq!(name("token_embd.weight").as_deref(), Some("model.embed_tokens.weight"));
        assert_eq!(
            name("blk.11.attn_output.weight").as_deref(),
            Some("model.layers.11.self_attn.o_proj.weight")
        );
        assert_eq!(
            name("blk.0.attn_k.bias").as_deref(),
            Some("model.layers.0.self_attn.k_proj.bias")
        );
    }

    #[test]
    fn names_go_back_and_forth() {
        for gguf in
            ["token_embd.weight", "output.weight", "blk.7.ffn_down.weight", "blk.0.attn_q.bias"]
        {
            let name = hugging_face_name(gguf, 12).unwrap();
            assert_eq!(gguf_name(&name).as_deref(), Some(gguf));
        }
        for name in [
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.01.mlp.up_proj.weight",
            "lm_head.bias",
        ] {
            assert_eq!(gguf_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_has_no_single_translation_is_refused() {
        for gguf in [
            "blk.0.ffn_gate_exps.weight",
            "blk.12.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.0.attn_q",
            "blk.0.attn_q.scale",
            "rope_freqs.weight",
            "",
        ] {
            assert_eq!(hugging_face_name(gguf, 12), None, "{gguf}");
        }
    }
}
