//! Token ids and sentence vectors against transformers 5.24 (`BertTokenizer`; `BertModel` in f64,
//! mean over tokens, scaled to length 1) with the same weights and vocabulary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod tiny_encoder;

use prune_candle::{BertModel, Pooling, Scaling, SentenceEncoder, SentenceOptions, Tokenizer};
use tiny_encoder::{config, tokenizer_json, weights};

const TEXTS: [&str; 3] = ["The cats sat on a mat.", "RUNNING dog, the", "a"];

fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn texts_get_their_special_tokens_and_no_padding() {
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json()).unwrap();
    let ids = TEXTS.map(|text| tokenizer.encode_with_special(text).unwrap());
    assert_eq!(ids[0], [2, 4, 5, 7, 6, 8, 10, 9, 12, 3]);
    assert_eq!(ids[1], [2, 14, 15, 13, 1, 4, 3]);
    assert_eq!(ids[2], [2, 10, 3]);
    assert_eq!(tokenizer.encode(TEXTS[1]).unwrap(), [14, 15, 13, 1, 4]);
    assert_eq!(tokenizer.frame().unwrap(), (vec![2], vec![3]));
}

#[test]
fn sentence_vectors_are_those_of_transformers() {
    let json = config("bert", "gelu");
    let source = weights(&json, "", |name| name);
    let model = BertModel::new(&json, &source).unwrap();
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json()).unwrap();
    let encoder = SentenceEncoder::new(&model, &source, &tokenizer).unwrap();
    let vectors = encoder.encode(&TEXTS).unwrap();
    for (vector, expected) in vectors.outer_iter().zip([
        [-0.3134647, 0.4070196, -0.2968104, 0.1718819, 0.6573487, -0.3761924, -0.2084907, 0.036589],
        [-0.3159813, 0.4144546, -0.2856781, 0.1626348, 0.6567533, -0.3732911, -0.219263, 0.0396713],
        [
            -0.3224073, 0.4395125, -0.2482673, 0.1304917, 0.6522517, -0.3629957, -0.2541226,
            0.0494072,
        ],
    ]) {
        assert_close(vector.as_slice().unwrap(), &expected);
    }
    // The vector of a text does not depend on the others.
    let alone = encoder.encode(&TEXTS[1..2]).unwrap();
    assert_eq!(alone.row(0), vectors.row(1));

    let options = SentenceOptions { max_tokens: Some(4), ..SentenceOptions::default() };
    let cut = SentenceEncoder::new(&model, &source, &tokenizer).unwrap().options(options);
    let cut = cut.encode(&TEXTS[..1]).unwrap();
    assert_close(
        cut.row(0).as_slice().unwrap(),
        &[
            -0.2769837, 0.3136041, -0.4083921, 0.2713978, 0.6474501, -0.3969936, -0.0877241,
            -0.0007237,
        ],
    );
}

#[test]
fn the_first_hidden_state_can_be_the_vector() {
    let json = config("bert", "gelu");
    let source = weights(&json, "", |name| name);
    let model = BertModel::new(&json, &source).unwrap();
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json()).unwrap();
    let options =
        SentenceOptions { pooling: Pooling::First, scaling: Scaling::None, max_tokens: None };
    let encoder = SentenceEncoder::new(&model, &source, &tokenizer).unwrap().options(options);
    let vector = encoder.encode(&["cat mat"]).unwrap();
    let mut hidden = prune_core::BlockModel::embed(&model, &source, &[2, 5, 9, 3]).unwrap();
    for index in 0..2 {
        let block = prune_core::BlockModel::load_block(&model, &source, index).unwrap();
        hidden = block.forward(hidden.view()).unwrap();
    }
    assert_eq!(vector.row(0), hidden.row(0));
}

#[test]
fn a_text_that_is_too_long_is_refused_unless_it_may_be_cut() {
    let json = config("bert", "gelu");
    let source = weights(&json, "", |name| name);
    let model = BertModel::new(&json, &source).unwrap();
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json()).unwrap();
    let encoder = SentenceEncoder::new(&model, &source, &tokenizer).unwrap();
    let error = encoder.encode(&[&"cat ".repeat(9)]).unwrap_err().to_string();
    assert!(error.contains("11 tokens; expected at most 10"), "{error}");

    let mut small = json.clone();
    small["vocab_size"] = 12.into();
    let source = weights(&small, "", |name| name);
    let model = BertModel::new(&small, &source).unwrap();
    let error = SentenceEncoder::new(&model, &source, &tokenizer).err().unwrap().to_string();
    assert!(error.contains("token id 15 was produced, the model has ids 0..12"), "{error}");
}
