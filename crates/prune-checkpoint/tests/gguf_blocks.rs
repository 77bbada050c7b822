#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Blocks that are written, against what ggml and its Python package write.

use ndarray::{Array2, array};
use proptest::prelude::*;
use prune_checkpoint::{BlockType, GgufType, transcode};
use prune_core::{
    Granularity, QuantScheme, QuantizedMatrix, QuantizedParts, ScaleFormat, ZeroPoint,
};

const ALL: [BlockType; 12] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Mxfp4,
    BlockType::Nvfp4,
    BlockType::Q2K,
    BlockType::Q3K,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
];

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, b| {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
        crc
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn wave(n: usize) -> Vec<f32> {
    let at = |j: f64| ((0.1 * j).sin() * (1.0 + 0.01 * j)) as f32;
    (0..n).map(|j| at(j as f64)).collect()
}

/// The scalar code of ggml (d99724f), compiled without contraction of products and sums: bytes, root
/// mean square and largest error.
#[test]
fn blocks_match_the_scalar_code_of_ggml() {
    for (kind, expected, rms, most) in [
        (BlockType::Q4_0, "a4b008070706051514232332424151607080", 0.039200, 0.071336),
        (BlockType::Q4_1, "f32c0000f0f1f3f4e5e7d8c9baab8c7d6d4e2f1f", 0.021352, 0.038574),
        (BlockType::Q5_0, "a4ac01000000000f0d0c1a29283645647392a2c1d1f0", 0.022453, 0.035785),
        (BlockType::Q5_1, "ca280000c0ffff07f0f3f5e8dbcda092654719fabc8d5e1f", 0.010915, 0.018446),
        (
            BlockType::Q8_0,
            "ad20000b16212c37424b555d656c72777b7e7f7f7e7b77726c645c52473b2f221406",
            0.002581,
            0.004515,
        ),
    ] {
        let x = wave(32);
        let bytes = kind.encode("w", &x).unwrap();
        assert_eq!(hex(&bytes), expected, "{kind:?}");
        check_errors(kind, &x, &bytes, rms, most);
    }
    for (kind, crc, rms, most) in [
        (BlockType::Q2K, 0xa3b2_b894, 0.197014, 0.580871),
        (BlockType::Q3K, 0xa41a_e4d1, 0.145241, 0.358137),
        (BlockType::Q4K, 0x7837_4155, 0.048968, 0.136585),
        (BlockType::Q5K, 0x2d11_1590, 0.025453, 0.070271),
        (BlockType::Q6K, 0xce53_6fbf, 0.017970, 0.048561),
    ] {
        let x = wave(256);
        let bytes = kind.encode("w", &x).unwrap();
        assert_eq!(crc32(&bytes), crc, "{kind:?} {}", hex(&bytes));
        check_errors(kind, &x, &bytes, rms, most);
    }
}

fn check_errors(kind: BlockType, x: &[f32], bytes: &[u8], rms: f64, most: f64) {
    let y = kind.decode("w", bytes).unwrap();
    let d: Vec<f64> = x.iter().zip(&y).map(|(a, b)| f64::from(a - b).abs()).collect();
    let found = (d.iter().map(|d| d * d).sum::<f64>() / d.len() as f64).sqrt();
    assert!((found - rms).abs() < 2e-6, "{kind:?}: {found}");
    assert!((d.iter().fold(0.0f64, |m, d| m.max(*d)) - most).abs() < 2e-6, "{kind:?}");
}

/// ggml's decoder on the blocks of the golden values.
#[test]
fn blocks_decode_as_ggml_decodes_them() {
    for (kind, want) in [
        (BlockType::Q2K, [0.0, 0.0, 0.325439, 0.325439, 0.325439, 0.650879]),
        (BlockType::Q3K, [0.0, 0.0, 0.279968, 0.279968, 0.279968, 0.559937]),
        (BlockType::Q4K, [0.0, 0.076538, 0.229614, 0.306152, 0.382690, 0.535767]),
        (BlockType::Q5K, [0.0, 0.112518, 0.187531, 0.300049, 0.412567, 0.487579]),
        (BlockType::Q6K, [0.0, 0.107954, 0.215907, 0.287876, 0.395830, 0.503783]),
    ] {
        let y = kind.decode("w", &kind.encode("w", &wave(256)).unwrap()).unwrap();
        for (a, b) in y.iter().zip(want) {
            assert!((f64::from(*a) - b).abs() < 1e-6, "{kind:?}: {a} {b}");
        }
    }
}

/// Blocks of sizes from 2^-7 to 2, one of zeros and one of a constant.
fn hashed() -> Vec<f32> {
    let mut x: Vec<f32> = (0..8192u64)
        .map(|i| {
            let hash = (i * 2_654_435_761 % (1 << 32)) >> 8;
            let unit = hash as f64 / f64::from(1 << 24) - 0.5;
            (unit * 2f64.powi((i / 32 % 9) as i32 - 6)) as f32
        })
        .collect();
    x[64..96].fill(0.0);
    x[128..160].fill(0.375);
    x
}

/// `gguf.quants.quantize` of gguf 0.19.0.
#[test]
fn small_blocks_match_the_python_package() {
    for (kind, crc) in [
        (BlockType::Q4_0, 0x2188_8e68),
        (BlockType::Q4_1, 0x4b70_7000),
        (BlockType::Q5_0, 0x51e3_001f),
        (BlockType::Q5_1, 0x05dc_0cea),
        (BlockType::Q8_0, 0x3e7e_7b09),
        (BlockType::Mxfp4, 0x36e6_117e),
    ] {
        assert_eq!(crc32(&kind.encode("w", &hashed()).unwrap()), crc, "{kind:?}");
    }
}

/// `gguf.quants` of gguf 0.19.0, which are those of the scalar code of ggml.
#[test]
fn blocks_of_fp4_match_the_python_package() {
    let kind = BlockType::Mxfp4;
    let x: Vec<f32> = (0..32).map(|j| (3.7 * (3.0 * f64::from(j)).sin()) as f32).collect();
    let bytes = kind.encode("w", &x).unwrap();
    // What rounds to zero from below is the positive one.
    assert_eq!(hex(&bytes), "7ef062ec55ce260fa74fd76fe77ff77ff7");
    let y = kind.decode("w", &bytes).unwrap();
    let error: f64 = x.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    assert!((error / 32.0 - 0.105_771_3).abs() < 1e-7, "{}", error / 32.0);
    let floats =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let back = kind.decode("w", &kind.encode("w", &hashed()).unwrap()).unwrap();
    assert_eq!(crc32(&floats(&back)), 0x6763_f5ed);
    // Every scale byte but the one that is no number, under all codes.
    let blocks: Vec<u8> = (0..255u32)
        .flat_map(|e| (0..17).map(move |j| if j == 0 { e } else { 37 * e + 17 * (j - 1) } as u8))
        .collect();
    assert_eq!(crc32(&floats(&kind.decode("w", &blocks).unwrap())), 0x294b_9801);
    // A largest element just below a power of two counts as that where its logarithm is rounded up.
    for (power, scale, codes) in [(4.0f32, 126, 0x77), (1_048_576.0, 145, 0x66)] {
        let below = kind.encode("w", &[power.next_down(); 32]).unwrap();
        assert_eq!((below[0], below[1]), (scale, codes));
    }
    assert_eq!(kind.encode("w", &[3.9f32; 32]).unwrap()[0], 126);
    // Halfway between two codes the lower one.
    let mut x = [0.0f32; 32];
    x[..4].copy_from_slice(&[4.0, 0.25, -2.5, 5.0]);
    assert_eq!(kind.encode("w", &x).unwrap()[..5], [127, 6, 0, 12, 6]);
}

/// The scalar code of ggml (d99724f), compiled without contraction of products and sums, whose
/// decoder agrees with `gguf.quants` of gguf 0.19.0.
#[test]
fn blocks_of_nvfp4_match_ggml() {
    let kind = BlockType::Nvfp4;
    let size = [1.0, 0.05, 40.0, 700.0];
    let wave = |j: usize| ((3.0 * j as f64).sin() * size[j / 16]) as f32;
    let x: Vec<f32> = (0..64).map(wave).collect();
    let bytes = kind.encode("w", &x).unwrap();
    assert_eq!(
        hex(&bytes),
        "23044d6ff072fb74fd76fe663ec65ee56cf270f967df47af171fb64efd76fe76ef67ef57"
    );
    let y = kind.decode("w", &bytes).unwrap();
    assert_eq!(y[..4], [0.0, 0.171875, -0.2578125, 0.34375]);
    assert_eq!(y[16..20], [-0.03125, 0.03125, -0.03125, 0.0234375]);
    let error: f64 = x.iter().zip(&y).take(16).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    assert!((error / 16.0 - 0.006_525_575).abs() < 1e-9, "{}", error / 16.0);

    let floats =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    for (factor, crc) in [(1.0, 0xea9c_9c8e), (1000.0, 0x0b2c_a160), (0.001, 0x950c_287d)] {
        let x: Vec<f32> = hashed().iter().map(|v| v * factor).collect();
        assert_eq!(crc32(&kind.encode("w", &x).unwrap()), crc, "{factor}");
    }
    let back = kind.decode("w", &kind.encode("w", &hashed()).unwrap()).unwrap();
    assert_eq!(crc32(&floats(&back)), 0xb6ba_483f);
    // Every scale byte, the one that is no number and those with a sign among them, under all codes.
    let byte = |e: u32, j: u32| if j < 4 { e + 64 * j } else { 37 * e + 17 * (j - 4) } as u8;
    let blocks: Vec<u8> = (0..256).flat_map(|e| (0..36).map(move |j| byte(e, j))).collect();
    assert_eq!(crc32(&floats(&kind.decode("w", &blocks).unwrap())), 0x976f_ef4b);

    // Halfway between two codes the lower one, between two scales the upper one; from 256 on 448.
    let mut x = [0.0f32; 64];
    x[..4].copy_from_slice(&[6.0, 0.25, -2.5, 5.0]);
    (x[16], x[32], x[48]) = (6.375, 1536.0, 6.0 * 2f32.powi(-10));
    assert_eq!(
        hex(&kind.encode("w", &x).unwrap()),
        "38397e0107000c0600000000070000000000000005000000000000000500000000000000"
    );
}

/// ggml cuts off what is above the largest code under the largest scale.
#[test]
fn nvfp4_refuses_what_it_would_cut_off() {
    let kind = BlockType::Nvfp4;
    let mut x = [1.0f32; 64];
    x[9] = -2688.0;
    assert_eq!(kind.decode("w", &kind.encode("w", &x).unwrap()).unwrap()[9], -2688.0);
    x[9] = -2688.5;
    let e = kind.encode("w", &x).unwrap_err().to_string();
    assert!(e.contains("-2688.5 at 9") && e.contains("2.688e3"), "{e}");
}

#[test]
fn blocks_have_the_sizes_of_ggml() {
    use BlockType::*;
    for (kind, elements, bytes, bits) in [
        (Q4_0, 32, 18, 4.5),
        (Q4_1, 32, 20, 5.0),
        (Q5_0, 32, 22, 5.5),
        (Q5_1, 32, 24, 6.0),
        (Q8_0, 32, 34, 8.5),
        (Mxfp4, 32, 17, 4.25),
        (Nvfp4, 64, 36, 4.5),
        (Q2K, 256, 84, 2.625),
        (Q3K, 256, 110, 3.4375),
        (Q4K, 256, 144, 4.5),
        (Q5K, 256, 176, 5.5),
        (Q6K, 256, 210, 6.5625),
    ] {
        assert_eq!((kind.elements(), kind.bytes()), (elements, bytes), "{kind:?}");
        assert_eq!(8.0 * bytes as f64 / elements as f64, bits, "{kind:?}");
    }
}

#[test]
fn eight_bits_round_ties_away_from_zero() {
    let mut x = [0.0f32; 32];
    x[..7].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.499]);
    let bytes = BlockType::Q8_0.encode("w", &x).unwrap();
    let codes = bytes[2..9].iter().map(|b| *b as i8);
    assert!(codes.eq([127, 1, -1, 2, 3, -3, 0]));
}

