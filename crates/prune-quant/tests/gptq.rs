//! Golden values of GPTQ from numpy in f64, after the code of gptq, and what has to hold.
#![allow(clippy::unwrap_used, clippy::excessive_precision)]

use approx::assert_relative_eq;
use ndarray::{Array2, array};
use proptest::prelude::*;
use prune_core::{
    ColumnStats, Error, Fidelity, GramAccumulator, LayerId, LayerStats, Mask, Pattern, QuantTarget,
    Quantized, Quantizer, Result, Scope, Seed, Target,
};
use prune_quant::{ColumnOrder, Family, Gptq, GroupParams, Rtn, SparseGptq};

fn sine(rows: usize, cols: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin() as f32)
}

/// The calibration inputs of the golden values.
fn inputs() -> Array2<f64> {
    Array2::from_shape_fn((16, 8), |(n, j)| {
        let (n, j) = (n as f64, j as f64);
        (0.3 * n * (j % 3.0 + 1.0) + 0.2 * j).cos() + 0.5 * (0.9 * n).sin()
    })
}

fn stats_of(x: &Array2<f64>) -> LayerStats {
    let gram = GramAccumulator::from_parts(x.nrows() as u64, symmetric(x.t().dot(x))).unwrap();
    LayerStats { gram: Some(gram), ..LayerStats::default() }
}

fn symmetric(a: Array2<f64>) -> Array2<f64> {
    Array2::from_shape_fn(a.dim(), |(i, j)| if i < j { a[[j, i]] } else { a[[i, j]] })
}

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let mut stream = Seed::new(seed).stream("w");
    Array2::from_shape_simple_fn((rows, cols), || stream.uniform() + stream.uniform() - 1.0)
}

fn quantize(
    q: &dyn Quantizer,
    w: &Array2<f32>,
    stats: &LayerStats,
    scheme: &str,
) -> Result<Quantized> {
    let layer = LayerId::new("w");
    q.quantize(w.view(), stats, &QuantTarget { layer: &layer, scheme: scheme.parse()?, keep: None })
}

/// `tr(ΔW H ΔWᵀ)` with `H = 2 XᵀX / tokens + damping · mean(diag) · I`.
fn proxy(w: &Array2<f32>, y: &Array2<f32>, x: &Array2<f64>, damping: f64) -> f64 {
    let mut h = x.t().dot(x) * (2.0 / x.nrows() as f64);
    let mean = h.diag().sum() / h.nrows() as f64;
    h.diag_mut().mapv_inplace(|d| d + damping * mean);
    let d = w.mapv(f64::from) - y.mapv(f64::from);
    (d.dot(&h) * &d).sum()
}

