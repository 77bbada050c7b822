//! Numbers of KVTuner, KIVI and numpy.
//!
//! Golden input: keys `sin(1.1 t + 0.9 d + 0.2)` with 4 added to channel 2, values
//! `cos(0.7 t + 1.7 d) + 1.5`, queries `sin(0.4 t − 0.3 d + 0.1)`, in f64. Expected numbers were
//! computed with numpy 2.4.6 from the formulas of the paper and of the released code (cmd2001/KVTuner
//! babe775), clusters with scikit-learn 1.9.1.

#![allow(clippy::unwrap_used)]

use approx::assert_abs_diff_eq;
use ndarray::{Array2, Array3, s};
use prune_quant::kv::*;

fn wave(tokens: usize, f: impl Fn(f64, f64) -> f64) -> Array3<f64> {
    Array3::from_shape_fn((1, tokens, 4), |(_, t, d)| f(t as f64, d as f64))
}

fn keys() -> Array3<f64> {
    wave(8, |t, d| (1.1 * t + 0.9 * d + 0.2).sin() + if d == 2.0 { 4.0 } else { 0.0 })
}

fn values() -> Array3<f64> {
    wave(8, |t, d| (0.7 * t + 1.7 * d).cos() + 1.5)
}

fn queries(tokens: usize) -> Array3<f64> {
    wave(tokens, |t, d| (0.4 * t - 0.3 * d + 0.1).sin())
}

fn scheme(key: Grouping) -> KvScheme {
    KvScheme { key, value: Grouping::PerToken { channels: Some(4) }, ..KvScheme::kivi() }
}

const BY_TOKEN: Grouping = Grouping::PerToken { channels: Some(4) };
const BY_CHANNEL: Grouping = Grouping::PerChannel { tokens: 4 };

fn profile(key: Grouping, quantizer: KvQuantizer, sample: &AttentionSample) -> KvErrors {
    let mut profiler = ErrorProfiler::new(1, scheme(key)).unwrap().quantizer(quantizer);
    profiler.add(0, sample).unwrap();
    profiler.errors().unwrap().remove(0)
}

fn unmasked() -> AttentionSample {
    AttentionSample::unmasked(queries(2).view(), keys().view(), values().view()).unwrap()
}

fn front(errors: &KvErrors) -> Vec<String> {
    let costs: Vec<f64> = errors.output.iter().map(|(p, _)| p.mean_bits()).collect();
    let outputs: Vec<f64> = errors.output.iter().map(|(_, e)| *e).collect();
    let front = pareto_front(&costs, &outputs).unwrap();
    front.iter().map(|i| errors.output[*i].0.to_string()).collect()
}

/// Expected: `e_k`, `e_a` for 8, 4, 2 bits, and `e_o` of the nine pairs.
fn check(errors: &KvErrors, key: [f64; 3], score: [f64; 3], output: [f64; 9], tolerance: f64) {
    for (i, bits) in [KvBits::Eight, KvBits::Four, KvBits::Two].into_iter().enumerate() {
        assert_abs_diff_eq!(errors.key[&bits], key[i], epsilon = tolerance);
        assert_abs_diff_eq!(errors.score[&bits], score[i], epsilon = tolerance);
    }
    for ((pair, got), (nine, want)) in errors.output.iter().zip(KvPair::NINE.iter().zip(output)) {
        assert_eq!(pair, nine);
        assert_abs_diff_eq!(*got, want, epsilon = tolerance);
    }
}

#[test]
fn errors_with_the_released_quantizer_are_the_reference_ones() {
    let token = profile(BY_TOKEN, KvQuantizer::Released, &unmasked());
    check(
        &token,
        [0.007237, 0.195185, 0.682389],
        [0.000257, 0.003961, 0.018266],
        [0.000650, 0.004791, 0.036118, 0.009357, 0.010445, 0.034270, 0.029754, 0.029947, 0.038432],
        6e-7,
    );
    let channel = profile(BY_CHANNEL, KvQuantizer::Released, &unmasked());
    check(
        &channel,
        [0.003018, 0.055318, 0.307780],
        [0.000057, 0.000864, 0.007705],
        [0.000208, 0.004807, 0.036285, 0.001938, 0.004832, 0.036286, 0.015043, 0.016176, 0.034148],
        6e-7,
    );
    for errors in [&token, &channel] {
        for (bits, want) in
            [(KvBits::Eight, 0.001858), (KvBits::Four, 0.019005), (KvBits::Two, 0.121127)]
        {
            assert_abs_diff_eq!(errors.value[&bits], want, epsilon = 6e-7);
        }
    }
    assert_eq!(front(&token), ["KV8", "K8V4", "KV4", "K2V4", "KV2"]);
    assert_eq!(front(&channel), ["KV8", "K4V8", "KV4", "K2V4", "KV2"]);
    // Keys need bits more than values do by token, where an outlier channel spoils the group; by
    // channel it is the other way round.
    let of = |e: &KvErrors, pair: &str| e.output_of(pair.parse().unwrap()).unwrap();
    assert!(of(&token, "K4V8") > of(&token, "K8V4"));
    assert!(of(&channel, "K4V8") < of(&channel, "K8V4"));
}