/// The scale has the sign of the largest element, of the first one of equals.
#[test]
fn the_first_of_the_largest_elements_gets_the_outermost_code() {
    let mut x = [0.0f32; 32];
    for (first, scale, codes) in [(-1.0f32, 0.125, 0xf0), (1.0, -0.125, 0xf0)] {
        (x[0], x[16]) = (first, -first);
        let bytes = BlockType::Q4_0.encode("w", &x).unwrap();
        assert_eq!(half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(), scale);
        assert_eq!(bytes[2], codes);
        let y = BlockType::Q4_0.decode("w", &bytes).unwrap();
        // The other end has no code: it is a whole step short.
        assert_eq!((y[0], y[16]), (first, -0.875 * first));
    }
}

#[test]
fn constants_are_exact_and_tiny_values_vanish() {
    for constant in [0.375f32, -2.5, 1.0] {
        let bytes = BlockType::Q4_0.encode("w", &[constant; 32]).unwrap();
        assert!(bytes[2..].iter().all(|b| *b == 0));
        for kind in [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q5_0, BlockType::Q5_1] {
            let y = kind.decode("w", &kind.encode("w", &[constant; 32]).unwrap()).unwrap();
            assert_eq!(y, [constant; 32], "{kind:?}");
        }
    }
    let zeros = BlockType::Q4_0.encode("w", &[0.0; 32]).unwrap();
    assert_eq!(hex(&zeros[2..]), "88".repeat(16));
    let tiny: Vec<f32> = wave(32).iter().map(|v| v * 1e-9).collect();
    for kind in
        [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q5_0, BlockType::Q5_1, BlockType::Q8_0]
    {
        let y = kind.decode("w", &kind.encode("w", &tiny).unwrap()).unwrap();
        assert!(y.iter().all(|v| *v == 0.0), "{kind:?}");
    }
}

