//! Tokens through a KV cache, on the embedded tiny Llama.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use ndarray::{Array2, Axis, concatenate};
use prune_candle::*;
use prune_checkpoint::Checkpoint;
use prune_core::{BlockModel, Seed};
use prune_quant::kv::*;

struct Tiny {
    checkpoint: Checkpoint,
    model: LlamaModel,
    decoder: Decoder,
    tokenizer: Tokenizer,
    text: Vec<u32>,
}

fn tiny() -> Tiny {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-llama");
    let checkpoint = Checkpoint::open(&assets).unwrap();
    let model = LlamaModel::new(&checkpoint.config().unwrap(), &checkpoint).unwrap();
    let decoder = Decoder::load(&model, &checkpoint).unwrap();
    let tokenizer = Tokenizer::from_bytes(&checkpoint.tokenizer_json().unwrap().unwrap()).unwrap();
    let text = std::fs::read_to_string(assets.join("text/heldout.txt")).unwrap();
    let text = tokenizer.encode(&text[..8000]).unwrap();
    Tiny { checkpoint, model, decoder, tokenizer, text }
}

/// Logits of the whole sequence at once, a block at a time.
fn whole(tiny: &Tiny, tokens: &[u32]) -> Array2<f32> {
    let mut hidden = tiny.model.embed(&tiny.checkpoint, tokens).unwrap();
    for index in 0..tiny.model.blocks() {
        let block = tiny.model.load_block(&tiny.checkpoint, index).unwrap();
        hidden = block.forward(hidden.view()).unwrap();
    }
    tiny.model.load_head(&tiny.checkpoint).unwrap().logits(hidden.view()).unwrap()
}

fn through(
    tiny: &Tiny,
    tokens: &[u32],
    cache: &mut dyn KvStore,
    chunk: usize,
    order: KvOrder,
) -> Array2<f32> {
    let parts: Vec<Array2<f32>> = tokens
        .chunks(chunk)
        .map(|tokens| {
            let mut feed = [Feed { tokens, cache: &mut *cache }];
            let hidden = tiny.decoder.forward(&mut feed, order).unwrap();
            tiny.decoder.logits(hidden[0].view()).unwrap()
        })
        .collect();
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    concatenate(Axis(0), &views).unwrap()
}

fn dense(tiny: &Tiny) -> DenseKv {
    DenseKv::new(tiny.decoder.kv_shape()).unwrap()
}