#[test]
fn errors_with_the_paper_s_quantizer_are_those_of_numpy() {
    check(
        &profile(BY_TOKEN, KvQuantizer::Full, &unmasked()),
        [0.005763899212, 0.078276605966, 0.592160821844],
        [0.000118162551, 0.001671401206, 0.007319364870],
        [0.000125, 0.003993, 0.040040, 0.001449, 0.003466, 0.040288, 0.011378, 0.014338, 0.039060],
        6e-7,
    );
    let channel = profile(BY_CHANNEL, KvQuantizer::Full, &unmasked());
    check(
        &channel,
        [0.003264836542, 0.038262260098, 0.247723555470],
        [0.000048969987, 0.000407790580, 0.003403718150],
        [0.000155, 0.003975, 0.040028, 0.000358, 0.004016, 0.040015, 0.005953, 0.005954, 0.039330],
        6e-7,
    );
    assert_abs_diff_eq!(channel.value[&KvBits::Eight], 0.000709793670748, epsilon = 1e-12);
    assert_abs_diff_eq!(channel.value[&KvBits::Two], 0.061918436381041, epsilon = 1e-12);
    // Storing scale and offset as f16 costs little.
    let half = profile(BY_CHANNEL, KvQuantizer::Half, &unmasked());
    for ((_, a), (_, b)) in half.output.iter().zip(&channel.output) {
        assert!((a - b).abs() < 6e-5 + 0.02 * b, "{a} {b}");
    }
}

#[test]
fn a_causal_sample_counts_only_the_keys_that_a_query_sees() {
    let f32s = |x: Array3<f64>| x.mapv(|x| x as f32);
    let (q, k, v) = (f32s(queries(8)), f32s(keys()), f32s(values()));
    let sample = AttentionSample::causal(q.view(), k.view(), v.view()).unwrap();
    let errors = profile(BY_CHANNEL, KvQuantizer::Full, &sample);
    for (bits, want) in [(KvBits::Eight, 9.082904e-5), (KvBits::Two, 0.0139265563)] {
        assert_abs_diff_eq!(errors.score[&bits], want, epsilon = 2e-7);
    }
    let want = [
        0.000540296,
        0.010524028,
        0.042605914,
        0.001221530,
        0.010636573,
        0.042578800,
        0.007962768,
        0.014553524,
        0.044402990,
    ];
    for ((pair, got), want) in errors.output.iter().zip(want) {
        assert!((got - want).abs() < 2e-6, "{pair}: {got} {want}");
    }
    // Thinned out to every third query, the last one stays.
    let last = sample.every(8).unwrap();
    let one = queries(8).slice(s![.., 7.., ..]).to_owned();
    let alone = AttentionSample::unmasked(one.view(), keys().view(), values().view()).unwrap();
    let (a, b) = (
        profile(BY_CHANNEL, KvQuantizer::Full, &last),
        profile(BY_CHANNEL, KvQuantizer::Full, &alone),
    );
    for ((_, a), (_, b)) in a.output.iter().zip(&b.output) {
        assert_abs_diff_eq!(*a, *b, epsilon = 1e-5);
    }
}

#[test]
fn the_norm_ratio_is_a_measure_of_its_own() {
    let mut profiler = ErrorProfiler::new(1, scheme(BY_CHANNEL))
        .unwrap()
        .quantizer(KvQuantizer::Full)
        .measure(ErrorMeasure::NormRatio);
    profiler.add(0, &unmasked()).unwrap();
    let errors = profiler.errors().unwrap().remove(0);
    assert_abs_diff_eq!(errors.key[&KvBits::Four], 0.010424146760732805, epsilon = 1e-12);
    let kv4 = errors.output_of("KV4".parse().unwrap()).unwrap();
    assert_abs_diff_eq!(kv4, 0.005666430460927475, epsilon = 1e-12);
}

