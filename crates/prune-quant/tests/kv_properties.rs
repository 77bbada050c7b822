//! What holds for every input.

#![allow(clippy::unwrap_used)]

use ndarray::{Array2, Axis, concatenate, s};
use proptest::prelude::*;
use prune_core::Seed;
use prune_quant::kv::*;

const HEAD: usize = 32;
const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 2, head_dim: HEAD };

fn rows(tokens: usize, seed: u64, size: f32) -> Array2<f32> {
    let mut stream = Seed::new(seed).stream("rows");
    Array2::from_shape_fn((tokens, SHAPE.width()), |(_, c)| {
        // A few channels with a large mean, as keys have.
        let mean = if c % 13 == 5 { 3.0 * size } else { 0.0 };
        mean + size * (stream.uniform() as f32 - 0.5)
    })
}

fn read(cache: &dyn KvStore, side: Side) -> Array2<f32> {
    let mut all = Array2::zeros((0, SHAPE.width()));
    cache
        .read(0, side, &mut |first, block| {
            assert_eq!(first, all.nrows());
            all = concatenate(Axis(0), &[all.view(), block]).unwrap();
            Ok(())
        })
        .unwrap();
    all
}

fn grouping() -> impl Strategy<Value = (Grouping, usize)> {
    prop_oneof![
        (prop_oneof![Just(None), Just(Some(8)), Just(Some(32))], prop_oneof![Just(0), 1usize..40])
            .prop_map(|(channels, residual)| (Grouping::PerToken { channels }, residual)),
        (prop_oneof![Just(4usize), Just(32)], 1usize..4)
            .prop_map(|(tokens, n)| (Grouping::PerChannel { tokens }, n * tokens)),
    ]
}

