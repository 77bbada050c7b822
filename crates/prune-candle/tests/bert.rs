//! Encoders against transformers 5.24 (torch 2.15, eager attention, in f64) with the same weights.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod tiny_encoder;

use ndarray::{Array2, ArrayView2};
use prune_candle::{BertModel, Error, LlamaConfig, load_model};
use prune_core::{BlockModel, LayerId, ModelKind, TensorSource};
use serde_json::json;
use tiny_encoder::{config, weights};

const TOKENS: [u32; 5] = [2, 5, 9, 14, 3];

/// The hidden states that enter block 0 and leave every block.
fn hidden_states(
    model: &dyn BlockModel,
    source: &dyn TensorSource,
    tokens: &[u32],
) -> Vec<Array2<f32>> {
    let mut states = vec![model.embed(source, tokens).unwrap()];
    for index in 0..model.blocks() {
        let block = model.load_block(source, index).unwrap();
        states.push(block.forward(states[index].view()).unwrap());
    }
    states
}

fn assert_rows(found: ArrayView2<'_, f32>, rows: &[(usize, [f64; 8])]) {
    for (row, expected) in rows {
        for (i, (found, expected)) in found.row(*row).iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 3e-6, "row {row}, {i}: found {found}, expected {expected}");
        }
    }
}

#[test]
fn hidden_states_of_every_block_are_those_of_transformers() {
    let json = config("bert", "gelu");
    let source = weights(&json, "", |name| name);
    let model = BertModel::new(&json, &source).unwrap();
    let states = hidden_states(&model, &source, &TOKENS);
    assert_rows(
        states[0].view(),
        &[
            (
                0,
                [
                    1.022961, 1.5437718, 1.2895329, 0.4600042, -0.4784232, -1.138659, -1.3048822,
                    -0.8768397,
                ],
            ),
            (
                3,
                [
                    -0.1336051, 0.9131309, 1.4139241, 1.1486619, 0.350551, -0.5835971, -1.3155968,
                    -1.5570123,
                ],
            ),
        ],
    );
    assert_rows(
        states[1].view(),
        &[
            (
                0,
                [
                    -1.7407795, 0.4093033, -0.5768779, -0.5651475, 1.9601142, 0.3118218, -0.375034,
                    0.8179376,
                ],
            ),
            (
                3,
                [
                    -1.8057547, 0.3981379, -0.3515909, -0.5433041, 1.955058, 0.4264383, -0.5093566,
                    0.7062751,
                ],
            ),
        ],
    );
    assert_rows(
        states[2].view(),
        &[
            (
                0,
                [
                    -0.9617588, 1.3400085, -0.6440789, 0.3135162, 1.9022537, -1.0392254,
                    -0.8210488, 0.1661908,
                ],
            ),
            (
                3,
                [
                    -0.9791312, 1.3517829, -0.5965373, 0.2956501, 1.8990812, -1.0148233,
                    -0.8582896, 0.1644519,
                ],
            ),
        ],
    );
}

#[test]
fn each_activation_is_that_of_transformers() {
    for (activation, first, fourth) in [
        (
            "gelu_new",
            [
                -0.9617639, 1.3400256, -0.6440727, 0.3134682, 1.902241, -1.0392157, -0.8210591,
                0.1662283,
            ],
            [
                -0.9791359, 1.3517974, -0.5965326, 0.2956067, 1.8990694, -1.0148153, -0.8582971,
                0.1644867,
            ],
        ),
        (
            "relu",
            [
                -0.9365996, 1.3133144, -0.672773, 0.4101865, 1.9137502, -1.0736135, -0.7896637,
                0.1000226,
            ],
            [
                -0.9521536, 1.3245029, -0.6313166, 0.3954704, 1.9112453, -1.0545479, -0.8223801,
                0.0994748,
            ],
        ),
    ] {
        let json = config("bert", activation);
        let source = weights(&json, "", |name| name);
        let model = BertModel::new(&json, &source).unwrap();
        let states = hidden_states(&model, &source, &TOKENS);
        assert_rows(states[2].view(), &[(0, first), (3, fourth)]);
    }
}

#[test]
fn roberta_counts_positions_as_transformers_does() {
    let json = config("roberta", "gelu");
    let source = weights(&json, "roberta.", |name| name);
    let model = BertModel::new(&json, &source).unwrap();
    // With a padding token in the middle, which has a position of its own.
    let states = hidden_states(&model, &source, &[0, 5, 9, 1, 14, 2]);
    assert_rows(
        states[2].view(),
        &[
            (
                0,
                [
                    -0.9282723, 1.3089631, -0.7325127, 0.3658902, 1.9050188, -1.089685, -0.7465772,
                    0.1624623,
                ],
            ),
            (
                3,
                [
                    -0.9337828, 1.3119939, -0.7219361, 0.359822, 1.9059181, -1.0821589, -0.7557669,
                    0.1624501,
                ],
            ),
            (
                4,
                [
                    -0.9594127, 1.3228856, -0.6650823, 0.3369648, 1.9064324, -1.0519212,
                    -0.8018306, 0.1653674,
                ],
            ),
        ],
    );
}