#[test]
fn zeros_follow_the_policy_and_never_give_nan() {
    // sin(0) = 0 in the second channel of the second token.
    let k = wave(8, |t, d| (1.1 * (t - 1.0) + 0.9 * (d - 1.0)).sin());
    let sample = AttentionSample::unmasked(queries(2).view(), k.view(), values().view()).unwrap();
    let with = |policy| {
        let mut profiler = ErrorProfiler::new(1, scheme(BY_TOKEN))
            .unwrap()
            .measure(ErrorMeasure::MeanRelative(policy));
        profiler.add(0, &sample).unwrap();
        profiler.errors().unwrap()[0].key[&KvBits::Two]
    };
    let (skip, add) = (with(ZeroPolicy::Skip), with(ZeroPolicy::Add(1e-12)));
    assert!(skip.is_finite() && add.is_finite());
    assert!(add > 1e6 * skip, "the zero is restored inexactly and dominates: {skip} {add}");
}

#[test]
fn groups_straddle_channels_only_when_asked() {
    let keys = keys().slice_move(s![0, ..6, ..]);
    let run = |last| {
        let by = Grouping::PerChannel { tokens: 4 };
        simulate("k", keys.view(), KvBits::Four, by, KvQuantizer::Released, last).unwrap()
    };
    let released = run(LastGroup::Straddling);
    // Tokens 0 to 3 of channel 0; its last two and the first two of channel 1; the rest of that.
    let exact = [
        0.198669, 0.963558, 0.675463, -0.350783, -0.993691, -0.550686, 0.891207, 0.808496,
        -0.157746, -0.951602, -0.705540, 0.311541,
    ];
    for (got, want) in keys.t().iter().zip(exact) {
        assert_abs_diff_eq!(*got, want, epsilon = 6e-7);
    }
    let first = released.t().iter().copied().take(12).collect::<Vec<f64>>();
    let want = [
        0.175246, 0.963850, 0.700982, -0.350491, -1.005279, -0.502640, 0.879619, 0.753959,
        -0.168419, -0.926305, -0.673676, 0.336838,
    ];
    for (got, want) in first.iter().zip(want) {
        assert_abs_diff_eq!(*got, want, epsilon = 6e-7);
    }
    // With a short last group, a channel depends on itself alone.
    let short = run(LastGroup::Short);
    assert_eq!(short.slice(s![..4, 0]), released.slice(s![..4, 0]));
    let mut other = keys.clone();
    other.slice_mut(s![.., 1]).fill(100.0);
    let by = Grouping::PerChannel { tokens: 4 };
    let again =
        simulate("k", other.view(), KvBits::Four, by, KvQuantizer::Released, LastGroup::Short);
    assert_eq!(again.unwrap().column(0), short.column(0));
}

#[test]
fn clusters_are_those_of_scikit_learn() {
    let rows = [
        [0.01, 0.10, 0.20, 0.45, 0.96],
        [0.012, 0.11, 0.21, 0.46, 0.95],
        [0.03, 0.12, 0.24, 0.47, 0.97],
        [0.30, 0.32, 0.50, 0.60, 0.99],
        [0.31, 0.33, 0.52, 0.61, 0.98],
        [0.05, 0.20, 0.35, 0.52, 0.90],
    ];
    let rows: Vec<Vec<f64>> = rows.map(Vec::from).into();
    let labels = dbscan(&rows, 0.05, 2).unwrap();
    assert_eq!(labels, [Some(0), Some(0), Some(0), Some(1), Some(1), None]);

    // The first and the third are not neighbours; the second joins them. `eps` is inclusive.
    let distance = rows[0].iter().zip(&rows[2]).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    assert_abs_diff_eq!(distance, 0.053852, epsilon = 6e-7);
    let ends = [rows[0].clone(), rows[2].clone()];
    assert_eq!(dbscan(&ends, 0.05, 2).unwrap(), [None, None]);
    assert_eq!(dbscan(&ends, distance, 2).unwrap(), [Some(0), Some(0)]);
    assert_eq!(dbscan(&ends, distance.next_down(), 2).unwrap(), [None, None]);

    let points: Vec<Vec<f64>> = (0..40)
        .map(|i| {
            let i = f64::from(i);
            vec![(1.7 * i).sin() + 0.15 * (11.0 * i).cos(), (2.9 * i).cos() * 0.8]
        })
        .collect();
    for (eps, min_points, want) in [(0.22, 3, SKLEARN_022_3), (0.3, 4, SKLEARN_03_4)] {
        let labels = dbscan(&points, eps, min_points).unwrap();
        let labels: Vec<i32> = labels.iter().map(|l| l.map_or(-1, |l| l as i32)).collect();
        assert_eq!(labels, want);
    }
}