#[test]
fn zeros_stay_zeros() {
    for kind in ALL {
        let bytes = kind.encode("w", &[0.0; 512]).unwrap();
        assert_eq!(bytes.len(), 512 / kind.elements() * kind.bytes());
        assert!(kind.decode("w", &bytes).unwrap().iter().all(|x| *x == 0.0), "{kind:?}");
    }
}

#[test]
fn what_cannot_be_stored_is_refused_by_name() {
    for kind in ALL {
        let mut x = wave(256);
        assert!(kind.encode("w", &x[..255]).unwrap_err().to_string().contains("`w`"));
        x[7] = f32::NAN;
        assert!(kind.encode("w", &x).unwrap_err().to_string().contains("NaN at 7"));
        x[7] = 1e20;
        assert!(kind.encode("w", &x).unwrap_err().to_string().contains("at 7"), "{kind:?}");
        x[7] = 2.9e8;
        if kind == BlockType::Nvfp4 {
            assert!(kind.encode("w", &x).unwrap_err().to_string().contains("at 7"));
            assert!(kind.decode("w", &[0; 37]).is_err());
            continue;
        }
        if kind == BlockType::Mxfp4 {
            // Its scales reach further than elements may.
            assert!(kind.encode("w", &x).is_ok());
            assert!(kind.decode("w", &[0; 18]).is_err());
            continue;
        }
        let e = kind.encode("w", &x).unwrap_err().to_string();
        assert!(e.contains("beyond f16 in block 0"), "{kind:?}: {e}");
        assert!(kind.decode("w", &[0; 17]).is_err());
    }
}