#[test]
fn every_variant_matches_the_reference() {
    let (w, x) = (sine(4, 8), inputs());
    let stats = stats_of(&x);
    let released = Gptq { fidelity: Fidelity::Released, ..Gptq::default() };
    let quirk = array![
        [6u8, 9, 0, 15, 2, 13, 0, 15],
        [15, 0, 12, 4, 12, 6, 0, 14],
        [15, 0, 14, 0, 14, 0, 13, 3],
        [14, 1, 15, 1, 15, 0, 14, 0]
    ];
    type Case<'a> = (&'a str, Gptq, &'a str, Array2<u8>, f64, f64);
    let cases: [Case<'_>; 5] = [
        (
            "per row",
            Gptq::default(),
            "int4 asym f32",
            array![
                [7, 8, 4, 11, 2, 13, 0, 15],
                [15, 0, 12, 4, 9, 7, 5, 10],
                [15, 0, 14, 0, 12, 2, 11, 4],
                [13, 0, 14, 0, 15, 0, 14, 0]
            ],
            0.0121488,
            0.00636510,
        ),
        (
            "act-order",
            Gptq::default().order(ColumnOrder::Activation),
            "int4 asym f32",
            array![
                [7, 8, 4, 11, 2, 13, 0, 15],
                [15, 0, 13, 4, 9, 6, 5, 10],
                [15, 0, 15, 0, 12, 1, 11, 4],
                [13, 0, 14, 0, 15, 0, 14, 0]
            ],
            0.0106372,
            0.00583962,
        ),
        ("stale groups", released, "int4 g4 asym f32", quirk.clone(), 0.00522310, 0.00291392),
        (
            "fresh groups",
            Gptq::default(),
            "int4 g4 asym f32",
            array![
                [6, 9, 0, 15, 2, 13, 0, 15],
                [15, 0, 12, 4, 12, 7, 0, 15],
                [15, 0, 14, 0, 15, 0, 13, 2],
                [14, 1, 15, 1, 15, 0, 14, 0]
            ],
            0.00873371,
            0.00464512,
        ),
        (
            "act-order, static groups",
            Gptq::default().order(ColumnOrder::Activation).groups(GroupParams::Static),
            "int4 g4 asym f32",
            quirk,
            0.00522310,
            0.00291392,
        ),
    ];
    for (what, gptq, scheme, codes, error, loss) in cases {
        let done = quantize(&gptq, &w, &stats, scheme).unwrap();
        assert_eq!(done.matrix.codes(), codes, "{what}");
        let y = done.matrix.dequantize();
        assert_relative_eq!(proxy(&w, &y, &x, 0.0), error, max_relative = 1e-5);
        assert_relative_eq!(done.report.loss.unwrap(), loss, max_relative = 1e-5);
    }
}

#[test]
fn scales_of_groups_match_the_reference() {
    let stats = stats_of(&inputs());
    let scales = |gptq: &Gptq| {
        let m = quantize(gptq, &sine(4, 8), &stats, "int4 g4 asym f32").unwrap().matrix;
        m.scales().to_owned()
    };
    let stale = scales(&Gptq { fidelity: Fidelity::Released, ..Gptq::default() });
    let fresh = scales(&Gptq::default());
    let first = [0.046102, 0.080067, 0.130134, 0.129627];
    for (row, want) in first.into_iter().enumerate() {
        assert_relative_eq!(stale[[row, 0]], want, epsilon = 1e-6);
        assert_relative_eq!(fresh[[row, 0]], want, epsilon = 1e-6);
    }
    for (row, want) in [0.105843, 0.026884, 0.095079, 0.132779].into_iter().enumerate() {
        assert_relative_eq!(stale[[row, 1]], want, epsilon = 1e-6);
    }
    for (row, want) in [0.105814, 0.028017, 0.088897, 0.129167].into_iter().enumerate() {
        assert_relative_eq!(fresh[[row, 1]], want, epsilon = 2e-6);
    }
}

#[test]
fn rounding_to_nearest_and_two_bits_match_the_reference() {
    let (w, x) = (sine(4, 8), inputs());
    let rtn = Rtn::default().family(Family::Gptq);
    let error = |q: &dyn Quantizer, scheme: &str| {
        let y = quantize(q, &w, &stats_of(&x), scheme).unwrap().matrix.dequantize();
        proxy(&w, &y, &x, 0.0)
    };
    assert_relative_eq!(error(&rtn, "int4 asym f32"), 0.0287181, max_relative = 1e-5);
    assert_relative_eq!(error(&rtn, "int2 asym f32"), 1.516056, max_relative = 3e-6);
    assert_relative_eq!(error(&Gptq::default(), "int2 asym f32"), 0.711158, max_relative = 3e-6);
    let m = quantize(&rtn, &w, &stats_of(&x), "int4 asym f32").unwrap().matrix;
    let codes = array![
        [7u8, 8, 4, 11, 2, 13, 0, 15],
        [15, 0, 12, 3, 9, 7, 5, 10],
        [15, 0, 14, 0, 13, 2, 11, 4],
        [13, 0, 14, 0, 15, 0, 14, 0]
    ];
    assert_eq!(m.codes(), codes);
    // Rows keep the parameters of the weights that they had before any update.
    for order in [ColumnOrder::Natural, ColumnOrder::Activation] {
        let gptq = Gptq::default().order(order);
        let n = quantize(&gptq, &w, &stats_of(&x), "int4 asym f32").unwrap().matrix;
        assert_eq!((n.scales(), n.zeros()), (m.scales(), m.zeros()));
    }
    for (s, want) in m.scales().iter().zip([0.105843, 0.080067, 0.130134, 0.132779]) {
        assert_relative_eq!(*s, want, epsilon = 6e-7);
    }
    assert!(m.zeros().unwrap().iter().all(|z| *z == 7.0));
}