#[test]
fn the_paper_s_table_gives_the_paper_s_candidates() {
    // Table 3: output errors of Llama-3.1-8B by token.
    let errors = [0.014, 0.100, 0.401, 0.168, 0.207, 0.453, 0.882, 0.892, 0.962];
    let costs = KvPair::NINE.map(KvPair::mean_bits);
    let front = pareto_front(&costs, &errors).unwrap();
    let names: Vec<String> = front.iter().map(|i| KvPair::NINE[*i].to_string()).collect();
    assert_eq!(names, ["KV8", "K8V4", "KV4", "K4V2", "KV2"]);
}

#[test]
fn bytes_of_a_token_are_those_of_the_formula() {
    let llama = KvShape { layers: 32, kv_heads: 8, head_dim: 128 };
    assert_eq!(llama.half_bytes(), 131_072);
    let uniform =
        |pair: &str, scheme| KvConfig::uniform(32, pair.parse().unwrap(), scheme).unwrap();
    for (config, want) in [
        (uniform("KV8", KvScheme::per_token()), 67_584.0),
        (uniform("KV4", KvScheme::per_token()), 34_816.0),
        (uniform("KV2", KvScheme::kivi()), 24_576.0),
    ] {
        assert_eq!(config.bytes_per_token(llama), want);
    }
    assert_eq!(uniform("KV4", KvScheme::per_token()).stored_bits(128), 4.25);
    assert_eq!(uniform("KV2", KvScheme::kivi()).stored_bits(128), 3.0);
    // Mean code bits of 3.59375 by token and of 3.25 in groups of 32: two of the paper's presets.
    let mixed = |parts: &[(&str, usize)], scheme| {
        let layers = parts.iter().flat_map(|(p, n)| vec![p.parse().unwrap(); *n]).collect();
        KvConfig::new(layers, scheme).unwrap()
    };
    let token = mixed(&[("KV8", 2), ("KV4", 19), ("K4V2", 7), ("KV2", 4)], KvScheme::per_token());
    assert_eq!((token.mean_bits(), token.bytes_per_token(llama)), (3.78125, 33_024.0));
    let token = mixed(&[("KV8", 1), ("KV4", 18), ("K4V2", 9), ("KV2", 4)], KvScheme::per_token());
    assert_eq!((token.mean_bits(), token.bytes_per_token(llama)), (3.59375, 31_488.0));
    let kivi = mixed(&[("KV4", 20), ("KV2", 12)], KvScheme::kivi());
    assert_eq!((kivi.mean_bits(), kivi.stored_bits(128)), (3.25, 4.25));
    // Fewer bits on paper, the same bytes as uniform 4 bits by token.
    assert_eq!(kivi.bytes_per_token(llama), 34_816.0);
}