#[test]
fn types_are_written_as_ggml_writes_them() {
    for name in ["F32", "F16", "BF16", "Q4_0", "Q5_1", "MXFP4", "NVFP4", "Q2_K", "Q6_K"] {
        assert_eq!(name.parse::<GgufType>().unwrap().to_string(), name);
    }
    for name in ["I8", "F64", "IQ2_XS", ""] {
        assert!(name.parse::<GgufType>().is_err(), "{name}");
    }
}

fn quantized(bits: u8, zero: ZeroPoint, group: usize) -> QuantizedMatrix {
    let top = (1u32 << bits) as usize;
    let groups = 64 / group;
    let parts = QuantizedParts {
        scheme: QuantScheme::int(bits).unwrap().group(group).zero(zero),
        codes: Array2::from_shape_fn((3, 64), |(r, c)| ((7 * r + 5 * c) % top) as u8),
        scales: Array2::from_shape_fn((3, groups), |(r, g)| 0.25 + 0.125 * (r + g) as f32),
        zeros: (zero == ZeroPoint::Integer)
            .then(|| Array2::from_shape_fn((3, groups), |(r, g)| (3 * r + g) as f32)),
        global_scale: None,
        group_index: None,
        column_scales: None,
    };
    QuantizedMatrix::from_parts("w", parts).unwrap()
}

