//! Golden values of round-to-nearest, and what has to hold for all of it.
#![allow(clippy::unwrap_used, clippy::excessive_precision)]

use approx::assert_relative_eq;
use ndarray::{Array2, array};
use proptest::prelude::*;
use prune_core::{
    Fidelity, LayerId, LayerStats, Mask, QuantTarget, QuantizedMatrix, Quantizer, Result,
};
use prune_quant::{Family, MseSearch, Range, Rtn};

fn sine(rows: usize, cols: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin() as f32)
}

fn quantize(rtn: Rtn, weight: &Array2<f32>, scheme: &str) -> Result<QuantizedMatrix> {
    let layer = LayerId::new("w");
    let target = QuantTarget { layer: &layer, scheme: scheme.parse()?, keep: None };
    Ok(rtn.quantize(weight.view(), &LayerStats::default(), &target)?.matrix)
}

fn mse(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let d = a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2));
    d.sum::<f64>() / a.len() as f64
}

/// numpy in f64, after the quantisers of gptq, AutoAWQ, compressed-tensors and KIVI.
#[test]
fn every_family_matches_its_reference() {
    let mse_range = Range::Mse(MseSearch::default());
    let rtn = |family, range| Rtn { family, range, ..Rtn::default() };
    let (gptq, awq, ct) = (Family::Gptq, Family::Awq, Family::CompressedTensors);
    let s4 = array![[0.046102f32, 0.105843], [0.080067, 0.026884]];
    let asym4 = array![[6u8, 9, 0, 15, 2, 13, 0, 15], [15, 0, 12, 3, 11, 5, 0, 15]];
    let sym4 = array![[8u8, 11, 3, 15, 3, 14, 1, 15], [15, 2, 13, 5, 12, 8, 4, 15]];
    let sym4_scales = array![[0.054949f32, 0.111554], [0.087598, 0.036121]];
    let z4 = array![[6.0f32, 7.0], [7.0, 5.0]];
    type Case = (Rtn, &'static str, Array2<f32>, Option<Array2<f32>>, Array2<u8>, f64);
    let cases: Vec<Case> = vec![
        (
            rtn(gptq, Range::MinMax),
            "int4 g4 asym f32",
            s4.clone(),
            Some(z4.clone()),
            asym4.clone(),
            1.695393e-4,
        ),
        (
            rtn(gptq, mse_range),
            "int4 g4 asym f32",
            array![[0.046102, 0.105843], [0.080067, 0.026346]],
            Some(z4.clone()),
            asym4.clone(),
            1.685356e-4,
        ),
        (
            rtn(gptq, Range::MinMax),
            "int4 g4 sym f32",
            sym4_scales.clone(),
            None,
            sym4.clone(),
            6.214358e-4,
        ),
        (
            rtn(gptq, Range::MinMax),
            "int2 g4 asym f32",
            array![[0.230511, 0.529214], [0.400336, 0.134419]],
            Some(Array2::ones((2, 2))),
            array![[1, 2, 0, 3, 0, 2, 0, 3], [3, 0, 2, 0, 2, 1, 0, 3]],
            1.128154e-2,
        ),
        (
            rtn(gptq, Range::MinMax),
            "int3 g4 asym f32",
            array![[0.098791, 0.226806], [0.171573, 0.057608]],
            Some(array![[3.0, 3.0], [3.0, 2.0]]),
            array![[3, 4, 0, 7, 1, 6, 0, 7], [7, 0, 5, 1, 5, 2, 0, 7]],
            2.000666e-3,
        ),
        (
            rtn(gptq, Range::MinMax),
            "int8 g4 asym f32",
            array![[0.002712, 0.006226], [0.004710, 0.001581]],
            Some(array![[103.0, 121.0], [116.0, 84.0]]),
            array![[103, 155, 0, 255, 35, 225, 0, 255], [255, 0, 205, 55, 179, 78, 0, 255]],
            2.083084e-6,
        ),
        (
            rtn(awq, Range::MinMax),
            "int4 g4 asym f32",
            s4.clone(),
            Some(z4.clone()),
            asym4.clone(),
            1.695393e-4,
        ),
        (rtn(ct, Range::MinMax), "int4 g4 sym f32", sym4_scales, None, sym4, 6.214358e-4),
        (rtn(ct, Range::MinMax), "int4 g4 asym f32", s4.clone(), Some(z4), asym4, 1.695393e-4),
        (
            rtn(ct, Range::MinMax),
            "int4 g4 float f32",
            s4,
            Some(array![
                [0.279415 / 0.046102, 0.750987 / 0.105843],
                [0.544021 / 0.080067, 0.132352 / 0.026884]
            ]),
            array![[6, 9, 0, 15, 2, 13, 0, 15], [15, 0, 12, 3, 10, 5, 0, 15]],
            7.819466e-5,
        ),
        (
            rtn(ct, Range::MinMax),
            "int2 g4 float f32",
            array![[0.230511, 0.529214], [0.400336, 0.134419]],
            Some(array![
                [0.279415 / 0.230511, 0.750987 / 0.529214],
                [0.544021 / 0.400336, 0.132352 / 0.134419]
            ]),
            array![[1, 2, 0, 3, 0, 3, 0, 3], [3, 0, 2, 1, 2, 1, 0, 3]],
            8.285767e-3,
        ),
        // KVTuner's symmetric 2 bits: the same step absmax / (2^(b-1) - 1).
        (
            rtn(awq, Range::MinMax),
            "int2 g4 sym f32",
            array![[0.412118, 0.836656], [0.656987, 0.270906]],
            None,
            array![[0i16, 0, -1, 1, -1, 1, -1, 1], [1, -1, 1, 0, 1, 0, 0, 1]]
                .mapv(|q| (q + 2) as u8),
            2.210143e-2,
        ),
        // Quanto's int8: symmetric, by row, step absmax / 127.
        (
            rtn(awq, Range::MinMax),
            "int8 channel sym f32",
            array![[0.006588], [0.005173]],
            None,
            array![[0i16, 21, -42, 63, -81, 99, -114, 127], [127, -105, 81, -56, 29, -2, -26, 52]]
                .mapv(|q| (q + 128) as u8),
            3.234638e-6,
        ),
    ];
    let w = sine(2, 8);
    for (rtn, scheme, scales, zeros, codes, error) in cases {
        let m = quantize(rtn, &w, scheme).unwrap();
        let what = format!("{rtn:?} {scheme}");
        assert_eq!(m.codes(), codes, "{what}");
        for (a, b) in m.scales().iter().zip(&scales) {
            assert_relative_eq!(a, b, epsilon = 6e-7);
        }
        if let Some(zeros) = zeros {
            for (a, b) in m.zeros().unwrap().iter().zip(&zeros) {
                assert_relative_eq!(a, b, max_relative = 3e-5);
            }
        }
        assert_relative_eq!(mse(&w, &m.dequantize()), error, max_relative = 2e-5);
    }
}

/// The offsets that KIVI and Quanto store: the smallest weight of each group.
#[test]
fn float_zero_points_stand_for_the_least_weight_of_their_group() {
    let w = sine(2, 8);
    for scheme in ["int4 g4 float f32", "int2 g4 float f32"] {
        let m = quantize(Rtn::default(), &w, scheme).unwrap();
        let offsets = -(&m.zeros().unwrap() * &m.scales());
        let want = array![[-0.279415, -0.750987], [-0.544021, -0.132352]];
        for (a, b) in offsets.iter().zip(&want) {
            assert_relative_eq!(*a, *b, epsilon = 6e-7);
        }
    }
}

/// The grid of 2^b codes has one more below zero than above, and spans twice the largest weight.
#[test]
fn symmetric_grids_miss_the_largest_weight_by_half_a_step() {
    for family in [Family::CompressedTensors, Family::Gptq] {
        let rtn = Rtn::default().family(family);
        let m = quantize(rtn, &array![[-7.5, 7.5]], "int4 f32").unwrap();
        assert_eq!(m.scales(), array![[1.0]]);
        // −7.5 is a tie, which goes to the even −8; 8 has no code.
        assert_eq!(m.dequantize(), array![[-8.0, 7.0]]);
    }
}

#[test]
fn fp8_scales_take_the_largest_weight_to_the_largest_number() {
    let w = array![[0.5f32, -3.5, 1.0], [0.0, 0.0, 0.0], [1e-3, 2e-3, 7e-4]];
    for (scheme, largest, code) in [("e4m3 f32", 448.0, 0x7e), ("e5m2 f32", 57344.0, 0x7b)] {
        let m = quantize(Rtn::default(), &w, scheme).unwrap();
        assert_eq!(m.scales(), array![[3.5 / largest], [1.0], [2e-3 / largest]], "{scheme}");
        assert_eq!(m.codes()[[0, 1]], 0x80 | code, "{scheme}");
        assert_eq!(m.codes()[[2, 1]], code, "{scheme}");
        let y = m.dequantize();
        assert_eq!(y.row(1), array![0.0, 0.0, 0.0]);
        assert_relative_eq!(y[[0, 1]], -3.5, max_relative = 1e-6);
    }
    let m = quantize(Rtn::default(), &w, "e4m3 tensor f32").unwrap();
    assert_eq!(m.scales(), array![[3.5 / 448.0]]);
}

#[test]
fn zeros_have_codes_and_scales_that_decode_to_zeros() {
    let w = Array2::zeros((2, 32));
    for scheme in [
        "int4 g16",
        "int4 g16 asym",
        "int4 g16 float",
        "nf4 flat16",
        "nf4 g16 double",
        "fp4 g16 s-e8m0",
        "fp4 g16 s-e4m3",
        "e4m3",
        "e5m2 tensor",
    ] {
        for family in [Family::CompressedTensors, Family::Gptq, Family::Awq] {
            for fidelity in [Fidelity::Exact, Fidelity::Released] {
                let rtn = Rtn { family, fidelity, ..Rtn::default() };
                let m = quantize(rtn, &w, scheme).unwrap();
                assert!(m.scales().iter().all(|s| *s > 0.0), "{scheme} {rtn:?}");
                assert!(m.dequantize().iter().all(|x| *x == 0.0), "{scheme} {rtn:?}");
            }
        }
    }
    // GPTQ's quantiser spans ±1 with them, in 15 steps.
    let rtn = Rtn { family: Family::Gptq, fidelity: Fidelity::Released, ..Rtn::default() };
    let m = quantize(rtn, &w, "int4 g16 asym f32").unwrap();
    assert!(m.scales().iter().all(|s| *s == 2.0 / 15.0));
    assert!(m.zeros().unwrap().iter().all(|z| *z == 7.0 || *z == 8.0));
    // AWQ's has the least step.
    let rtn = Rtn { family: Family::Awq, ..rtn };
    let m = quantize(rtn, &w, "int4 g16 asym f32").unwrap();
    assert!(m.scales().iter().all(|s| (s / 6.667e-7 - 1.0).abs() < 1e-4));
    // One scale for the tensor cannot come from its zeros.
    let m = quantize(Rtn::default(), &w, "fp4 g16 s-e4m3").unwrap();
    assert_eq!(m.global_scale(), Some(1.0));
}

/// numpy in f64, after compressed-tensors and the specification of the Open Compute Project.
#[test]
fn mxfp4_matches_both_of_its_rules() {
    let x = Array2::from_shape_fn((1, 32), |(_, j)| (3.7 * (3.0 * j as f64).sin()) as f32);
    for (mx_scale, scale, packed, error) in [
        (prune_quant::MxScale::Floor, 0.5, "205c6e7f7f7f7f7f6f5e2ca8d4e6f7f7", 0.1057713),
        (prune_quant::MxScale::RoundUp, 1.0, "103a4c5d6d6e6e5d4d3c1a98b2c4d5e5", 0.0658807),
    ] {
        let rtn = Rtn { mx_scale, ..Rtn::default() };
        let m = quantize(rtn, &x, "fp4 g32 s-e8m0").unwrap();
        assert_eq!(m.scales(), array![[scale]]);
        assert_eq!(low_nibble_first(&m), packed);
        assert_relative_eq!(mse(&x, &m.dequantize()), error, max_relative = 1e-5);
    }
}

#[test]
fn nvfp4_matches_compressed_tensors() {
    let x = Array2::from_shape_fn((1, 32), |(_, j)| {
        ((3.0 * j as f64).sin() * if j < 16 { 1.0 } else { 0.05 }) as f32
    });
    let m = quantize(Rtn::default(), &x, "fp4 g16 s-e4m3").unwrap();
    assert_relative_eq!(m.global_scale().unwrap(), 2688.237061, max_relative = 1e-7);
    assert_eq!(m.scales(), array![[448.0, 22.0]]);
    assert_eq!(low_nibble_first(&m), "204b6d7e7f7f7f7f6e5d2c98c3e5f6f7");
    let y = m.dequantize();
    for (at, want) in
        [(0, 0.0), (1, 0.166652), (2, -0.249978), (3, 0.333304), (16, -0.032735), (17, 0.032735)]
    {
        assert_relative_eq!(y[[0, at]], want, epsilon = 1e-6);
    }
    assert_relative_eq!(mse(&x, &y), 2.648270e-3, max_relative = 1e-5);
}

fn low_nibble_first(m: &QuantizedMatrix) -> String {
    let codes: Vec<u8> = m.codes().iter().copied().collect();
    let bytes = prune_core::NibbleOrder::EvenLow.pack(&codes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn short_last_groups_have_their_own_parameters() {
    let w = array![[1.0, -1.0, 0.5, 100.0], [2.0, 1.0, 0.0, -3.0]];
    let m = quantize(Rtn::default(), &w, "int8 g3").unwrap();
    assert_eq!(m.scales().dim(), (2, 2));
    assert_relative_eq!(m.dequantize()[[0, 0]], 1.0, epsilon = 0.01);
    assert_relative_eq!(m.dequantize()[[0, 3]], 100.0, epsilon = 0.5);
}

#[test]
fn values_that_are_not_finite_are_refused_by_name() {
    let w = array![[1.0, f32::NAN]];
    let e = quantize(Rtn::default(), &w, "int4").unwrap_err();
    assert_eq!(e.to_string(), "w.weight: element 1 is NaN; every value must be finite");
}

#[test]
fn a_mask_needs_a_code_for_zero() {
    let w = sine(2, 8);
    let layer = LayerId::new("w");
    let keep = Mask::from_fn(2, 8, |r, c| (r + c) % 2 == 0);
    for scheme in
        ["int4 g4", "int3 g4 asym", "nf4 flat16", "fp4 g8 s-e8m0", "e4m3", "int8 tensor asym"]
    {
        let target =
            QuantTarget { layer: &layer, scheme: scheme.parse().unwrap(), keep: Some(&keep) };
        let m = Rtn::default().quantize(w.view(), &LayerStats::default(), &target).unwrap().matrix;
        let y = m.dequantize();
        for ((r, c), v) in y.indexed_iter() {
            assert!(keep.is_kept(r, c) || *v == 0.0, "{scheme}");
        }
    }
    let target =
        QuantTarget { layer: &layer, scheme: "int4 float".parse().unwrap(), keep: Some(&keep) };
    assert!(Rtn::default().quantize(w.view(), &LayerStats::default(), &target).is_err());
    let small = Mask::all_kept(1, 8);
    let target = QuantTarget { layer: &layer, scheme: "int4".parse().unwrap(), keep: Some(&small) };
    assert!(Rtn::default().quantize(w.view(), &LayerStats::default(), &target).is_err());
}

#[test]
fn empty_matrices_are_quantised() {
    for scheme in ["int4 tensor", "int4 channel", "int4 g4", "nf4 flat64", "fp4 g16 s-e4m3"] {
        for shape in [(0, 0), (0, 8), (3, 0)] {
            let w = Array2::zeros(shape);
            assert_eq!(quantize(Rtn::default(), &w, scheme).unwrap().dequantize().dim(), shape);
        }
    }
}

fn matrix(rows: usize, cols: usize) -> impl Strategy<Value = Array2<f32>> {
    prop::collection::vec(prop_oneof![4 => -4.0f32..4.0, 1 => Just(0.0f32)], rows * cols)
        .prop_map(move |v| Array2::from_shape_vec((rows, cols), v).unwrap())
}

fn integer_scheme() -> impl Strategy<Value = String> {
    let grouping =
        prop_oneof![Just("tensor"), Just("channel"), Just("g4"), Just("g5"), Just("flat7")];
    (
        2u8..9,
        grouping,
        prop_oneof![Just("sym"), Just("asym"), Just("float")],
        prop_oneof![Just("f32"), Just("f16")],
    )
        .prop_map(|(b, g, z, s)| format!("int{b} {g} {z} {s}"))
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::CompressedTensors), Just(Family::Gptq), Just(Family::Awq)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Half a step, and what f16 adds: a scale too small for the range, a zero point that is off by
    /// a part of the distance of a group from zero.
    #[test]
    fn errors_are_at_most_half_a_step(
        w in matrix(3, 12), scheme in integer_scheme(), family in family(),
    ) {
        // AWQ's zero points cannot follow groups of one sign.
        prop_assume!(family != Family::Awq || scheme.contains(" sym"));
        let m = quantize(Rtn::default().family(family), &w, &scheme).unwrap();
        let y = m.dequantize();
        let top = (1u32 << m.scheme().number.bits()) as f32;
        let half = scheme.ends_with("f16");
        let largest = w.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for ((r, c), x) in w.indexed_iter() {
            let s = m.scales()[m.scale_at(r, c)];
            let mut bound = 0.5 * s * (1.0 + 1e-4);
            if scheme.contains("float") {
                bound += largest * if half { 1.0 / 2048.0 } else { 3e-7 };
            }
            if half {
                // The range is off by up to 2^-11 of itself at each end, the zero point likewise; a
                // scale below the normal numbers by 2^-25.
                bound += top * s / 1024.0 + top * 3e-8;
            }
            prop_assert!((x - y[[r, c]]).abs() <= bound, "{} {} {} {s}", scheme, x, y[[r, c]]);
        }
    }

    /// Steps in E4M3 are off by a sixteenth, powers of two by a third, and of what the codes then do
    /// not reach that part is lost.
    #[test]
    fn scales_in_eight_bits_stand_for_the_same_weights(
        w in matrix(4, 32), shift in -3.0f32..3.0, number in 0usize..6, asym in any::<bool>(),
    ) {
        let number = ["int2", "int4", "int8", "nf4", "fp4", "e4m3"][number];
        let zero = if asym && number.starts_with("int") { "asym" } else { "sym" };
        let w = w.mapv(|x| x + shift);
        let error = |scale: &str, family| {
            let scheme = format!("{number} g16 {zero} {scale}");
            let y = quantize(Rtn::default().family(family), &w, &scheme).unwrap().dequantize();
            w.iter().zip(&y).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()))
        };
        let largest = w.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for family in [Family::CompressedTensors, Family::Gptq] {
            let exact = error("f32", family);
            for (scale, part) in [("s-e4m3", 0.13), ("s-e8m0", 0.7), ("double", 0.03)] {
                let found = error(scale, family);
                prop_assert!(
                    found <= 2.2 * exact + part * largest, "{number} {zero} {scale}: {found} {exact}"
                );
            }
        }
    }

    #[test]
    fn rounding_is_monotone_and_keeps_zero(
        w in matrix(1, 16), scheme in integer_scheme(), family in family(),
    ) {
        // One group.
        let scheme = scheme.replace("flat7", "tensor").replace("g4", "channel").replace("g5", "g16");
        let y = quantize(Rtn::default().family(family), &w, &scheme).unwrap().dequantize();
        let awq_asym = family == Family::Awq && scheme.contains("asym");
        for (a, fa) in w.iter().zip(&y) {
            if *a == 0.0 && !scheme.contains("float") && !awq_asym {
                prop_assert_eq!(*fa, 0.0);
            }
            for (b, fb) in w.iter().zip(&y) {
                prop_assert!(a > b || fa <= fb);
            }
        }
    }

    #[test]
    fn powers_of_two_scale_through(
        w in matrix(2, 8), scheme in integer_scheme(), family in family(), up in any::<bool>(),
    ) {
        let scheme = scheme.replace("f16", "f32");
        let factor = if up { 4.0 } else { 0.25 };
        let a = quantize(Rtn::default().family(family), &w, &scheme).unwrap();
        let b = quantize(Rtn::default().family(family), &w.mapv(|x| factor * x), &scheme).unwrap();
        // Groups of one value have a scale of their own, and those of AWQ a least one.
        prop_assume!(a.scales().iter().all(|s| *s != 1.0 && *s > 1e-4));
        prop_assert_eq!(a.codes(), b.codes());
        prop_assert_eq!(a.dequantize().mapv(|x| factor * x), b.dequantize());
    }

    /// Where the ends of the range have the outermost codes, they span the same range again.
    #[test]
    fn rounding_twice_changes_nothing(w in matrix(2, 8), bits in 2u8..5, family in family()) {
        // AWQ's symmetric grid ends at its largest weight; its zero points can leave the range.
        let zero = if family == Family::Awq { "sym" } else { "asym" };
        let scheme = format!("int{bits} g4 {zero} f32");
        let rtn = Rtn::default().family(family);
        let a = quantize(rtn, &w, &scheme).unwrap();
        let (y, top) = (a.dequantize(), (1 << bits) - 1);
        let z = quantize(rtn, &y, &scheme).unwrap().dequantize();
        for (r, g) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let group = ndarray::s![r, 4 * g..4 * g + 4];
            let codes = a.codes().slice(group).to_vec();
            // A tie of the zero point may leave a code unused; zeros and one sign have their end at 0.
            let zero_code = a.zeros().map_or(0, |z| z[[r, g]] as u8);
            let ends = codes.iter().chain([&zero_code]);
            let (lo, hi) = ends.fold((255, 0), |(l, h): (u8, u8), c| (l.min(*c), h.max(*c)));
            if zero == "sym" || (lo, hi) == (0, top) {
                let step = a.scales()[[r, g]];
                for (b, c) in y.slice(group).iter().zip(z.slice(group)) {
                    prop_assert!((b - c).abs() <= 1e-5 * step, "{scheme} {codes:?} {b} {c}");
                }
            }
        }
    }

    /// Symmetric grids of 2^b codes never hold their own ends, so a second rounding has other steps:
    /// at most 16/15 as large at 4 bits, and an error of half of one.
    #[test]
    fn rounding_twice_on_a_lopsided_grid_errs_by_half_a_step_each_time(
        w in matrix(2, 8), bits in 2u8..9, gptq in any::<bool>(),
    ) {
        let family = if gptq { Family::Gptq } else { Family::CompressedTensors };
        let scheme = format!("int{bits} g4 sym f32");
        let rtn = Rtn::default().family(family);
        let a = quantize(rtn, &w, &scheme).unwrap();
        let y = a.dequantize();
        let b = quantize(rtn, &y, &scheme).unwrap();
        let codes = f32::from((1u16 << bits) - 1);
        for ((r, c), x) in y.indexed_iter() {
            let (first, second) = (a.scales()[[r, c / 4]], b.scales()[[r, c / 4]]);
            if second != 1.0 {
                prop_assert!(second <= first * (codes + 1.0) / codes * (1.0 + 1e-5));
            }
            let moved = (x - b.dequantize()[[r, c]]).abs();
            prop_assert!(moved <= 0.5 * second * (1.0 + 1e-4), "{scheme} {x} {moved} {second}");
        }
    }

    /// The scaled values end below 8, twice the largest power of two among the codes; those beyond 6
    /// become 6 and lose up to a quarter.
    #[test]
    fn mxfp4_loses_at_most_a_quarter(values in prop::collection::vec(-100.0f32..100.0, 32)) {
        let w = Array2::from_shape_vec((1, 32), values).unwrap();
        let largest = w.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        prop_assume!(largest > 0.0);
        for mx_scale in [prune_quant::MxScale::Floor, prune_quant::MxScale::RoundUp] {
            let m = quantize(Rtn { mx_scale, ..Rtn::default() }, &w, "fp4 g32 s-e8m0").unwrap();
            let scale = m.scales()[[0, 0]];
            prop_assert_eq!(scale.log2().fract(), 0.0);
            let scaled = largest / scale;
            let range = match mx_scale {
                prune_quant::MxScale::Floor => 4.0..8.0,
                prune_quant::MxScale::RoundUp => 3.5..7.0,
            };
            prop_assert!(range.contains(&scaled), "{scaled}");
            for (x, y) in w.iter().zip(&m.dequantize()) {
                let bound = if x.abs() > 6.0 * scale { x.abs() / 4.0 } else { scale };
                prop_assert!((x - y).abs() <= bound, "{x} {y} {scale}");
            }
        }
    }

    #[test]
    fn searching_the_range_never_raises_its_error(w in matrix(2, 8), scheme in integer_scheme()) {
        let error = |range| {
            let y = quantize(Rtn::default().range(range), &w, &scheme).unwrap().dequantize();
            w.iter().zip(&y).map(|(a, b)| f64::from((a - b).abs()).powf(2.4)).sum::<f64>()
        };
        prop_assert!(error(Range::Mse(MseSearch::default())) <= error(Range::MinMax) * (1.0 + 1e-9));
    }

    #[test]
    fn threads_do_not_change_the_bits(w in matrix(7, 12), scheme in integer_scheme()) {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize(Rtn::default(), &w, &scheme).unwrap())
        };
        prop_assert_eq!(on(1), on(3));
    }

    #[test]
    fn nothing_panics_at_the_edges_of_f32(x in prop::collection::vec(any::<f32>(), 8), pick in 0usize..9) {
        let scheme = ["int4", "int2 asym", "int8 float", "nf4 flat3", "fp4 g4 s-e8m0", "fp4 g4 s-e4m3", "e4m3 f32", "e5m2 tensor", "nf4 g4 double"][pick];
        let w = Array2::from_shape_vec((2, 4), x).unwrap();
        for family in [Family::CompressedTensors, Family::Gptq, Family::Awq] {
            for fidelity in [Fidelity::Exact, Fidelity::Released] {
                let rtn = Rtn { family, fidelity, ..Rtn::default() };
                if let Ok(m) = quantize(rtn, &w, scheme) {
                    m.dequantize();
                }
            }
        }
    }
}
