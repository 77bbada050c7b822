#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! What is written: sizes, configurations, and what is refused.

use ndarray::Array2;
use proptest::prelude::*;
use prune_checkpoint::{Error, QUANT_FORMATS, decode_layer, quant_format};
use prune_core::{
    LayerId, QuantScheme, QuantizedMatrix, QuantizedParts, TensorInfo, TensorSource, ZeroPoint,
    decode_e4m3, decode_e8m0,
};
use serde_json::json;

fn matrix(rows: usize, cols: usize, scheme: QuantScheme) -> QuantizedMatrix {
    let top = 1usize << scheme.number.bits();
    let shape = scheme.granularity.scales_shape(rows, cols);
    let parts = QuantizedParts {
        scheme,
        codes: Array2::from_shape_fn((rows, cols), |(r, c)| ((7 * r + 5 * c) % top) as u8),
        scales: Array2::from_elem(shape, 0.5),
        zeros: (scheme.zero == ZeroPoint::Integer).then(|| Array2::from_elem(shape, 1.0)),
        global_scale: None,
        group_index: None,
        column_scales: None,
    };
    QuantizedMatrix::from_parts("w", parts).unwrap()
}

#[test]
fn the_sizes_of_a_large_layer_are_those_of_the_formula() {
    let (rows, cols) = (11008, 4096);
    let bytes = |format: &str, scheme: &str| -> usize {
        let scheme = scheme.parse().unwrap();
        let plan = quant_format(format).unwrap().plan(&LayerId::new("w"), rows, cols, &scheme);
        plan.unwrap().iter().map(|t| t.nbytes()).sum()
    };
    assert_eq!(bytes("gptq", "int4 g128 asym"), 23_441_408);
    // Without the index of 4 bytes a channel.
    assert_eq!(bytes("awq", "int4 g128 asym"), 23_441_408 - 4 * cols);
    // And with the shape in 16 bytes.
    assert_eq!(bytes("compressed-tensors", "int4 g128 asym"), 23_441_408 - 4 * cols + 16);
    let scheme: QuantScheme = "int4 g128 asym".parse().unwrap();
    assert_eq!(scheme.nbytes(rows, cols), 23_441_408 - 4 * cols);
    let per_weight = 8.0 * 23_441_408.0 / (rows * cols) as f64;
    assert!((per_weight - 4.159157).abs() < 5.1e-7, "{per_weight}");
    // An index of 32 bits a channel is 32 / out bits a weight.
    let more = per_weight - scheme.bits_per_weight(rows, cols);
    assert!((more - 32.0 / rows as f64).abs() < 1e-12);
}

/// A zero point of 8 is 7 in v1 and 8 in v2; lanes by the formula of either.
#[test]
fn zero_points_are_stored_less_one_in_v1_and_as_they_are_in_v2() {
    let words = |format: &str, zeros: Option<[u8; 8]>| {
        let mut scheme = QuantScheme::int(4).unwrap();
        if zeros.is_some() {
            scheme = scheme.zero(ZeroPoint::Integer);
        }
        let mut parts = matrix(32, 32, scheme).into_parts();
        parts.zeros = zeros.map(|z| Array2::from_shape_fn((32, 1), |(r, _)| f32::from(z[r % 8])));
        let m = QuantizedMatrix::from_parts("w", parts).unwrap();
        let tensors = quant_format(format).unwrap().encode(&LayerId::new("w"), &m)?;
        let (info, bytes) = &tensors[1];
        assert_eq!((info.name.as_str(), bytes.len()), ("w.qzeros", 16));
        Ok::<u32, Error>(u32::from_le_bytes(bytes[..4].try_into().unwrap()))
    };
    assert_eq!(words("gptq", None).unwrap(), 0x8888_8888);
    assert_eq!(words("gptq-v1", None).unwrap(), 0x7777_7777);
    let zeros = [8, 8, 0, 3, 15, 1, 8, 7];
    assert_eq!(words("gptq", Some(zeros)).unwrap(), 0x781f_3088);
    let e = words("gptq-v1", Some(zeros)).unwrap_err().to_string();
    assert!(e.contains("a zero point of 0") && e.contains("`gptq`"), "{e}");
    let zeros = [8, 8, 1, 3, 15, 1, 8, 7];
    assert_eq!(words("gptq-v1", Some(zeros)).unwrap(), 0x670e_2077);
    let layers = [(LayerId::new("w"), QuantScheme::int(4).unwrap())];
    for (format, name) in [("gptq", "gptq_v2"), ("gptq-v1", "gptq")] {
        let format = quant_format(format).unwrap();
        assert_eq!(format.config(&layers, &[]).unwrap()["checkpoint_format"], name);
        let files = format.files(&layers).unwrap();
        assert_eq!(
            (files[0].0, &files[0].1["checkpoint_format"]),
            ("quantize_config.json", &json!(name))
        );
    }
}