fn bits() -> impl Strategy<Value = KvBits> {
    prop_oneof![Just(KvBits::Two), Just(KvBits::Four), Just(KvBits::Eight), Just(KvBits::Sixteen)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_cache_keeps_its_bound_its_lengths_and_forgets_how_it_was_filled(
        (grouping, residual) in grouping(),
        key in bits(),
        value in bits(),
        half in any::<bool>(),
        tokens in 1usize..150,
        cuts in proptest::collection::vec(1usize..60, 0..6),
        seed in any::<u64>(),
        size in prop_oneof![Just(1e-6f32), Just(1.0), Just(300.0)],
    ) {
        let numbers = if half { StoredFloat::F16 } else { StoredFloat::F32 };
        let scheme = KvScheme { key: grouping, value: grouping, residual, numbers };
        let config = KvConfig::uniform(1, KvPair::new(key, value), scheme).unwrap();
        let (keys, values) = (rows(tokens, seed, size), rows(tokens, !seed, size));
        let mut whole = KvCache::new(SHAPE, &config).unwrap();
        whole.append(0, keys.view(), values.view()).unwrap();

        let mut parts = KvCache::new(SHAPE, &config).unwrap();
        let mut first = 0;
        for cut in cuts.into_iter().chain([tokens]) {
            let end = (first + cut).min(tokens);
            let part = s![first..end, ..];
            parts.append(0, keys.slice(part), values.slice(part)).unwrap();
            first = end;
        }
        for (side, exact) in [(Side::Key, &keys), (Side::Value, &values)] {
            let kept = read(&whole, side);
            prop_assert_eq!(&kept, &read(&parts, side));
            prop_assert_eq!(kept.dim(), exact.dim());
            let bound = whole.error_bound(0, side).unwrap();
            for (a, b) in kept.iter().zip(exact) {
                prop_assert!((a - b).abs() <= bound, "{} {} bound {}", a, b, bound);
            }
            let quantized = whole.quantized(0, side).unwrap();
            let want = match grouping {
                Grouping::PerToken { .. } => tokens.saturating_sub(residual),
                Grouping::PerChannel { .. } => tokens / residual * residual,
            };
            prop_assert_eq!(quantized, want);
            // The window keeps what it was given.
            if !half {
                prop_assert_eq!(kept.slice(s![quantized.., ..]), exact.slice(s![quantized.., ..]));
            }
        }
        prop_assert_eq!(whole.tokens(0), tokens);
    }

    #[test]
    fn a_cache_returns_what_the_simulation_says(
        tokens in 1usize..100, seed in any::<u64>(), channel in any::<bool>(),
        bits in prop_oneof![Just(KvBits::Two), Just(KvBits::Four), Just(KvBits::Eight)],
        half in any::<bool>(),
    ) {
        let numbers = if half { StoredFloat::F16 } else { StoredFloat::F32 };
        let (grouping, residual) = match channel {
            true => (Grouping::PerChannel { tokens: 8 }, 8),
            false => (Grouping::PerToken { channels: Some(8) }, 0),
        };
        let scheme = KvScheme { key: grouping, value: grouping, residual, numbers };
        let config = KvConfig::uniform(1, KvPair::both(bits), scheme).unwrap();
        // Numbers that the window holds exactly.
        let keys = rows(tokens, seed, 2.0).mapv(|x| (x * 256.0).round() / 256.0);
        let mut cache = KvCache::new(SHAPE, &config).unwrap();
        cache.append(0, keys.view(), keys.view()).unwrap();
        let sealed = cache.quantized(0, Side::Key).unwrap();
        let kept = read(&cache, Side::Key);
        for head in 0..SHAPE.kv_heads {
            let part = s![..sealed, head * HEAD..(head + 1) * HEAD];
            let want = simulate(
                "keys", keys.slice(part), bits, grouping, numbers.into(), LastGroup::Short,
            ).unwrap();
            prop_assert_eq!(kept.slice(part), want);
        }
    }

    #[test]
    fn quantising_again_changes_nothing(seed in any::<u64>(), size in 0.01f64..1000.0) {
        let mut stream = Seed::new(seed).stream("again");
        let x = Array2::from_shape_fn((50, 32), |_| size * (stream.uniform() - 0.3));
        let single = x.mapv(|x| x as f32);
        for bits in [KvBits::Two, KvBits::Four, KvBits::Eight] {
            for quantizer in [KvQuantizer::Full, KvQuantizer::Released] {
                let by = Grouping::PerToken { channels: None };
                // In f64 codes stay; the numbers are the same up to the arithmetic.
                let once = simulate("x", x.view(), bits, by, quantizer, LastGroup::Short).unwrap();
                let twice =
                    simulate("x", once.view(), bits, by, quantizer, LastGroup::Short).unwrap();
                for (a, b) in once.iter().zip(&twice) {
                    prop_assert!((a - b).abs() <= 1e-12 * size, "{} {}", a, b);
                }
                // In f32 the zero point of 8 bits may round the other way: a step at most.
                let once =
                    simulate("x", single.view(), bits, by, quantizer, LastGroup::Short).unwrap();
                let twice =
                    simulate("x", once.view(), bits, by, quantizer, LastGroup::Short).unwrap();
                let step = size as f32 / bits.levels() as f32;
                let allowed = if bits == KvBits::Eight { step } else { 1e-5 * size as f32 };
                for (a, b) in once.iter().zip(&twice) {
                    prop_assert!((a - b).abs() <= allowed, "{} {}", a, b);
                }
            }
        }
    }

    #[test]
    fn every_quantizer_errs_by_half_a_step(seed in any::<u64>(), size in 0.01f64..1000.0) {
        let mut stream = Seed::new(seed).stream("step");
        let x = Array2::from_shape_fn((4, 32), |_| size * (stream.uniform() - 0.3));
        for bits in [KvBits::Two, KvBits::Four, KvBits::Eight] {
            for quantizer in [KvQuantizer::Half, KvQuantizer::Full, KvQuantizer::Released] {
                let by = Grouping::PerToken { channels: None };
                let kept = simulate("x", x.view(), bits, by, quantizer, LastGroup::Short).unwrap();
                for (row, kept) in x.outer_iter().zip(kept.outer_iter()) {
                    let max = row.fold(f64::NEG_INFINITY, |m, x| m.max(*x));
                    let min = row.fold(f64::INFINITY, |m, x| m.min(*x));
                    let levels = f64::from(bits.levels());
                    // Rounding outwards to f16 widens the span by a step of each number.
                    let widened = match quantizer {
                        KvQuantizer::Half => {
                            (max - min) / 1024.0 + min.abs() / 1024.0 + levels * 6e-8
                        }
                        _ => 0.0,
                    };
                    let step = (max - min + widened) / levels;
                    for (a, b) in row.iter().zip(kept) {
                        prop_assert!((a - b).abs() <= step / 2.0 * (1.0 + 1e-9) + 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_on_a_front_is_beaten_and_everything_off_it_is(
        points in proptest::collection::vec((0u8..6, 0u8..6), 1..30),
    ) {
        let costs: Vec<f64> = points.iter().map(|p| f64::from(p.0)).collect();
        let errors: Vec<f64> = points.iter().map(|p| f64::from(p.1)).collect();
        let front = pareto_front(&costs, &errors).unwrap();
        let no_worse =
            |a: usize, b: usize| costs[a] <= costs[b] && errors[a] <= errors[b];
        for i in 0..points.len() {
            let beaten = front.iter().any(|j| *j != i && no_worse(*j, i));
            prop_assert_eq!(beaten, !front.contains(&i));
        }
        prop_assert!(front.windows(2).all(|w| costs[w[0]] > costs[w[1]]));
    }
}

#[test]
fn bad_input_is_a_typed_error_and_changes_nothing() {
    let config = KvConfig::uniform(1, "KV4".parse().unwrap(), KvScheme::kivi()).unwrap();
    let mut cache = KvCache::new(SHAPE, &config).unwrap();
    let good = rows(3, 1, 1.0);
    let with = |x: f32| {
        let mut rows = good.clone();
        rows[(1, 2)] = x;
        rows
    };
    for (layer, keys, values, says) in [
        (1, good.clone(), good.clone(), "layer is 1; expected below 1"),
        (0, with(f32::NAN), good.clone(), "layer 0, keys: element 66 is NaN"),
        (0, good.clone(), with(f32::INFINITY), "layer 0, values: element 66"),
        (0, good.clone(), with(1e5), "StoredFloat::F32"),
        (0, Array2::zeros((3, 5)), good.clone(), "found shape [3, 5], expected [3, 64]"),
        (0, good.clone(), rows(4, 1, 1.0), "found shape [4, 64], expected [3, 64]"),
    ] {
        let err = cache.append(layer, keys.view(), values.view()).unwrap_err().to_string();
        assert!(err.contains(says), "{err}");
    }
    assert_eq!(cache.tokens(0), 0);
    cache.append(0, Array2::zeros((0, 64)).view(), Array2::zeros((0, 64)).view()).unwrap();
    assert_eq!(cache.tokens(0), 0);
    assert!(cache.read(2, Side::Key, &mut |_, _| Ok(())).is_err());

    for (scheme, says) in [
        (KvScheme::kivi().residual(0), "residual window beside keys by channel is 0"),
        (KvScheme::kivi().residual(33), "positive multiple of the group of 32"),
        (KvScheme::kivi().group(20).residual(40), "divisor of the 32 channels"),
        (KvScheme::per_token().group(0), "group of keys (channels) is 0"),
    ] {
        let config = KvConfig::uniform(1, "KV4".parse().unwrap(), scheme).unwrap();
        let err = KvCache::new(SHAPE, &config).unwrap_err().to_string();
        assert!(err.contains(says), "{err}");
    }
    let two = KvConfig::uniform(2, "KV4".parse().unwrap(), KvScheme::kivi()).unwrap();
    assert!(KvCache::new(SHAPE, &two).is_err());
    for json in [
        r#"{"format":"prune-kv-1","scheme":{"key":{"by":"per-token"},"value":{"by":"per-token"},"residual":0},"layers":[]}"#,
        r#"{"format":"prune-kv-1","scheme":{"key":{"by":"per-token"},"value":{"by":"per-token"},"residual":0},"layers":[{"key":3,"value":4}]}"#,
        r#"{"format":"prune-kv-9","scheme":{"key":{"by":"per-token"},"value":{"by":"per-token"},"residual":0},"layers":[{"key":4,"value":4}]}"#,
        r#"{"format":"prune-kv-1","scheme":{"key":{"by":"per-token"},"value":{"by":"per-token"},"residual":0},"layers":[{"key":4,"value":4}],"more":1}"#,
    ] {
        assert!(serde_json::from_str::<KvConfig>(json).is_err(), "{json}");
    }
}

/// Keys fill a window and leave it together; values leave it one by one.
#[test]
fn windows_have_their_lengths_after_every_token() {
    for residual in [32, 64] {
        let scheme = KvScheme::kivi().residual(residual);
        let config = KvConfig::uniform(1, "KV4".parse().unwrap(), scheme).unwrap();
        for prefill in [1, 31, 32, 33, 70] {
            let mut cache = KvCache::new(SHAPE, &config).unwrap();
            let prompt = rows(prefill, 1, 1.0);
            cache.append(0, prompt.view(), prompt.view()).unwrap();
            for tokens in prefill..prefill + 70 {
                let [keys, values] =
                    [Side::Key, Side::Value].map(|s| cache.quantized(0, s).unwrap());
                assert_eq!((cache.tokens(0), keys % residual), (tokens, 0));
                assert!(tokens - keys < residual, "{tokens} {keys}");
                assert_eq!(tokens - values, tokens.min(residual));
                let next = rows(1, tokens as u64, 1.0);
                cache.append(0, next.view(), next.view()).unwrap();
            }
        }
    }
}

#[test]
fn a_dense_cache_copies_into_a_quantized_one() {
    let (keys, values) = (rows(70, 3, 1.0), rows(70, 4, 1.0));
    let mut dense = DenseKv::new(SHAPE).unwrap();
    dense.append(0, keys.view(), values.view()).unwrap();
    assert_eq!(read(&dense, Side::Key), keys);
    let config = KvConfig::uniform(1, "KV8".parse().unwrap(), KvScheme::kivi()).unwrap();
    let copy = KvCache::from_dense(&dense, &config).unwrap();
    let mut direct = KvCache::new(SHAPE, &config).unwrap();
    direct.append(0, keys.view(), values.view()).unwrap();
    assert_eq!(read(&copy, Side::Value), read(&direct, Side::Value));
}

#[test]
fn grouped_query_heads_are_pooled() {
    let wave = |heads, f: f32| {
        ndarray::Array3::from_shape_fn((heads, 32, 32), |(h, t, d)| {
            (f * (h * 1024 + t * 32 + d + 1) as f32).sin()
        })
    };
    let (q, k, v) = (wave(4, 0.31), wave(2, 0.7), wave(2, 1.3));
    let profile =
        |q: ndarray::ArrayView3<f32>, k: ndarray::ArrayView3<f32>, v: ndarray::ArrayView3<f32>| {
            let mut profiler = ErrorProfiler::new(1, KvScheme::kivi()).unwrap();
            profiler.add(0, &AttentionSample::causal(q, k, v).unwrap()).unwrap();
            profiler.errors().unwrap().remove(0)
        };
    let all = profile(q.view(), k.view(), v.view());
    let alone: Vec<KvErrors> = (0..4)
        .map(|h| {
            let kv = s![h / 2..h / 2 + 1, .., ..];
            profile(q.slice(s![h..h + 1, .., ..]), k.slice(kv), v.slice(kv))
        })
        .collect();
    for (i, (pair, got)) in all.output.iter().enumerate() {
        let mean = alone.iter().map(|e| e.output[i].1).sum::<f64>() / 4.0;
        assert!((got - mean).abs() < 1e-9 * mean, "{pair}: {got} {mean}");
    }
}

/// A model of 12 layers in four kinds, with an accuracy that every kind loses differently.
fn toy() -> (SearchSpace, impl Fn(&KvConfig) -> prune_core::Result<f64>) {
    let candidates = ["KV8", "K8V4", "KV4", "K4V2", "KV2"].map(|p| p.parse().unwrap());
    let group = |layers: std::ops::Range<usize>| LayerGroup {
        layers: layers.collect(),
        candidates: candidates.into(),
    };
    let groups =
        vec![group(0..1), group(1..4), group(4..6), group(6..9), group(9..11), group(11..12)];
    let space = SearchSpace::from_groups(groups, KvScheme::kivi()).unwrap();
    const WEIGHTS: [f64; 12] = [20.0, 1.0, 1.0, 2.0, 8.0, 8.0, 0.1, 0.1, 0.2, 3.0, 3.0, 1.0];
    let accuracy = |config: &KvConfig| {
        let losses = config.layers().iter().zip(WEIGHTS).map(|(p, w)| w * (-p.mean_bits()).exp2());
        Ok(1.0 - losses.sum::<f64>() / 20.0)
    };
    (space, accuracy)
}

#[test]
fn a_search_is_reproducible_and_never_below_a_uniform_configuration() {
    let (space, accuracy) = toy();
    let search = KvSearch { evaluations: 150, max_bits: Some(4.0), ..KvSearch::default() };
    let tuning = search.run(&space, 128, &accuracy).unwrap();
    assert_eq!(tuning, search.run(&space, 128, &accuracy).unwrap());
    assert_eq!(tuning.trials.len(), 150);
    let other = KvSearch { seed: Seed::new(1), ..search.clone() };
    assert_ne!(tuning.trials, other.run(&space, 128, &accuracy).unwrap().trials);

    let kv4 = KvConfig::uniform(12, "KV4".parse().unwrap(), KvScheme::kivi()).unwrap();
    let best = tuning.best(4.0).unwrap();
    assert!(best.code_bits <= 4.0 && best.accuracy > accuracy(&kv4).unwrap());
    assert!((best.stored_bits - best.code_bits - 1.0).abs() < 1e-12);
    assert_eq!(tuning.config(best).unwrap().mean_bits(), best.code_bits);
    assert!(tuning.best(1.0).is_none());
    // More of the later points obey the limit than of the first, random ones.
    let within = |trials: &[KvTrial]| trials.iter().filter(|t| t.code_bits <= 4.0).count();
    assert!(within(&tuning.trials[50..]) > 2 * within(&tuning.trials[..50]));
}

#[test]
fn the_search_comes_near_the_true_front_with_a_small_part_of_its_evaluations() {
    let (space, accuracy) = toy();
    assert_eq!(space.size(), 15_625.0);
    let whole = KvSearch { evaluations: 15_625, ..KvSearch::default() };
    let truth = whole.run(&space, 128, &accuracy).unwrap();
    // The loss at 3, 4 and 5 bits in units of the least possible, over five seeds.
    let excess = |nsga2: Nsga2, first: FirstGeneration| {
        let ratios = (0..5).flat_map(|seed| {
            let seed = Seed::new(seed);
            let search = KvSearch { evaluations: 600, nsga2, first, seed, ..KvSearch::default() };
            let found = search.run(&space, 128, &accuracy).unwrap();
            let loss = |t: &KvTuning, bits| 1.0 - t.best(bits).unwrap().accuracy;
            [3.0, 4.0, 5.0].map(|bits| loss(&found, bits) / loss(&truth, bits))
        });
        ratios.sum::<f64>() / 15.0
    };
    let found = excess(Nsga2::default(), FirstGeneration::Uniform);
    // One generation of random points, as many.
    let random = Nsga2 { population: 600, ..Nsga2::default() };
    let random = excess(random, FirstGeneration::Random);
    assert!(found < 1.15 && random > 1.2, "{found} {random}");
}

#[test]
fn bad_searches_are_refused_by_name() {
    let (space, accuracy) = toy();
    let base = KvSearch::default;
    for (search, says) in [
        (KvSearch { evaluations: 0, ..base() }, "configurations to measure is 0"),
        (KvSearch { max_bits: Some(f64::NAN), ..base() }, "limit on KV bits is NaN"),
        (
            KvSearch { nsga2: Nsga2 { population: 0, ..Nsga2::default() }, ..base() },
            "population is 0",
        ),
        (
            KvSearch { nsga2: Nsga2 { swap: 2.0, ..Nsga2::default() }, ..base() },
            "swap is 2; expected between 0 and 1",
        ),
    ] {
        let err = search.run(&space, 128, &accuracy).unwrap_err().to_string();
        assert!(err.contains(says), "{err}");
    }
    let nan = |_: &KvConfig| -> prune_core::Result<f64> { Ok(f64::NAN) };
    let err = base().run(&space, 128, nan).unwrap_err().to_string();
    assert!(err.contains("accuracy of a KV configuration: element 0 is NaN"), "{err}");
    let group = |layers: Vec<usize>| LayerGroup { layers, candidates: vec![KvPair::NINE[0]] };
    for groups in [vec![], vec![group(vec![0, 2])], vec![group(vec![0]), group(vec![0])]] {
        assert!(SearchSpace::from_groups(groups, KvScheme::kivi()).is_err());
    }
}