#[test]
fn prefixes_and_old_names_of_norms_change_nothing() {
    let json = config("bert", "gelu");
    let plain = weights(&json, "", |name| name);
    let old = |name: String| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
    };
    let renamed = weights(&json, "bert.", old);
    let states = |source| hidden_states(&BertModel::new(&json, source).unwrap(), source, &TOKENS);
    assert_eq!(states(&plain), states(&renamed));
}

#[test]
fn more_tokens_than_a_tile_attend_to_all_of_them() {
    let mut json = config("bert", "gelu");
    json["max_position_embeddings"] = 300.into();
    let source = weights(&json, "", |name| name);
    let model = BertModel::new(&json, &source).unwrap();
    let tokens: Vec<u32> = (0..300).map(|i| i * 7 % 16).collect();
    let hidden = model.embed(&source, &tokens).unwrap();
    let block = model.load_block(&source, 0).unwrap();
    let whole = block.forward(hidden.view()).unwrap();
    // Attention knows no order but the positions in the hidden states: turned round, they give the
    // same rows, turned round.
    let turned = hidden.slice(ndarray::s![..;-1, ..]);
    let back = block.forward(turned).unwrap();
    for (a, b) in whole.outer_iter().zip(back.outer_iter().rev()) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}

#[test]
fn every_linear_layer_shows_its_input() {
    let json = config("bert", "gelu");
    let source = weights(&json, "", |name| name);
    let model = BertModel::new(&json, &source).unwrap();
    assert_eq!(model.layers().len(), 12);
    assert_eq!(model.layers()[6].id.as_str(), "encoder.layer.1.attention.self.query");
    assert_eq!(model.layers()[6].block, Some(1));
    let hidden = model.embed(&source, &TOKENS).unwrap();
    let block = model.load_block(&source, 0).unwrap();
    let mut seen: Vec<(LayerId, Array2<f32>)> = Vec::new();
    block
        .observe(hidden.view(), &mut |ids, input| {
            seen.extend(ids.iter().map(|id| (id.clone(), input.to_owned())));
            Ok(())
        })
        .unwrap();
    let names: Vec<_> = seen.iter().map(|(id, _)| id.clone()).collect();
    let expected: Vec<_> = model.layers()[..6].iter().map(|layer| layer.id.clone()).collect();
    assert_eq!(names, expected);
    assert_eq!(seen[0].1, hidden);
    for ((_, input), layer) in seen.iter().zip(model.layers()) {
        assert_eq!(input.dim(), (5, layer.shape[1]), "{}", layer.id);
    }
}

#[test]
fn what_an_encoder_cannot_do_is_refused_by_name() {
    let json = config("bert", "gelu");
    let source = weights(&json, "", |name| name);
    let model = load_model(&json, &source).unwrap();
    assert_eq!(model.kind(), ModelKind::Encoder);
    let error = model.load_head(&source).err().unwrap().to_string();
    assert!(error.contains("`bert` is an encoder"), "{error}");
    let error = model.embed(&source, &[0; 11]).unwrap_err().to_string();
    assert!(error.contains("11 tokens; expected at most 10"), "{error}");
    let error = model.embed(&source, &[16]).unwrap_err().to_string();
    assert!(error.contains("token id is 16; expected below 16"), "{error}");
    let error = model.load_block(&source, 2).err().unwrap().to_string();
    assert!(error.contains("block index is 2"), "{error}");
    assert_eq!(model.embed(&source, &[]).unwrap().dim(), (0, 8));
    let empty = Array2::zeros((0, 8));
    assert_eq!(model.load_block(&source, 0).unwrap().forward(empty.view()).unwrap(), empty);

    let missing = weights(&json, "", |name| name.replace("1.output.dense.bias", "1.gone"));
    let error = BertModel::new(&json, &missing).err().unwrap().to_string();
    assert!(error.contains("encoder.layer.1.output.dense.bias"), "{error}");
    let mut wide = json.clone();
    wide["intermediate_size"] = 13.into();
    let error = BertModel::new(&wide, &source).err().unwrap().to_string();
    assert!(error.contains("encoder.layer.0.intermediate.dense.weight"), "{error}");
}

#[test]
fn the_chooser_names_every_family_it_knows() {
    let source = weights(&config("bert", "gelu"), "", |name| name);
    let error = load_model(&json!({"model_type": "mamba"}), &source).err().unwrap();
    assert!(matches!(error, Error::UnsupportedModel { .. }));
    let text = error.to_string();
    assert!(text.contains("`mamba`") && text.contains("llama") && text.contains("bert"), "{text}");
    // A Llama is asked for its own tensors.
    let llama = json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 16});
    assert!(LlamaConfig::from_json(&llama).is_ok());
    let error = load_model(&llama, &source).err().unwrap().to_string();
    assert!(error.contains("model.layers.0.self_attn.q_proj.weight"), "{error}");
}