#[test]
fn an_official_preset_is_read_and_written() {
    // calibration_presets/Qwen2.5-7B-Instruct_kivi_KVTuner4_1.yaml, as pairs.
    #[rustfmt::skip]
    let pairs = [
        (8, 8), (2, 4), (8, 8), (2, 4), (4, 2), (4, 2), (8, 8), (2, 2), (2, 2), (2, 2), (2, 2),
        (4, 4), (4, 2), (2, 2), (2, 2), (4, 4), (2, 2), (4, 4), (2, 2), (2, 2), (2, 2), (2, 2),
        (4, 2), (4, 2), (4, 2), (4, 2), (2, 2), (2, 2),
    ];
    let yaml: String = pairs
        .iter()
        .enumerate()
        .map(|(i, (k, v))| format!("{i}:\n  nbits_key: {k}\n  nbits_value: {v}\n"))
        .collect();
    let config = KvConfig::from_kvtuner_yaml(&yaml, KvScheme::kivi()).unwrap();
    assert_abs_diff_eq!(config.mean_bits(), 3.1786, epsilon = 5e-5);
    assert_eq!(config.to_kvtuner_yaml(), yaml);

    // By head: fine when the heads agree.
    let heads = "0:\n  0: {nbits_key: 4, nbits_value: 2}\n  1: {nbits_key: 4, nbits_value: 2}\n";
    let config = KvConfig::from_kvtuner_yaml(heads, KvScheme::kivi()).unwrap();
    assert_eq!(config.layers()[0].to_string(), "K4V2");
    for (yaml, says) in [
        (
            "0: {0: {nbits_key: 4, nbits_value: 2}, 1: {nbits_key: 4, nbits_value: 4}}",
            "equal widths",
        ),
        ("1: {nbits_key: 4, nbits_value: 2}", "next layer is 1; expected 0"),
        ("0: {nbits_key: 3, nbits_value: 2}", "width in layer 0 is 3"),
        ("0: {nbits_key: 4}", "KVTuner configuration"),
        ("0: {}", "layer 0 is no heads"),
        ("{}", "at least 1"),
        ("- 1", "KVTuner configuration"),
    ] {
        let err = KvConfig::from_kvtuner_yaml(yaml, KvScheme::kivi()).unwrap_err().to_string();
        assert!(err.contains(says), "{yaml}: {err}");
    }
}

#[test]
fn presets_have_the_mean_bits_of_the_paper() {
    for (name, counts, want) in PRESETS {
        let pairs = KvPair::NINE.iter().zip(counts).flat_map(|(p, n)| vec![*p; n]).collect();
        let config = KvConfig::new(pairs, KvScheme::kivi()).unwrap();
        assert!((config.mean_bits() - want).abs() < 6e-5, "{name}: {}", config.mean_bits());
    }
}

#[test]
fn kivi_keeps_what_it_should_in_the_window() {
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 32 };
    let config = KvConfig::uniform(1, "KV4".parse().unwrap(), KvScheme::kivi()).unwrap();
    let mut cache = KvCache::new(shape, &config).unwrap();
    let rows = Array2::from_shape_fn((70, 32), |(t, c)| ((t * 32 + c) as f32).sin());
    cache.append(0, rows.view(), rows.view()).unwrap();
    let quantized = |side| cache.quantized(0, side).unwrap();
    assert_eq!((quantized(Side::Key), quantized(Side::Value)), (64, 38));
    assert_eq!(cache.tokens(0), 70);
}

#[test]
fn constant_groups_are_restored_exactly_or_to_one_half_step() {
    for x in [0.0f64, 1.0, -2.5, 0.1, 300.7] {
        let rows = Array2::from_elem((4, 8), x);
        let full =
            simulate("x", rows.view(), KvBits::Two, BY_TOKEN, KvQuantizer::Full, LastGroup::Short);
        assert_eq!(full.unwrap(), rows);
        let half =
            simulate("x", rows.view(), KvBits::Two, BY_TOKEN, KvQuantizer::Half, LastGroup::Short);
        let error = (half.unwrap() - &rows).mapv(f64::abs).fold(0.0, |m: f64, e| m.max(*e));
        assert!(error <= x.abs() / 2048.0, "{x}: {error}");
    }
}

#[rustfmt::skip]
const SKLEARN_022_3: [i32; 40] = [
    0, 1, 0, 2, 5, 3, 4, 4, 3, 5, 2, 0, 1, 0, 2, 0, 1, -1, -1, -1,
    -1, -1, -1, 1, 0, 2, 0, 1, 0, 2, 5, 3, 4, 4, 3, -1, 2, 0, 1, 0,
];

#[rustfmt::skip]
const SKLEARN_03_4: [i32; 40] = [
    0, 1, 0, 2, 0, 3, 4, 4, 3, 0, 2, 0, 1, 0, 2, 0, 1, 0, -1, -1,
    -1, -1, 0, 1, 0, 2, 0, 1, 0, 2, 0, 3, 4, 4, 3, 0, 2, 0, 1, 0,
];