#[test]
fn compressed_tensors_says_what_vllm_expects() {
    let scheme: QuantScheme = "int4 g128 sym bf16".parse().unwrap();
    let layers = [(LayerId::new("model.layers.0.mlp.up_proj"), scheme)];
    let config = quant_format("compressed-tensors").unwrap();
    let config = config.config(&layers, &[LayerId::new("lm_head")]).unwrap();
    assert_eq!(
        config,
        json!({
            "quant_method": "compressed-tensors",
            "version": "0.18.0",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "global_compression_ratio": null,
            "config_groups": { "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
                    "group_size": 128, "block_structure": null, "dynamic": false, "actorder": null,
                    "scale_dtype": null, "zp_dtype": null, "observer": "minmax",
                    "observer_kwargs": {},
                },
                "input_activations": null, "output_activations": null, "format": null,
            }},
            "ignore": ["lm_head"],
            "kv_cache_scheme": null,
            "sparsity_config": {},
            "transform_config": {},
        })
    );
}

/// The fields that compressed-tensors 0.20.1 writes for its presets `NVFP4A16` and `MXFP4A16`.
#[test]
fn compressed_tensors_says_how_fp4_is_grouped() {
    let format = quant_format("compressed-tensors").unwrap();
    let layer = |name: &str, scheme: &str| (LayerId::new(name), scheme.parse().unwrap());
    for (scheme, name, strategy, group, dtype) in [
        ("nvfp4", "nvfp4-pack-quantized", "tensor_group", 16, "torch.float8_e4m3fn"),
        ("mxfp4", "mxfp4-pack-quantized", "group", 32, "torch.uint8"),
    ] {
        let config = format.config(&[layer("a", scheme)], &[]).unwrap();
        assert_eq!(config["format"], name);
        let group_0 = &config["config_groups"]["group_0"];
        assert_eq!((&group_0["targets"], &group_0["format"]), (&json!(["Linear"]), &json!(null)));
        for (field, value) in [
            ("num_bits", json!(4)),
            ("type", json!("float")),
            ("symmetric", json!(true)),
            ("strategy", json!(strategy)),
            ("group_size", json!(group)),
            ("dynamic", json!(false)),
            ("scale_dtype", json!(dtype)),
        ] {
            assert_eq!(group_0["weights"][field], value, "{scheme} {field}");
        }
    }
    let layers = [layer("a", "nvfp4"), layer("b", "int4 g32"), layer("c", "int8 g32")];
    let config = format.config(&layers, &[]).unwrap();
    assert_eq!(config["format"], "mixed-precision");
    let formats: Vec<_> = config["config_groups"].as_object().unwrap().values().collect();
    let names = ["nvfp4-pack-quantized", "pack-quantized", "pack-quantized"];
    assert!(formats.iter().map(|g| &g["format"]).eq(names.iter()));
    assert_eq!(formats[0]["targets"], json!(["a"]));
}

