#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Quantised checkpoints against the libraries whose formats they are in.

use std::path::PathBuf;

use prune_checkpoint::{
    Checkpoint, HfWriter, QUANT_FORMATS, QuantFormat, QuantizedCheckpoint, QuantizedOptions,
    QuantizedWriter, WriterOptions, quant_format,
};
use prune_core::{LayerId, QuantScheme, TensorSource, ZeroPoint};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized").join(name)
}

const ALL: [(&str, &str, usize); 9] = [
    ("compressed_tensors", "compressed-tensors", 7),
    ("compressed_tensors_old", "compressed-tensors", 4),
    ("compressed_tensors_nvfp4", "compressed-tensors", 2),
    ("compressed_tensors_mxfp4", "compressed-tensors", 2),
    ("compressed_tensors_mixed", "compressed-tensors", 2),
    ("gptq_v1", "gptq", 4),
    ("gptq_v2", "gptq", 5),
    ("gptq_p", "gptq", 6),
    ("awq", "awq", 2),
];

#[test]
fn every_weight_has_the_bits_that_the_reference_gives() {
    for (name, format, layers) in ALL {
        let found = QuantizedCheckpoint::open(&fixture(name)).unwrap();
        let expected = Checkpoint::open(&fixture(name).join("expected.safetensors")).unwrap();
        assert_eq!((found.format(), found.layers().len()), (format, layers));
        for layer in found.layers() {
            let weight = layer.id.weight_name();
            assert_eq!(found.info(&weight).unwrap(), expected.info(&weight).unwrap(), "{name}");
            let (a, b) = (found.read(&weight).unwrap(), expected.read(&weight).unwrap());
            assert!(a == b, "{name}: {weight}");
        }
    }
}

#[test]
fn other_tensors_and_the_configuration_come_through() {
    let model = QuantizedCheckpoint::open(&fixture("compressed_tensors")).unwrap();
    let norm = model.info("model.norm.weight").unwrap();
    assert_eq!(norm.shape, [40]);
    assert_eq!(model.read_f32("model.norm.weight").unwrap(), [1.0; 40]);
    assert!(model.info("model.layers.0.mlp.up_proj.weight_packed").is_err());
    assert_eq!(model.config().unwrap(), serde_json::json!({ "model_type": "llama" }));
    assert!(model.tensors().is_sorted_by(|a, b| a.name < b.name));
}

#[test]
fn parts_of_a_weight_are_slices_of_the_whole() {
    let model = QuantizedCheckpoint::open(&fixture("gptq_v2")).unwrap();
    let name = model.layers()[1].id.weight_name();
    let whole = model.read(&name).unwrap();
    for (start, len) in [(0, 7), (100, 64), (whole.len() - 3, 3), (5, 0)] {
        let mut part = vec![0; len];
        model.read_at(&name, start, &mut part).unwrap();
        assert_eq!(part, whole[start..start + len]);
    }
    assert!(model.read_at(&name, whole.len(), &mut [0]).is_err());
}

/// Written again by us, the tensors are those of the reference.
#[test]
fn encoding_gives_the_bytes_of_the_reference() {
    for (name, format) in [
        ("compressed_tensors", "compressed-tensors"),
        ("compressed_tensors_nvfp4", "compressed-tensors"),
        ("compressed_tensors_mxfp4", "compressed-tensors"),
        ("compressed_tensors_mixed", "compressed-tensors"),
        ("gptq_v1", "gptq-v1"),
        ("gptq_v2", "gptq"),
        ("gptq_p", "gptq-p"),
        ("awq", "awq"),
    ] {
        let model = QuantizedCheckpoint::open(&fixture(name)).unwrap();
        let stored = Checkpoint::open(&fixture(name)).unwrap();
        let format = quant_format(format).unwrap();
        for layer in model.layers() {
            let matrix = model.read_quantized(&layer.id).unwrap();
            for (info, bytes) in format.encode(&layer.id, &matrix).unwrap() {
                assert_eq!(&info, stored.info(&info.name).unwrap(), "{name}");
                assert!(bytes == stored.read(&info.name).unwrap(), "{name}: {}", info.name);
            }
        }
    }
}

