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

#[cfg(test)]
mod tests {
    use super::hugging_face_name;

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