#[test]
fn planar_layers_of_gptq_name_the_format_of_gptqmodel() {
    let layers = |bits: &[u8]| -> Vec<(LayerId, QuantScheme)> {
        let scheme = |b: &u8| QuantScheme::int(*b).unwrap().group(32);
        bits.iter().map(|b| (LayerId::new(format!("l{b}")), scheme(b))).collect()
    };
    let written = |format: &str, bits: &[u8]| {
        let format = quant_format(format).unwrap();
        Ok::<_, Error>(format.config(&layers(bits), &[])?["checkpoint_format"].clone())
    };
    assert_eq!(written("gptq", &[2, 3, 4, 8]).unwrap(), "gptq_v2");
    assert_eq!(written("gptq", &[4, 5]).unwrap(), "gptq_p");
    assert_eq!(written("gptq-p", &[3]).unwrap(), "gptq_p");
    assert_eq!(written("gptq-p", &[3, 5]).unwrap(), "gptq_p");
    assert_eq!(written("gptq-v1", &[3, 4]).unwrap(), "gptq");
    let e = written("gptq", &[3, 7]).unwrap_err();
    assert!(matches!(e, Error::Plan { .. }) && e.to_string().contains("gptq-p"), "{e}");
}

#[test]
fn layers_of_several_schemes_are_listed_by_name() {
    let scheme = |text: &str| text.parse::<QuantScheme>().unwrap();
    let layers = [
        (LayerId::new("a.b"), scheme("int4 g32")),
        (LayerId::new("c.d"), scheme("int2 g32")),
        (LayerId::new("e.f"), scheme("int4 g32")),
    ];
    let ct = quant_format("compressed-tensors").unwrap().config(&layers, &[]).unwrap();
    assert_eq!(ct["config_groups"]["group_0"]["targets"], json!(["a.b", "e.f"]));
    assert_eq!(ct["config_groups"]["group_1"]["targets"], json!(["c.d"]));
    assert_eq!(ct["config_groups"]["group_1"]["weights"]["num_bits"], 2);
    let gptq = quant_format("gptq").unwrap().config(&layers, &[LayerId::new("g")]).unwrap();
    assert_eq!(gptq["bits"], 4);
    assert_eq!(gptq["dynamic"]["+:^c\\.d$"]["bits"], 2);
    assert!(gptq["dynamic"]["-:^g$"].is_object());
    let mixed = [layers[0].clone(), (LayerId::new("c.d"), scheme("int4 g64"))];
    let awq = quant_format("awq").unwrap();
    assert!(matches!(awq.config(&mixed, &[]), Err(Error::Plan { .. })));
    assert!(matches!(awq.config(&[], &[]), Err(Error::Plan { .. })));
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_the_way_out() {
    for (format, scheme, rows, cols, word) in [
        ("compressed-tensors", "nf4 g32", 32, 64, "integers"),
        ("compressed-tensors", "int4 g32 float", 32, 64, "sym"),
        ("compressed-tensors", "int4 g48", 32, 64, "rest"),
        ("compressed-tensors", "int4 flat64", 32, 64, "within rows"),
        ("compressed-tensors", "nvfp4", 32, 24, "rest"),
        ("compressed-tensors", "mxfp4", 32, 48, "rest"),
        ("compressed-tensors", "mxfp4 g16", 32, 64, "`mxfp4`"),
        ("compressed-tensors", "e4m3 f32", 32, 64, "`nvfp4`"),
        ("gptq", "nvfp4", 32, 64, "integers"),
        ("gptq-v1", "int5 g32", 32, 64, "`gptq-p`"),
        ("gptq-p", "int5 g32", 32, 33, "multiples of 32"),
        ("gptq", "int4 g32 bf16", 32, 64, "f16"),
        ("gptq", "int4 g32", 31, 64, "multiples of 32"),
        ("gptq", "int4 tensor", 32, 64, "channel"),
        ("gptq-v1", "int4 g32", 32, 33, "multiples of 32"),
        ("gptq-v1", "int4 g32 float", 32, 64, "asym"),
        ("awq", "int3 g32", 32, 64, "int4"),
        ("awq", "int4 g32", 12, 64, "multiple of 8"),
        ("awq", "int4 g48", 32, 64, "divide"),
    ] {
        let scheme = scheme.parse().unwrap();
        let plan = quant_format(format).unwrap().plan(&LayerId::new("w"), rows, cols, &scheme);
        let error = plan.unwrap_err();
        assert!(matches!(error, Error::Tensor { .. }));
        assert!(error.to_string().contains(word), "{format} {scheme}: {error}");
    }
    let mut parts = matrix(32, 64, "int4 g32".parse().unwrap()).into_parts();
    parts.group_index = Some((0..64).map(|c| c % 2).collect());
    let ordered = QuantizedMatrix::from_parts("w", parts.clone()).unwrap();
    for (format, ok) in [
        ("compressed-tensors", false),
        ("awq", false),
        ("gptq", true),
        ("gptq-v1", true),
        ("gptq-p", true),
    ] {
        let encoded = quant_format(format).unwrap().encode(&LayerId::new("w"), &ordered);
        assert_eq!(encoded.is_ok(), ok, "{format}");
    }
    parts.group_index = None;
    parts.column_scales = Some(vec![2.0; 64]);
    let scaled = QuantizedMatrix::from_parts("w", parts).unwrap();
    for (format, _) in QUANT_FORMATS {
        let error = quant_format(format).unwrap().encode(&LayerId::new("w"), &scaled).unwrap_err();
        assert!(error.to_string().contains("fold"), "{error}");
    }
}

/// Tensors of one layer in memory.
struct Stored {
    infos: Vec<TensorInfo>,
    bytes: Vec<Vec<u8>>,
}

impl Stored {
    fn new(mut tensors: Vec<(TensorInfo, Vec<u8>)>) -> Self {
        tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (infos, bytes) = tensors.into_iter().unzip();
        Self { infos, bytes }
    }
}

impl TensorSource for Stored {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let at = self.infos.iter().position(|t| t.name == name).unwrap();
        buf.copy_from_slice(&self.bytes[at][offset..offset + buf.len()]);
        Ok(())
    }
}