#[test]
fn a_model_converted_between_formats_keeps_its_weights() {
    let directory = tempfile::tempdir().unwrap();
    let stored = fixture("awq");
    let model = QuantizedCheckpoint::open(&stored).unwrap();
    // A plain copy of the weights, to convert from.
    let plain = directory.path().join("plain");
    let mut writer = prune_checkpoint::HfWriter::create(
        &plain,
        prune_checkpoint::WriterOptions {
            plan: model.tensors().to_vec(),
            ..prune_checkpoint::WriterOptions::default()
        },
    )
    .unwrap();
    for tensor in model.tensors() {
        writer.write_tensor(tensor, &model.read(&tensor.name).unwrap()).unwrap();
    }
    for file in model.auxiliary_files().unwrap() {
        if file.name != "expected.safetensors" {
            writer.copy_file(&file).unwrap();
        }
    }
    writer.finish().unwrap();
    let source = Checkpoint::open(&plain).unwrap();
    for to in ["compressed-tensors", "gptq", "awq"] {
        let out = directory.path().join(to);
        let layers: Vec<(LayerId, QuantScheme)> =
            model.layers().iter().map(|l| (l.id.clone(), l.scheme)).collect();
        let format = quant_format(to).unwrap();
        let options = QuantizedOptions::default();
        let mut writer = QuantizedWriter::create(&out, &source, format, layers, &options).unwrap();
        for layer in model.layers() {
            let matrix = model.read_quantized(&layer.id).unwrap();
            writer.write_quantized(&layer.id, &matrix).unwrap();
        }
        writer.finish().unwrap();
        let back = QuantizedCheckpoint::open(&out).unwrap();
        assert_eq!(back.format(), to);
        assert_eq!(back.config().unwrap(), source.config().unwrap());
        for layer in model.layers() {
            let matrix = back.read_quantized(&layer.id).unwrap();
            assert_eq!(matrix, model.read_quantized(&layer.id).unwrap(), "{to}");
        }
    }
}

/// Layers of every library in every format that holds their schemes: the same codes and weights.
#[test]
fn codes_go_between_all_formats_without_loss() {
    let directory = tempfile::tempdir().unwrap();
    let mut counts = Vec::new();
    for (from, _, _) in ALL {
        let model = QuantizedCheckpoint::open(&fixture(from)).unwrap();
        let mut converted = Vec::new();
        for (to, _) in QUANT_FORMATS {
            let format = quant_format(to).unwrap();
            let mut count = 0;
            for layer in model.layers() {
                let matrix = model.read_quantized(&layer.id).unwrap();
                let Ok(tensors) = format.encode(&layer.id, &matrix) else { continue };
                count += 1;
                let out = directory.path().join("model");
                let plan = tensors.iter().map(|(info, _)| info.clone()).collect();
                let options = WriterOptions { plan, overwrite: true, ..WriterOptions::default() };
                let mut writer = HfWriter::create(&out, options).unwrap();
                for (info, bytes) in &tensors {
                    writer.write_tensor(info, bytes).unwrap();
                }
                let schemes = [(layer.id.clone(), layer.scheme)];
                let config = format.config(&schemes, &[]).unwrap();
                let config = serde_json::json!({ "quantization_config": config });
                writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
                writer.finish().unwrap();
                let back = QuantizedCheckpoint::open(&out).unwrap();
                let back = back.read_quantized(&layer.id).unwrap();
                let what = format!("{from} to {to}: {}", layer.id);
                assert_eq!(back.codes(), matrix.codes(), "{what}");
                assert_eq!(back.scales(), matrix.scales(), "{what}");
                assert_eq!(back.group_index(), matrix.group_index(), "{what}");
                assert_eq!(back.dequantize(), matrix.dequantize(), "{what}");
            }
            converted.push(count);
        }
        counts.push((from, converted));
    }
    // To compressed-tensors, gptq, gptq-v1, gptq-p and awq. What is missing has 40 rows, scales in
    // bf16, another width than four bits, an order of groups, zero points of 0, or codes that are
    // no integers.
    let want = [
        ("compressed_tensors", vec![7, 0, 0, 0, 0]),
        ("compressed_tensors_old", vec![4, 0, 0, 0, 0]),
        ("compressed_tensors_nvfp4", vec![2, 0, 0, 0, 0]),
        ("compressed_tensors_mxfp4", vec![2, 0, 0, 0, 0]),
        ("compressed_tensors_mixed", vec![2, 0, 0, 0, 0]),
        ("gptq_v1", vec![4, 4, 4, 4, 1]),
        ("gptq_v2", vec![3, 5, 1, 5, 1]),
        ("gptq_p", vec![5, 6, 0, 6, 1]),
        ("awq", vec![2, 2, 0, 2, 2]),
    ];
    assert_eq!(counts, want);
}