#[test]
fn quantised_matrices_become_blocks_without_loss() {
    for (kind, bits, zero) in [
        (BlockType::Q4_0, 4, ZeroPoint::Symmetric),
        (BlockType::Q4_1, 4, ZeroPoint::Integer),
        (BlockType::Q4_1, 4, ZeroPoint::Symmetric),
        (BlockType::Q5_0, 5, ZeroPoint::Symmetric),
        (BlockType::Q5_1, 5, ZeroPoint::Integer),
        (BlockType::Q8_0, 8, ZeroPoint::Symmetric),
    ] {
        for group in [32, 64] {
            let m = quantized(bits, zero, group);
            let bytes = transcode("w", &m, kind).unwrap();
            let y = kind.decode("w", &bytes).unwrap();
            // Halves and eighths are exact in f16, and their multiples too.
            assert_eq!(y, m.dequantize().into_raw_vec_and_offset().0, "{kind:?} {group}");
        }
    }
}

/// All codes under the scales of MXFP4, from the smallest to the largest.
fn fp4() -> QuantizedMatrix {
    let parts = QuantizedParts {
        scheme: QuantScheme::mxfp4(),
        codes: Array2::from_shape_fn((4, 64), |(r, c)| ((7 * r + 5 * c) % 16) as u8),
        scales: Array2::from_shape_fn((4, 2), |(r, g)| {
            prune_core::decode_e8m0([0, 1, 100, 127, 128, 131, 200, 250][2 * r + g])
        }),
        zeros: None,
        global_scale: None,
        group_index: None,
        column_scales: None,
    };
    QuantizedMatrix::from_parts("w", parts).unwrap()
}

#[test]
fn fp4_matrices_become_blocks_without_loss() {
    let m = fp4();
    let y = BlockType::Mxfp4.decode("w", &transcode("w", &m, BlockType::Mxfp4).unwrap()).unwrap();
    assert_eq!(y, m.dequantize().into_raw_vec_and_offset().0);
    for (scales, word) in [(ScaleFormat::F16, "s-e8m0"), (ScaleFormat::E8M0, "powers of two")] {
        let mut parts = fp4().into_parts();
        parts.scheme.scale = scales;
        parts.scales.fill(0.75);
        let m = QuantizedMatrix::from_parts("w", parts).unwrap();
        let e = transcode("w", &m, BlockType::Mxfp4).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    }
    let mut parts = fp4().into_parts();
    parts.global_scale = Some(2.0);
    let m = QuantizedMatrix::from_parts("w", parts).unwrap();
    let e = transcode("w", &m, BlockType::Mxfp4).unwrap_err().to_string();
    assert!(e.contains("whole matrix"), "{e}");
}

/// All codes under scales that the scale of the matrix leaves numbers of FP8, or does not.
#[test]
fn nvfp4_matrices_become_blocks_where_their_scales_fit() {
    let parts = QuantizedParts {
        scheme: QuantScheme::nvfp4(),
        codes: Array2::from_shape_fn((4, 128), |(r, c)| ((7 * r + 5 * c) % 16) as u8),
        scales: Array2::from_shape_fn((4, 8), |(r, g)| {
            prune_core::decode_e4m3((25 * r + 4 * g) as u8)
        }),
        zeros: None,
        global_scale: Some(1.0),
        group_index: None,
        column_scales: None,
    };
    let kind = BlockType::Nvfp4;
    assert_eq!(BlockType::of_scheme(&parts.scheme), None);
    for global in [1.0, 0.5] {
        let parts = QuantizedParts { global_scale: Some(global), ..parts.clone() };
        let m = QuantizedMatrix::from_parts("w", parts).unwrap();
        let y = kind.decode("w", &transcode("w", &m, kind).unwrap()).unwrap();
        assert_eq!(y, m.dequantize().into_raw_vec_and_offset().0, "{global}");
    }
    let refused = |parts: QuantizedParts| {
        let m = QuantizedMatrix::from_parts("w", parts).unwrap();
        transcode("w", &m, kind).unwrap_err().to_string()
    };
    let e = refused(QuantizedParts { global_scale: Some(3.0), ..parts.clone() });
    assert!(e.contains("`w`") && e.contains("that of the matrix"), "{e}");
    let mut negative = parts.clone();
    negative.scales[[0, 1]] = -1.0;
    assert!(refused(negative).contains("FP8"));
    let narrow = QuantizedParts {
        codes: Array2::zeros((1, 32)),
        scales: Array2::ones((1, 2)),
        ..parts.clone()
    };
    assert!(refused(narrow).contains("multiples of 64"));
    let powers = QuantizedParts {
        scheme: QuantScheme { scale: ScaleFormat::E8M0, ..parts.scheme },
        global_scale: None,
        scales: Array2::ones((4, 8)),
        ..parts
    };
    assert!(refused(powers).contains("s-e4m3"));
}