/// The eight channels by falling diagonal are 1 4 0 7 3 6 2 5.
#[test]
fn groups_are_runs_of_the_order_in_which_columns_are_rounded() {
    let (w, stats) = (sine(4, 8), stats_of(&inputs()));
    let index = |groups, order| {
        let gptq = Gptq::default().order(order).groups(groups);
        let m = quantize(&gptq, &w, &stats, "int4 g4 asym f32").unwrap().matrix;
        m.group_index().map(<[u32]>::to_vec)
    };
    let dynamic = index(GroupParams::Dynamic, ColumnOrder::Activation);
    assert_eq!(dynamic, Some(vec![0, 0, 1, 1, 0, 1, 1, 0]));
    assert_eq!(index(GroupParams::Static, ColumnOrder::Activation), None);
    assert_eq!(index(GroupParams::Dynamic, ColumnOrder::Natural), None);
}

#[test]
fn a_diagonal_hessian_makes_it_rounding_to_nearest() {
    let w = random(5, 12, 1).mapv(|x| x as f32);
    let x = Array2::from_diag(&ndarray::Array1::linspace(0.5, 2.0, 12));
    for scheme in ["int4 asym f32", "int3 g4 f16", "int4 tensor", "fp4 g4 s-e8m0", "nf4 g6 f32"] {
        let rtn = Rtn::default().family(Family::Gptq);
        let a = quantize(&rtn, &w, &stats_of(&x), scheme).unwrap().matrix;
        let b = quantize(&Gptq::default(), &w, &stats_of(&x), scheme).unwrap().matrix;
        assert_eq!(a, b, "{scheme}");
    }
}

#[test]
fn it_is_better_than_rounding_to_nearest_on_whole_matrices() {
    for seed in 0..10 {
        let w = random(64, 64, seed).mapv(|x| x as f32);
        let mix = random(64, 64, seed + 100);
        let x = random(96, 64, seed + 200).dot(&mix);
        let stats = stats_of(&x);
        let error = |q: &dyn Quantizer| {
            let y = quantize(q, &w, &stats, "int4 g32 asym").unwrap().matrix.dequantize();
            proxy(&w, &y, &x, 0.0)
        };
        assert!(error(&Gptq::default()) < error(&Rtn::default()));
    }
}

#[test]
fn dead_channels_get_zeros_and_are_counted() {
    let mut x = inputs();
    x.column_mut(2).fill(0.0);
    let w = sine(4, 8);
    for fidelity in [Fidelity::Exact, Fidelity::Released] {
        let gptq = Gptq { fidelity, ..Gptq::default() };
        let done = quantize(&gptq, &w, &stats_of(&x), "int4 asym").unwrap();
        assert_eq!(done.report.dead_columns, 1);
        let y = done.matrix.dequantize();
        assert!(y.column(2).iter().all(|w| *w == 0.0));
        // The loss is that of a weight whose dead column was 0, under a Hessian with 1 for it.
        let mut h = x.t().dot(&x) * (2.0 / x.nrows() as f64);
        h[[2, 2]] = 1.0;
        let mean = h.diag().sum() / 8.0;
        h.diag_mut().mapv_inplace(|d| d + done.report.damping.unwrap() * mean);
        let mut change = (&w - &y).mapv(f64::from);
        change.column_mut(2).fill(0.0);
        let trace = (change.dot(&h) * &change).sum();
        assert_relative_eq!(done.report.loss.unwrap(), 0.5 * trace, max_relative = 1e-4);
    }
}