/// compressed-tensors divides by the scale of the matrix, and BF16 holds what it delivers.
#[test]
fn blocks_of_fp4_have_the_scales_of_the_library() {
    let model = QuantizedCheckpoint::open(&fixture("compressed_tensors_nvfp4")).unwrap();
    let layer = &model.layers()[1];
    assert_eq!(layer.scheme, QuantScheme::nvfp4());
    let matrix = model.read_quantized(&layer.id).unwrap();
    let absmax = matrix.dequantize().iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let global = matrix.global_scale().unwrap();
    assert!((global * absmax / 2688.0 - 1.0).abs() < 1e-5, "{global} {absmax}");
    // What belongs to activations is no tensor of the delivered model.
    assert!(model.tensors().iter().all(|t| !t.name.ends_with("scale")));
    let model = QuantizedCheckpoint::open(&fixture("compressed_tensors_mxfp4")).unwrap();
    for layer in model.layers() {
        assert_eq!(layer.scheme, QuantScheme::mxfp4());
        let exact = model.read_quantized(&layer.id).unwrap().dequantize();
        let delivered = model.read_f32(&layer.id.weight_name()).unwrap();
        assert_eq!(exact.into_raw_vec_and_offset().0, delivered);
    }
}

/// Of five, six and seven bits GPTQModel trusts neither the name of the format nor that of v1's
/// zero points.
#[test]
fn planar_widths_are_read_whatever_the_version_says() {
    let directory = tempfile::tempdir().unwrap();
    let stored = fixture("gptq_p");
    let model = QuantizedCheckpoint::open(&stored).unwrap();
    let text = std::fs::read_to_string(stored.join("config.json")).unwrap();
    for version in ["gptq", "gptq_v2"] {
        let out = directory.path().join(version);
        std::fs::create_dir(&out).unwrap();
        std::fs::copy(stored.join("model.safetensors"), out.join("model.safetensors")).unwrap();
        std::fs::write(out.join("config.json"), text.replace("gptq_p", version)).unwrap();
        let other = QuantizedCheckpoint::open(&out).unwrap();
        for layer in model.layers() {
            let (a, b) = (
                model.read_quantized(&layer.id).unwrap(),
                other.read_quantized(&layer.id).unwrap(),
            );
            match (layer.scheme.number.bits(), version) {
                // Dense words of three bits are other codes.
                (3, _) => assert!(a.codes() != b.codes()),
                (4, "gptq") => assert!(a.codes() == b.codes() && a.zeros() != b.zeros()),
                _ => assert_eq!(a, b, "{version}: {}", layer.id),
            }
        }
    }
}