/// Rows of eight bits with one scale, −128 among the codes.
#[test]
fn eight_bits_by_row_become_blocks_without_loss() {
    let parts = QuantizedParts {
        scheme: QuantScheme::int(8).unwrap().granularity(Granularity::PerChannel),
        codes: Array2::from_shape_fn((4, 64), |(r, c)| (64 * r + c) as u8),
        scales: array![[0.5], [0.25], [0.099975586], [1.0]],
        zeros: None,
        global_scale: None,
        group_index: None,
        column_scales: None,
    };
    let m = QuantizedMatrix::from_parts("w", parts).unwrap();
    assert_eq!(m.dequantize()[[0, 0]], -64.0);
    let y = BlockType::Q8_0.decode("w", &transcode("w", &m, BlockType::Q8_0).unwrap()).unwrap();
    assert_eq!(y, m.dequantize().into_raw_vec_and_offset().0);
}

#[test]
fn matrices_that_do_not_fit_a_block_are_refused() {
    let refused = |m: &QuantizedMatrix, kind| transcode("w", m, kind).unwrap_err().to_string();
    let m = quantized(4, ZeroPoint::Integer, 32);
    assert!(refused(&m, BlockType::Q4_0).contains("symmetric"));
    assert!(refused(&m, BlockType::Q4K).contains("Q4_0"));
    assert!(refused(&m, BlockType::Q5_1).contains("as many bits"));
    assert!(refused(&quantized(4, ZeroPoint::Symmetric, 16), BlockType::Q4_0).contains("32"));
    let mut parts = quantized(4, ZeroPoint::Symmetric, 32).into_parts();
    parts.group_index = Some((0..64).map(|c| c % 2).collect());
    let m = QuantizedMatrix::from_parts("w", parts.clone()).unwrap();
    assert!(refused(&m, BlockType::Q4_0).contains("static groups"));
    parts.group_index = None;
    parts.column_scales = Some(vec![2.0; 64]);
    let m = QuantizedMatrix::from_parts("w", parts.clone()).unwrap();
    assert!(refused(&m, BlockType::Q4_0).contains("fold"));
    parts.column_scales = None;
    parts.scales = array![[1e6, 1.0], [1.0, 1.0], [1.0, 1.0]];
    let m = QuantizedMatrix::from_parts("w", parts).unwrap();
    assert!(refused(&m, BlockType::Q4_0).contains("f16"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The bounds that follow from the rounding rules and from scales in f16.
    #[test]
    fn errors_of_small_blocks_are_bounded(x in prop::collection::vec(-3.0f32..3.0, 32)) {
        let half = 2f32.powi(-11);
        let absmax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (lo, hi) = x.iter().fold((x[0], x[0]), |(l, h), v| (l.min(*v), h.max(*v)));
        for (kind, bound) in [
            (BlockType::Q8_0, absmax / 127.0 * (0.5 + 127.0 * half)),
            // Half a step of 2 at the top of the codes; beyond 6 of 8 up to a quarter.
            (BlockType::Mxfp4, absmax / 4.0),
            (BlockType::Q4_0, absmax / 8.0 * (1.0 + 8.0 * half)),
            (BlockType::Q5_0, absmax / 16.0 * (1.0 + 16.0 * half)),
            (BlockType::Q4_1, (hi - lo) / 15.0 * (0.5 + 15.0 * half) + lo.abs() * half),
            (BlockType::Q5_1, (hi - lo) / 31.0 * (0.5 + 31.0 * half) + lo.abs() * half),
        ] {
            let y = kind.decode("w", &kind.encode("w", &x).unwrap()).unwrap();
            for (a, b) in x.iter().zip(&y) {
                prop_assert!((a - b).abs() <= bound * 1.0001 + 1e-7, "{kind:?} {a} {b} {bound}");
            }
        }
    }

    #[test]
    fn nothing_panics_whatever_the_values(bits in prop::collection::vec(any::<u32>(), 256)) {
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        for kind in ALL {
            if let Ok(bytes) = kind.encode("w", &x) {
                prop_assert!(kind.decode("w", &bytes).unwrap().iter().all(|v| v.is_finite()));
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_bytes(seed in 0u32..1000) {
        let x: Vec<f32> = hashed().iter().map(|v| v + seed as f32 * 1e-3).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| ALL.map(|k| k.encode("w", &x).unwrap()))
        };
        prop_assert_eq!(on(1), on(3));
    }
}