fn largest_difference(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_dense_cache_gives_the_logits_of_the_whole_sequence() {
    let tiny = tiny();
    // More than one tile of queries and one block of a reader.
    let tokens = &tiny.text[..300];
    let want = whole(&tiny, tokens);
    for (chunk, order) in [
        (1, KvOrder::AttendFirst),
        (7, KvOrder::StoreFirst),
        (150, KvOrder::AttendFirst),
        (300, KvOrder::StoreFirst),
    ] {
        let got = through(&tiny, tokens, &mut dense(&tiny), chunk, order);
        let difference = largest_difference(&got, &want);
        assert!(difference < 2e-4, "chunks of {chunk}: {difference}");
    }
    // f32 windows that never fill up are dense too.
    let scheme = KvScheme::per_token().residual(400).numbers(StoredFloat::F32);
    let config = KvConfig::uniform(tiny.model.blocks(), "KV2".parse().unwrap(), scheme).unwrap();
    let mut cache = KvCache::new(tiny.decoder.kv_shape(), &config).unwrap();
    let got = through(&tiny, tokens, &mut cache, 50, KvOrder::StoreFirst);
    assert!(largest_difference(&got, &want) < 2e-4);
}

#[test]
fn sequences_that_run_together_do_not_see_one_another() {
    let tiny = tiny();
    let (a, b) = (&tiny.text[..40], &tiny.text[100..117]);
    let mut caches = [dense(&tiny), dense(&tiny)];
    through(&tiny, &a[..30], &mut caches[0], 30, KvOrder::AttendFirst);
    let [first, second] = &mut caches;
    let mut feeds = [Feed { tokens: &a[30..], cache: first }, Feed { tokens: b, cache: second }];
    let hidden = tiny.decoder.forward(&mut feeds, KvOrder::AttendFirst).unwrap();
    let logits: Vec<Array2<f32>> =
        hidden.iter().map(|h| tiny.decoder.logits(h.view()).unwrap()).collect();
    let want = whole(&tiny, a);
    let tail = want.slice(ndarray::s![30.., ..]).to_owned();
    assert!(largest_difference(&logits[0], &tail) < 2e-4);
    assert!(largest_difference(&logits[1], &whole(&tiny, b)) < 2e-4);
}

#[test]
fn greedy_text_is_that_of_transformers() {
    // transformers 5.24.0, torch 2.15.0, f32, `generate(do_sample=False)`.
    let prompt = [
        1243, 221, 19, 17, 199, 199, 35, 813, 721, 272, 90, 87, 354, 73, 423, 383, 1523, 417, 426,
        511, 1044, 1320, 347, 267, 669, 824, 276, 554, 12, 285, 267, 1288, 375, 850, 332, 280, 525,
        776, 1100, 994, 273, 267, 945, 83, 281, 427, 1249, 83,
    ];
    let want = [
        12, 285, 267, 733, 1288, 417, 273, 291, 292, 267, 970, 14, 199, 199, 2, 41, 447, 766, 438,
        450, 280, 12, 405, 1258, 303, 558, 291, 426, 1476, 273, 291, 355,
    ];
    let tiny = tiny();
    let options = Generation { max_tokens: 32, ..Generation::default() };
    let got = tiny.decoder.generate(&prompt, &mut dense(&tiny), &options).unwrap();
    assert_eq!(got, want);
    let chunked = Generation { prompt_chunk: Some(5), ..options.clone() };
    assert_eq!(tiny.decoder.generate(&prompt, &mut dense(&tiny), &chunked).unwrap(), want);
    // A stop token ends the text and is not returned.
    let stopped = Generation { stop: vec![733], ..options.clone() };
    assert_eq!(tiny.decoder.generate(&prompt, &mut dense(&tiny), &stopped).unwrap(), want[..3]);
    // A dialogue goes on in the same cache.
    let mut cache = dense(&tiny);
    tiny.decoder
        .generate(&prompt[..20], &mut cache, &Generation { max_tokens: 1, ..Default::default() })
        .unwrap();
    assert_eq!(tiny.decoder.generate(&prompt[20..], &mut cache, &options).unwrap(), want);
}

#[test]
fn random_text_depends_on_the_seed_alone() {
    let tiny = tiny();
    let prompt = &tiny.text[..16];
    let draw = |seed| {
        let sampling = Sampling::Random { temperature: 1.0, top_p: 0.9, seed: Seed::new(seed) };
        let options = Generation { max_tokens: 24, sampling, ..Generation::default() };
        tiny.decoder.generate(prompt, &mut dense(&tiny), &options).unwrap()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    for (sampling, says) in [
        (Sampling::Random { temperature: 0.0, top_p: 0.9, seed: Seed::new(0) }, "temperature is 0"),
        (Sampling::Random { temperature: 1.0, top_p: 1.5, seed: Seed::new(0) }, "top_p is 1.5"),
    ] {
        let options = Generation { max_tokens: 1, sampling, ..Generation::default() };
        let err = tiny.decoder.generate(prompt, &mut dense(&tiny), &options).unwrap_err();
        assert!(err.to_string().contains(says), "{err}");
    }
}

#[test]
fn perplexity_through_caches_moves_more_with_fewer_bits() {
    let tiny = tiny();
    let windows: Vec<Vec<u32>> = tiny.text.chunks_exact(200).take(6).map(Vec::from).collect();
    let layers = tiny.decoder.kv_shape().layers;
    let config = |pair: &str| {
        let scheme = KvScheme::kivi();
        KvKind::Quantized(KvConfig::uniform(layers, pair.parse().unwrap(), scheme).unwrap())
    };
    // Everything through the cache: that of the whole sequences.
    let all = KvText::new(&tiny.decoder, &windows, 0).unwrap();
    let through = all.evaluate(&KvKind::Dense, 64).unwrap();
    assert_eq!(through.tokens, 6 * 199);
    let mut loss = 0.0;
    for window in &windows {
        let logits = whole(&tiny, window);
        for (row, next) in logits.outer_iter().zip(&window[1..]) {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            loss += sum.ln() - f64::from(row[*next as usize]);
        }
    }
    let want = (loss / (6.0 * 199.0)).exp();
    assert!((through.perplexity / want - 1.0).abs() < 1e-4, "{} {want}", through.perplexity);

    // The chunk does not matter to a dense cache; a prefix leaves fewer predictions.
    let text = KvText::new(&tiny.decoder, &windows, 120).unwrap();
    let dense = text.evaluate(&KvKind::Dense, 16).unwrap();
    let again = text.evaluate(&KvKind::Dense, 79).unwrap();
    assert_eq!(dense.tokens, 6 * 79);
    assert!((dense.perplexity / again.perplexity - 1.0).abs() < 1e-4);

    let loss: Vec<f64> = ["KV8", "KV4", "KV2"]
        .iter()
        .map(|pair| text.evaluate(&config(pair), 16).unwrap().perplexity / dense.perplexity - 1.0)
        .collect();
    assert!(loss[0].abs() < 0.003 && loss[1].abs() < 0.05, "{loss:?}");
    // What is predicted in full precision diverges from itself by rounding only, and divergence
    // grows with fewer bits without chance.
    assert!(dense.divergence.abs() < 1e-6 && through.divergence.abs() < 1e-6, "{dense:?}");
    let divergence =
        ["KV8", "KV4", "KV2"].map(|pair| text.evaluate(&config(pair), 16).unwrap().divergence);
    assert!(divergence[0] > 1e-7 && divergence[2] < 1.0, "{divergence:?}");
    assert!(10.0 * divergence[0] < divergence[1], "{divergence:?}");
    assert!(3.0 * divergence[1] < divergence[2], "{divergence:?}");
    // On so little text the sign is chance; how far the perplexity moves is not.
    assert!(loss[0].abs() < loss[1].abs() && loss[1].abs() < loss[2].abs(), "{loss:?}");
    let bytes = |kind: &KvKind| text.evaluate(kind, 79).unwrap().cache_bytes;
    assert!(bytes(&config("KV4")) < bytes(&config("KV8")));
    assert!(3 * bytes(&config("KV8")) < 2 * bytes(&KvKind::Dense));
    assert!(KvText::new(&tiny.decoder, &windows, 199).is_err());
    assert!(text.evaluate(&KvKind::Dense, 0).is_err());
}

#[test]
fn a_recall_task_asks_for_what_the_prompt_holds() {
    let tiny = tiny();
    let options = RecallOptions { prompts: 2, pairs: 10, questions: 5, ..RecallOptions::default() };
    let task = RecallTask::new(&tiny.tokenizer, &options).unwrap();
    assert_eq!(task.questions(), 10);
    assert_eq!(task, RecallTask::new(&tiny.tokenizer, &options).unwrap());
    let other = RecallOptions { seed: Seed::new(9), ..options };
    assert_ne!(task, RecallTask::new(&tiny.tokenizer, &other).unwrap());
    let digits = RecallOptions { answers: RecallAnswers::Digits(4), ..options };
    assert_ne!(task, RecallTask::new(&tiny.tokenizer, &digits).unwrap());
    let bench = task.prepare(&tiny.decoder).unwrap();
    let dense = bench.evaluate(&KvKind::Dense).unwrap();
    assert_eq!(dense.questions, 10);
    assert!((0.0..=1.0).contains(&dense.exact) && dense.answer_loss.is_finite());
    let kv8 =
        KvConfig::uniform(tiny.model.blocks(), "KV8".parse().unwrap(), KvScheme::kivi()).unwrap();
    let kv8 = bench.evaluate(&KvKind::Quantized(kv8)).unwrap();
    assert!((kv8.answer_loss - dense.answer_loss).abs() < 0.05);
    assert!(dense.divergence.abs() < 1e-6 && kv8.divergence > 10.0 * dense.divergence.abs());
    assert!(kv8.cache_bytes < dense.cache_bytes);
    for bad in [
        RecallOptions { pairs: 0, ..options },
        RecallOptions { pairs: 257, ..options },
        RecallOptions { questions: 11, ..options },
        RecallOptions { answers: RecallAnswers::Digits(0), ..options },
        RecallOptions { answers: RecallAnswers::Digits(13), ..options },
    ] {
        assert!(RecallTask::new(&tiny.tokenizer, &bad).is_err());
    }
}

#[test]
fn captured_heads_are_those_that_go_into_a_cache() {
    let tiny = tiny();
    let windows = vec![tiny.text[..60].to_vec(), tiny.text[60..90].to_vec()];
    let mut caches = [dense(&tiny), dense(&tiny)];
    for (window, cache) in windows.iter().zip(&mut caches) {
        through(&tiny, window, cache, 25, KvOrder::AttendFirst);
    }
    let mut seen = Vec::new();
    tiny.model
        .capture_attention(&tiny.checkpoint, &windows, &mut |capture| {
            let AttentionCapture { layer, window, queries, keys, values } = capture;
            seen.push((layer, window));
            assert_eq!(queries.dim(), (4, windows[window].len(), 32));
            for (side, heads) in [(Side::Key, keys), (Side::Value, values)] {
                let cached = caches[window].view(layer, side)?;
                for ((head, token, channel), x) in heads.indexed_iter() {
                    let y = cached[(token, head * 32 + channel)];
                    assert!((x - y).abs() < 1e-4 + 1e-4 * x.abs(), "{x} {y}");
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.len(), 8);
    assert_eq!(seen[..3], [(0, 0), (0, 1), (1, 0)]);

    let profiler = ErrorProfiler::new(tiny.model.blocks(), KvScheme::kivi()).unwrap();
    let errors = tiny.model.kv_errors(&tiny.checkpoint, &windows, profiler, 4).unwrap();
    for layer in &errors {
        let of = |pair: &str| layer.output_of(pair.parse().unwrap()).unwrap();
        assert!(of("KV8") < of("KV4") && of("KV4") < of("KV2"));
    }
    let space = SearchSpace::new(&errors, KvScheme::kivi(), &Clustering::default()).unwrap();
    assert_eq!(space.layers(), 4);
}

#[test]
fn bad_feeds_are_refused_by_name() {
    let tiny = tiny();
    let mut cache = dense(&tiny);
    for (tokens, says) in [
        (vec![], "tokens of a sequence is 0"),
        (vec![5, 1536], "token id is 1536; expected below the vocabulary size 1536"),
    ] {
        let mut feed = [Feed { tokens: &tokens, cache: &mut cache }];
        let err = tiny.decoder.forward(&mut feed, KvOrder::default()).unwrap_err().to_string();
        assert!(err.contains(says), "{err}");
    }
    let mut other = DenseKv::new(KvShape { layers: 3, kv_heads: 2, head_dim: 32 }).unwrap();
    let mut feed = [Feed { tokens: &[1], cache: &mut other }];
    let err = tiny.decoder.forward(&mut feed, KvOrder::default()).unwrap_err().to_string();
    assert!(err.contains("found shape [3, 2, 32], expected [4, 2, 32]"), "{err}");
    // A cache that an earlier pass left half-filled.
    cache.append(0, Array2::zeros((1, 64)).view(), Array2::zeros((1, 64)).view()).unwrap();
    let mut feed = [Feed { tokens: &[1], cache: &mut cache }];
    let err = tiny.decoder.forward(&mut feed, KvOrder::default()).unwrap_err().to_string();
    assert!(err.contains("tokens in layer 1 of the KV cache is 0"), "{err}");
    assert!(tiny.decoder.forward(&mut [], KvOrder::default()).unwrap().is_empty());
    let none = Generation { max_tokens: 3, ..Generation::default() };
    assert!(tiny.decoder.generate(&[], &mut dense(&tiny), &none).is_err());
}