#[test]
fn damping_is_raised_until_the_hessian_is_invertible_and_reported() {
    // Rank one: one token.
    let x = Array2::from_elem((1, 8), 1.0);
    let gptq = Gptq { damping: 0.0, ..Gptq::default() };
    let done = quantize(&gptq, &sine(4, 8), &stats_of(&x), "int4").unwrap();
    assert!(done.report.damping_raised > 0);
    assert!(done.report.damping.unwrap() > 0.0);
    let gptq = Gptq { damping: -1.0, ..Gptq::default() };
    assert!(quantize(&gptq, &sine(4, 8), &stats_of(&x), "int4").is_err());
}

#[test]
fn what_it_cannot_do_is_refused() {
    let (w, stats) = (sine(4, 8), stats_of(&inputs()));
    let gptq = Gptq::default();
    let none = quantize(&gptq, &w, &LayerStats::default(), "int4");
    assert!(matches!(none, Err(Error::NoStatistics { .. })));
    let columns = LayerStats {
        columns: Some(ColumnStats::new(8)),
        gram: Some(GramAccumulator::new(8)),
        ..LayerStats::default()
    };
    assert!(matches!(quantize(&gptq, &w, &columns, "int4"), Err(Error::NoStatistics { .. })));
    assert!(matches!(quantize(&gptq, &sine(4, 9), &stats, "int4"), Err(Error::Shape { .. })));
    for scheme in ["nf4 flat64", "nf4 g4 double", "int1"] {
        let e = quantize(&gptq, &w, &stats, scheme);
        assert!(matches!(e, Err(Error::UnsupportedScheme { .. })), "{scheme}");
    }
}

#[test]
fn masks_are_kept_to_and_made_up_for() {
    let w = random(32, 32, 7).mapv(|x| x as f32);
    let x = random(64, 32, 8).dot(&random(32, 32, 9));
    let stats = stats_of(&x);
    let keep = Mask::from_fn(32, 32, |r, c| (r * 5 + c * 3) % 4 != 0);
    let layer = LayerId::new("w");
    for order in [ColumnOrder::Natural, ColumnOrder::Activation] {
        let target =
            QuantTarget { layer: &layer, scheme: "int4 g8".parse().unwrap(), keep: Some(&keep) };
        let gptq = Gptq::default().order(order);
        let y = gptq.quantize(w.view(), &stats, &target).unwrap().matrix.dequantize();
        let rtn = Rtn::default().quantize(w.view(), &stats, &target).unwrap().matrix.dequantize();
        assert!(y.indexed_iter().all(|((r, c), v)| keep.is_kept(r, c) || *v == 0.0));
        assert!(proxy(&w, &y, &x, 0.0) < 0.7 * proxy(&w, &rtn, &x, 0.0));
    }
}

#[test]
fn one_pass_beats_pruning_and_then_rounding() {
    let (mut one, mut two) = (0.0, 0.0);
    for seed in 0..5 {
        let w = random(64, 64, 20 + seed).mapv(|x| x as f32);
        let x = random(128, 64, 40 + seed).dot(&random(64, 64, 60 + seed));
        let stats = stats_of(&x);
        let layer = LayerId::new("w");
        let quant = QuantTarget { layer: &layer, scheme: "int3 g32".parse().unwrap(), keep: None };
        for (pattern, scope, remove) in [
            (Pattern::Unstructured, Scope::PerLayer, 2048),
            (Pattern::Unstructured, Scope::PerRow, 1920),
            (Pattern::NM { n: 2, m: 4 }, Scope::PerRow, 2048),
        ] {
            let prune =
                Target { layer: &layer, pattern, scope, remove, stream: Seed::new(0).stream("w") };
            let done = SparseGptq::default().run(w.view(), &stats, &quant, &prune).unwrap();
            done.mask.check(pattern).unwrap();
            assert_eq!(done.mask.removed(), remove);
            let y = done.quantized.matrix.dequantize();
            assert!(y.indexed_iter().all(|((r, c), v)| done.mask.is_kept(r, c) || *v == 0.0));
            one += proxy(&w, &y, &x, 0.0);
            let masked = QuantTarget { keep: Some(&done.mask), ..quant };
            let rtn = Rtn::default().quantize(w.view(), &stats, &masked).unwrap();
            two += proxy(&w, &rtn.matrix.dequantize(), &x, 0.0);
        }
    }
    assert!(one < 0.75 * two, "{one} {two}");
}