/// As compressed-tensors 0.20.0 packs them, and 0.13.0 before.
#[test]
fn golden_words_of_compressed_tensors() {
    let encode = |bits: u8, codes: Vec<u8>, zeros: Option<ndarray::Array2<f32>>| {
        let (rows, cols) = match &zeros {
            Some(z) => (z.nrows(), z.ncols()),
            None => (1, codes.len()),
        };
        let mut scheme = QuantScheme::int(bits).unwrap();
        if zeros.is_some() {
            scheme = scheme.group(1).zero(ZeroPoint::Integer);
        }
        let groups = if zeros.is_some() { cols } else { 1 };
        let parts = prune_core::QuantizedParts {
            scheme,
            codes: ndarray::Array2::from_shape_vec((rows, cols), codes).unwrap(),
            scales: ndarray::Array2::ones((rows, groups)),
            zeros,
            global_scale: None,
            group_index: None,
            column_scales: None,
        };
        let matrix = prune_core::QuantizedMatrix::from_parts("w", parts).unwrap();
        let format = prune_checkpoint::CompressedTensors;
        let tensors = format.encode(&LayerId::new("w"), &matrix).unwrap();
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
        };
        (words(&tensors[0].1), tensors.get(3).map(|t| (t.0.shape.clone(), words(&t.1))))
    };
    let signed = |bits: u8, codes: &[i16]| -> Vec<u8> {
        codes.iter().map(|q| (q + (1 << (bits - 1))) as u8).collect()
    };
    let words = |bits, codes: &[i16]| encode(bits, signed(bits, codes), None).0;
    assert_eq!(words(4, &[-8, -7, -1, 0, 1, 2, 6, 7]), [0xfea9_8710]);
    assert_eq!(words(4, &[0, 3, -5, 7, -5, 6, -7, 7, 7, -6]), [0xf1e3_f3b8, 0x2f]);
    assert_eq!(words(8, &[-128, -1, 0, 127]), [0xff80_7f00]);
    let zeros = ndarray::Array2::from_shape_fn((10, 2), |(r, g)| match g {
        0 => r as f32,
        _ => 15.0 - r as f32,
    });
    let (_, zero_point) = encode(4, vec![0; 20], Some(zeros));
    let (shape, words) = zero_point.unwrap();
    assert_eq!(shape, [2, 2]);
    assert_eq!(words, [0x7654_3210, 0x89ab_cdef, 0x98, 0x67]);
}

/// A symmetric 4-bit v1 file says 7 where a v2 file says 8; a zero point of 0 wraps.
#[test]
fn zero_points_of_v1_are_one_less() {
    let directory = tempfile::tempdir().unwrap();
    for (format, word, zeros) in [
        ("gptq", 0x7777_7777u32, [8.0f32; 8]),
        ("gptq_v2", 0x8888_8888, [8.0; 8]),
        ("gptq", 0xffff_ff77, [8.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ("gptq_v2", 0x781f_3088, [8.0, 8.0, 0.0, 3.0, 15.0, 1.0, 8.0, 7.0]),
        ("gptq", 0x670e_2f77, [8.0, 8.0, 0.0, 3.0, 15.0, 1.0, 8.0, 7.0]),
        // As GPTQModel converts whole words, lane 3 comes out wrong in a reader of nibbles.
        ("gptq", 0x670e_1f77, [8.0, 8.0, 0.0, 2.0, 15.0, 1.0, 8.0, 7.0]),
    ] {
        let out = directory.path().join("model");
        let tensor = |name: &str, dtype, shape: &[usize]| prune_core::TensorInfo {
            name: format!("a.{name}"),
            dtype,
            shape: shape.to_vec(),
        };
        let plan = vec![
            tensor("qweight", prune_core::DType::I32, &[4, 32]),
            tensor("qzeros", prune_core::DType::I32, &[1, 4]),
            tensor("scales", prune_core::DType::F16, &[1, 32]),
        ];
        let mut writer = prune_checkpoint::HfWriter::create(
            &out,
            prune_checkpoint::WriterOptions {
                plan: plan.clone(),
                overwrite: true,
                ..prune_checkpoint::WriterOptions::default()
            },
        )
        .unwrap();
        writer.write_tensor(&plan[0], &[0; 512]).unwrap();
        let words: Vec<u8> = [word; 4].iter().flat_map(|w| w.to_le_bytes()).collect();
        writer.write_tensor(&plan[1], &words).unwrap();
        writer.write_tensor(&plan[2], &[0x00, 0x3c].repeat(32)).unwrap();
        let config = format!(
            r#"{{"quantization_config": {{"quant_method": "gptq", "bits": 4, "group_size": -1,
                "checkpoint_format": "{format}"}}}}"#
        );
        writer.add_file("config.json", config.as_bytes()).unwrap();
        writer.finish().unwrap();
        let model = QuantizedCheckpoint::open(&out).unwrap();
        let matrix = model.read_quantized(&LayerId::new("a")).unwrap();
        let found: Vec<f32> = matrix.zeros().unwrap().iter().take(8).copied().collect();
        assert_eq!(found, zeros, "{format} {word:#x}");
    }
}