/// Layers with each of the nine pairs in the presets of the KVTuner repository (revision babe775),
/// and the mean bits that they give.
#[rustfmt::skip]
const PRESETS: [(&str, [usize; 9], f64); 32] = [
    ("Llama-3.1-8B_kivi 4_0", [1, 0, 0, 0, 6, 16, 0, 0, 9], 3.0625),
    ("Llama-3.1-8B_kivi 4_1", [0, 2, 0, 0, 6, 20, 0, 0, 4], 3.25),
    ("Llama-3.1-8B_kivi 6_0", [7, 0, 0, 6, 16, 0, 0, 0, 3], 5.0625),
    ("Llama-3.1-8B_kivi 6_1", [0, 19, 0, 0, 6, 4, 0, 1, 2], 4.9062),
    ("Llama-3.1-8B_pertoken 4_0", [0, 0, 0, 1, 16, 15, 0, 0, 0], 3.5938),
    ("Llama-3.1-8B_pertoken 4_1", [1, 6, 0, 0, 10, 13, 0, 0, 2], 3.9688),
    ("Llama-3.1-8B_pertoken 6_0", [3, 26, 0, 0, 0, 1, 0, 0, 2], 5.8438),
    ("Llama-3.1-8B_pertoken 6_1", [0, 23, 0, 0, 9, 0, 0, 0, 0], 5.4375),
    ("Mistral-7B-v0.3_kivi 4_0", [0, 0, 0, 4, 4, 18, 0, 0, 6], 3.3125),
    ("Mistral-7B-v0.3_kivi 4_1", [0, 0, 0, 3, 9, 8, 0, 0, 12], 3.1875),
    ("Mistral-7B-v0.3_kivi 6_0", [10, 9, 0, 0, 10, 0, 0, 0, 3], 5.625),
    ("Mistral-7B-v0.3_kivi 6_1", [0, 1, 0, 10, 9, 7, 0, 0, 5], 4.1562),
    ("Mistral-7B-v0.3_pertoken 4_0", [0, 6, 0, 0, 3, 23, 0, 0, 0], 3.6562),
    ("Mistral-7B-v0.3_pertoken 4_1", [2, 4, 0, 1, 0, 25, 0, 0, 0], 3.7812),
    ("Mistral-7B-v0.3_pertoken 6_0", [0, 25, 0, 0, 6, 0, 0, 1, 0], 5.5312),
    ("Mistral-7B-v0.3_pertoken 6_1", [0, 23, 0, 1, 4, 4, 0, 0, 0], 5.375),
    ("Qwen2.5-3B_kivi 4_0", [0, 0, 0, 2, 2, 28, 0, 2, 2], 3.1667),
    ("Qwen2.5-3B_kivi 4_1", [2, 0, 0, 0, 10, 18, 0, 2, 4], 3.4444),
    ("Qwen2.5-3B_kivi 6_0", [0, 0, 0, 2, 2, 28, 0, 2, 2], 3.1667),
    ("Qwen2.5-3B_kivi 6_1", [2, 5, 0, 5, 2, 18, 0, 2, 2], 4.1111),
    ("Qwen2.5-3B_pertoken 4_0", [3, 1, 0, 0, 5, 27, 0, 0, 0], 3.6389),
    ("Qwen2.5-3B_pertoken 4_1", [0, 7, 1, 0, 13, 15, 0, 0, 0], 4.0),
    ("Qwen2.5-3B_pertoken 6_0", [1, 23, 0, 0, 0, 12, 0, 0, 0], 5.0556),
    ("Qwen2.5-3B_pertoken 6_1", [7, 14, 0, 0, 0, 15, 0, 0, 0], 5.1389),
    ("Qwen2.5-7B_kivi 4_0", [6, 0, 0, 0, 9, 0, 0, 0, 13], 3.9286),
    ("Qwen2.5-7B_kivi 4_1", [3, 0, 0, 0, 3, 7, 0, 2, 13], 3.1786),
    ("Qwen2.5-7B_kivi 6_0", [13, 7, 0, 0, 0, 3, 0, 2, 3], 5.9643),
    ("Qwen2.5-7B_kivi 6_1", [14, 0, 0, 0, 0, 3, 0, 2, 9], 5.1786),
    ("Qwen2.5-7B_pertoken 4_0", [1, 0, 3, 0, 17, 7, 0, 0, 0], 4.0),
    ("Qwen2.5-7B_pertoken 4_1", [4, 2, 0, 0, 0, 22, 0, 0, 0], 3.9286),
    ("Qwen2.5-7B_pertoken 6_0", [14, 0, 0, 0, 10, 2, 0, 0, 2], 5.7857),
    ("Qwen2.5-7B_pertoken 6_1", [0, 12, 4, 0, 12, 0, 0, 0, 0], 5.0),
];