#[test]
fn nothing_removed_makes_the_joint_method_gptq() {
    let w = random(9, 24, 3).mapv(|x| x as f32);
    let stats = stats_of(&random(40, 24, 4));
    let layer = LayerId::new("w");
    let quant = QuantTarget { layer: &layer, scheme: "int4 g8 asym".parse().unwrap(), keep: None };
    let prune = Target {
        layer: &layer,
        pattern: Pattern::Unstructured,
        scope: Scope::PerLayer,
        remove: 0,
        stream: Seed::new(0).stream("w"),
    };
    let joint = SparseGptq::default().run(w.view(), &stats, &quant, &prune).unwrap();
    let plain = Gptq::default().quantize(w.view(), &stats, &quant).unwrap();
    assert_eq!(joint.quantized, plain);
    assert_eq!(joint.mask.removed(), 0);
}

fn scheme() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        Just("int4 asym"),
        Just("int2"),
        Just("int3 asym"),
        Just("int8"),
        Just("int4 float"),
        Just("fp4"),
        Just("nf4")
    ];
    let grouping = prop_oneof![
        Just("channel"),
        Just("tensor"),
        Just("g4"),
        Just("g5"),
        Just("g8"),
        Just("g100")
    ];
    (number, grouping).prop_map(|(n, g)| format!("{n} {g} f32"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Holds for any quantiser, order and grouping: the best check there is of the updates.
    #[test]
    fn the_loss_is_half_the_trace(
        scheme in scheme(), seed in 0u64..1000, act in any::<bool>(), fixed in any::<bool>(),
        released in any::<bool>(), block in 1usize..20,
    ) {
        let w = random(70, 20, seed).mapv(|x| x as f32);
        let x = random(30, 20, seed + 1);
        let gptq = Gptq {
            order: if act { ColumnOrder::Activation } else { ColumnOrder::Natural },
            groups: if fixed { GroupParams::Static } else { GroupParams::Dynamic },
            fidelity: if released { Fidelity::Released } else { Fidelity::Exact },
            block,
            ..Gptq::default()
        };
        let done = quantize(&gptq, &w, &stats_of(&x), &scheme).unwrap();
        let trace = proxy(&w, &done.matrix.dequantize(), &x, done.report.damping.unwrap());
        assert_relative_eq!(done.report.loss.unwrap(), 0.5 * trace, max_relative = 1e-4);
    }

    /// Up to the last bits, which decide a code now and then.
    #[test]
    fn blocks_are_only_a_matter_of_speed(scheme in scheme(), seed in 0u64..1000, block in 1usize..20) {
        let w = random(4, 20, seed).mapv(|x| x as f32);
        let stats = stats_of(&random(30, 20, seed + 1));
        let loss = |block| {
            let gptq = Gptq { block, ..Gptq::default() };
            quantize(&gptq, &w, &stats, &scheme).unwrap().report.loss.unwrap()
        };
        assert_relative_eq!(loss(block), loss(128), max_relative = 0.2);
    }

    #[test]
    fn threads_do_not_change_the_bits(scheme in scheme(), seed in 0u64..1000) {
        let w = random(130, 20, seed).mapv(|x| x as f32);
        let stats = stats_of(&random(30, 20, seed + 1));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize(&Gptq::default(), &w, &stats, &scheme).unwrap())
        };
        prop_assert_eq!(on(1), on(4));
    }
}