/// Any codes of FP4 under any scales that the scheme has.
fn fp4(
    scheme: QuantScheme,
    rows: usize,
    cols: usize,
    bytes: &[u8],
    global: f32,
) -> QuantizedMatrix {
    let mxfp4 = scheme == QuantScheme::mxfp4();
    let mut bytes = bytes.iter().cycle().copied();
    let mut next = |_| bytes.next().unwrap_or_default();
    let scale = |b: u8| if mxfp4 { decode_e8m0(b) } else { decode_e4m3(b) };
    let shape = scheme.granularity.scales_shape(rows, cols);
    let parts = QuantizedParts {
        scheme,
        codes: Array2::from_shape_fn((rows, cols), |_| next(()) & 15),
        scales: Array2::from_shape_fn(shape, |_| match scale(next(())) {
            x if x.is_nan() => 1.0,
            x => x,
        }),
        zeros: None,
        global_scale: (!mxfp4).then_some(global),
        group_index: None,
        column_scales: None,
    };
    QuantizedMatrix::from_parts("w", parts).unwrap()
}

#[test]
fn scales_that_fp4_cannot_store_are_refused() {
    let format = quant_format("compressed-tensors").unwrap();
    for (scheme, word) in [("nvfp4", "E4M3"), ("mxfp4", "powers of two")] {
        let mut parts = fp4(scheme.parse().unwrap(), 2, 64, &[3, 120], 7.0).into_parts();
        parts.scales[[1, 1]] = 0.3;
        let m = QuantizedMatrix::from_parts("w", parts).unwrap();
        let e = format.encode(&LayerId::new("w"), &m).unwrap_err().to_string();
        assert!(e.contains(word) && e.contains("0.3") && e.contains("w.weight"), "{e}");
    }
    let mut parts = fp4(QuantScheme::mxfp4(), 2, 64, &[3, 120], 7.0).into_parts();
    parts.global_scale = Some(2.0);
    let m = QuantizedMatrix::from_parts("w", parts).unwrap();
    let e = format.encode(&LayerId::new("w"), &m).unwrap_err().to_string();
    assert!(e.contains("whole matrix"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fp4_comes_back_as_it_was(
        bytes in prop::collection::vec(any::<u8>(), 1..400), mxfp4 in any::<bool>(),
        rows in 1usize..4, cols in 1usize..4, global in 1e-3f32..1e6,
    ) {
        let scheme = if mxfp4 { QuantScheme::mxfp4() } else { QuantScheme::nvfp4() };
        let m = fp4(scheme, rows, 32 * cols, &bytes, global);
        let format = quant_format("compressed-tensors").unwrap();
        let layer = LayerId::new("w");
        let encoded = format.encode(&layer, &m).unwrap();
        prop_assert_eq!(encoded.iter().map(|(_, b)| b.len()).sum::<usize>(), m.nbytes());
        for (info, bytes) in &encoded {
            prop_assert_eq!(info.nbytes(), bytes.len());
        }
        let stored = Stored::new(encoded.clone());
        let back = decode_layer(&*format, &layer, &scheme, &stored).unwrap();
        prop_assert_eq!(&back, &m);
        prop_assert_eq!(format.encode(&layer, &back).unwrap(), encoded);
    }

    /// Codes, scales and zero points of every width in every packing of GPTQ.
    #[test]
    fn gptq_comes_back_as_it_was(bits in 2u8..9, rows in 1usize..3, cols in 1usize..3, add in any::<u8>()) {
        let scheme = QuantScheme::int(bits).unwrap().group(32).zero(ZeroPoint::Integer);
        let mut parts = matrix(32 * rows, 32 * cols, scheme).into_parts();
        let top = ((1u32 << bits) - 1) as u8;
        parts.codes.mapv_inplace(|c| c.wrapping_add(add) & top);
        let zeros = (0..).map(|i: usize| ((11 * i + 1) % usize::from(top)) as f32 + 1.0);
        parts.zeros.as_mut().unwrap().iter_mut().zip(zeros).for_each(|(z, v)| *z = v);
        let m = QuantizedMatrix::from_parts("w", parts).unwrap();
        let layer = LayerId::new("w");
        for name in ["gptq", "gptq-p", "gptq-v1"] {
            let format = quant_format(name).unwrap();
            let Ok(encoded) = format.encode(&layer, &m) else {
                prop_assert!(name == "gptq-v1" && (5..8).contains(&bits));
                continue;
            };
            let back = decode_layer(&*format, &layer, &scheme, &Stored::new(encoded)).unwrap();
            prop_assert_eq!(back.codes(), m.codes(), "{} {}", name, bits);
            prop_assert_eq!(back.zeros(), m.zeros(), "{} {}", name, bits);
        }
    }

    #[test]
    fn bytes_are_as_many_as_planned(
        bits in 2u8..9, asym in any::<bool>(), group in prop_oneof![Just(16usize), Just(32), Just(64)],
        rows in 1usize..4, cols in 1usize..4,
    ) {
        let zero = if asym { ZeroPoint::Integer } else { ZeroPoint::Symmetric };
        let scheme = QuantScheme::int(bits).unwrap().group(group).zero(zero);
        let m = matrix(32 * rows, 64 * cols, scheme);
        for (name, _) in QUANT_FORMATS {
            let format = quant_format(name).unwrap();
            let layer = LayerId::new("w");
            let Ok(plan) = format.plan(&layer, m.rows(), m.cols(), &scheme) else {
                let no_v1 = *name == "gptq-v1" && (5..8).contains(&bits);
                prop_assert!(*name == "awq" && bits != 4 || no_v1);
                continue;
            };
            let encoded = format.encode(&layer, &m).unwrap();
            prop_assert_eq!(plan.len(), encoded.len());
            let mut sum = 0;
            for (planned, (info, bytes)) in plan.iter().zip(&encoded) {
                prop_assert_eq!(planned, info);
                prop_assert_eq!(info.nbytes(), bytes.len());
                sum += bytes.len();
            }
            // What the matrix says it takes, and what each format has besides: an index of groups,
            // a shape, zero points also where they are all the same.
            let groups = m.rows() * m.cols() / group;
            let zeros = if asym { 0 } else { groups * bits as usize / 8 };
            let more = match *name {
                "compressed-tensors" => 16,
                "awq" => zeros,
                _ => zeros + 4 * m.cols(),
            };
            prop_assert_eq!(sum, m.nbytes() + more, "{}", name);
        }
    }
}
