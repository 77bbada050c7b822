//! Products with quantised matrices: the numbers of the reference implementations, and properties.
#![allow(missing_docs, clippy::unwrap_used)]

use half::f16;
use ndarray::{Array2, ArrayView2, array};
use proptest::prelude::*;
use prune_core::{
    QuantScheme, QuantizedMatrix, QuantizedParts, Seed, SeedStream, ZeroPoint, pack_dense,
};
use prune_kernels::{
    Activations, BlockFormat, GgufKernel, GroupKernel, GroupParts, KernelPath, LinearOperator,
};

// The weights `sin(0.1 j) (1 + 0.01 j)`, `j < 256`, rounded to f32 and encoded: the small formats
// by gguf 0.19.0 for Python, the K formats by llama.cpp's scalar reference.
const Q4_0: &str = "a4b008070706051514232332424151607080e6310807060515142323323241516160708027b307060615\
     141423223241415160708090333407061515142323324241516070708090d5b406061514232332324151\
     5160708090a07535061514142322324141516070808090a015b60515142323323241516060708090a0b0\
     b7361514142332324151516070809090a0b0";
const Q4_1: &str = "f32c0000f0f1f3f4e5e7d8c9baab8c7d6d4e2f1f682ee6bd0e0d0b1a1927364554637292a1c1d0f02130\
     b0b0f3f4e5e6d8d9cabbac8d7d6e4e3f2f0f203133c00b0a19172635445363728191b0c0e0f03532e9b7\
     f5e6e8d9dacbbbac9d8e7e5f4f3f1f0f5c3375c10918162535444352628191a0b0c0e0f04a34dbbbe7e8\
     d9dacbbcad9d8e7e6f5f4f2f1f0ff134b7c21716253433425261718090b0c0d0e0f1";
const Q5_0: &str = "a4ac01000000000f0d0c1a29283645647392a2c1d1f0e62d000000800f0e0c1b19283746557383a2b1d1\
     f00027af000000c00e0d1b1a29374655648392b1c1e000103330000000c00d1c1a29283645647382a2c1\
     d0f01020d5b0000000e00d1b1a28374655738392b1d1e00020307531000000e01c1a29374655647392a1\
     c1d0f010304015b2000000f01b29283745647382a2b1d0e000204050b732000000f01a28374655648392\
     b1c1e0f010304061";
const Q8_0: &str = "ad20000b16212c37424b555d656c72777b7e7f7f7e7b77726c645c52473b2f221406f221f9eee3d7ccc1\
     b7aea59d958f8a868381818284888c9299a2abb6c1cdd9e7f40235230e1925303b454f5961686f75797c\
     7e7f7e7d7a75706961584e43382b1e1103f63c24ebe0d4c9beb4aba29a938d88858281818285898e959c\
     a5aeb9c4d0dceaf70512de241c27333e48525b636b71767a7d7f7f7e7c78746e675f554b4035281c0f01\
     f4e68025ddd2c6bcb2a8a098918c878482818183868a90969ea7b1bbc7d3dfecf907142221262a35404b\
     545d656c72777b7e7f7f7e7b77736c655d53493e3226190cfff1e4d7c526cfc4b9afa69e96908b868382\
     818284878c9198a0a9b3bec9d5e2eefc09162330";
const Q2_K: &str = "04056464070796970a09c6bb0c2df7dfccdcdd9d996a66666633333333333333333333333373626666a6\
     9a99ddcdccccddddada9aa6a66763633333333333333333333333366666666999999cccccccc352d0033";
const Q3_K: &str = "070100000000000000000000000000000000000000000000000000c0f0f8feffc0fcffafabaa5a565515\
     050000000000000000000050545595a9aafafe3f0340bfabaa6a56555505010000000000000000000050\
     5555a5aaaafaff0f004054957b7b6272d1c10c3dfefe010184a6";
const Q4_K: &str = "e61cb72a90d5dce100dc42e88a3217ffe0d1b3a4957768594a3b2c2d1e1e0f0f0f0f0f1f1e2e3d4c5b6a\
     7897a6c4d2f1b2a395866758493a3b2c1c1d0e0e0e0e0e0e1e1d2d3c4b5a697887a5b4c3e1f085766758\
     493a3b2b1c1d0d0e0e0e0e0e0e1d1d2c2c3b4a5968778695b3c2d1e07768594a3b2c2d1d1e0e0f0f0f0f\
     0f0f1e1e2d3d3c4b5a69788796b4c3d2e1f0";
const Q5_K: &str = "cd18d12a90d4dae100dc42e8983139ff2a4a4a5a52565555555555555555555555555555555555555595\
     abaaaaaaaaaae0b395683b0de0b29577594a3c2d1e0f0f1f1f2e3d5c6a88b6d4013e6ba8d5f175582a0d\
     dfb29476684a3b2d1e1e0f0f1f1f2e3d5c6a88a6c4f11f4c79a6d3f01bfddfb2947668493b2c1d0e0e0f\
     0f0f1e2e3d4b5a7896b4d2f01d4b6895b3e0efc1a38577584a3b2c1d0e0e0e0e0e1e2d3c4b6a7897b5d3\
     f11e4c6a87b5d3f0";
const Q6_K: &str = "d0ad7a4815f2cfad8a6846352312010010102031426385a7d9fb2e5184c7fb3ebe8b593603d0be9b7957\
     45342211101000102132537496b8eb1d4073a6ea1d51693603e0be9b7967453322111010102011224365\
     86a8db0d306396d90c4073b64714f1cfac8a684634231211101010210021426486b8eb1e4184b7fb2e62\
     a5d956555555550500000000000000000000000000000000000000405455555595a95555150100000000\
     0000000000000000000000000000005055555555a5aaaaaa2b2bc9c94344afb25a5b9a9f756e808cdb92";

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn gguf(format: BlockFormat, cols: usize, data: Vec<u8>) -> GgufKernel {
    let rows = data.len() / (cols / format.elements() * format.bytes());
    GgufKernel::from_bytes(format, rows, cols, data).unwrap()
}

fn cosine(count: usize) -> Vec<f32> {
    (0..count).map(|j| (0.05 * j as f64).cos() as f32).collect()
}

#[test]
fn dot_products_are_those_of_the_references() {
    let weight = |j: usize| ((0.1 * j as f64).sin() * (1.0 + 0.01 * j as f64)) as f32;
    let exact = (0..).zip(cosine(256)).map(|(j, a)| f64::from(weight(j)) * f64::from(a));
    assert!((exact.sum::<f64>() + 30.526255).abs() < 6e-7);
    // With activations in 8 bits as ggml stores them, and in f32.
    let cases = [
        (BlockFormat::Q4_0, Q4_0, -30.536094, -30.483859),
        (BlockFormat::Q5_0, Q5_0, -31.067224, -31.013000),
        (BlockFormat::Q8_0, Q8_0, -30.551263, -30.498414),
        (BlockFormat::Q4_1, Q4_1, -29.987943, -29.921533),
        (BlockFormat::Q2K, Q2_K, -32.068389, -32.112430),
        (BlockFormat::Q3K, Q3_K, -29.807902, -29.854222),
        (BlockFormat::Q4K, Q4_K, -30.745534, -30.786961),
        (BlockFormat::Q5K, Q5_K, -30.339892, -30.380361),
        (BlockFormat::Q6K, Q6_K, -30.285869, -30.327194),
    ];
    for (format, hex, ggml, float) in cases {
        for path in KernelPath::available() {
            let a = gguf(format, 256, unhex(hex)).with_path(path).unwrap();
            let found = f64::from(a.matvec(&cosine(256)).unwrap()[0]);
            assert!((found - float).abs() < 5e-5, "{format} {path}: {found}, not {float}");
            let a = a.with_activations(Activations::Q8Ggml);
            let found = f64::from(a.matvec(&cosine(256)).unwrap()[0]);
            assert!((found - ggml).abs() < 5e-5, "{format} {path}: {found}, not {ggml}");
        }
    }
    // The reference without the rounding of the sums gives -29.974845; here the scale of the
    // activations is not rounded either.
    let a = gguf(BlockFormat::Q4_1, 256, unhex(Q4_1)).with_activations(Activations::Q8);
    let found = f64::from(a.matvec(&cosine(256)).unwrap()[0]);
    assert!((found + 29.974845).abs() < 2e-3, "{found}");
}

#[test]
fn random_blocks_multiply_as_the_reference_decodes_them() {
    // Bytes of a linear congruential generator, scales below 1; each dot product with a cosine and
    // the sum of its absolute terms by gguf 0.19.0 for Python and numpy, in f64.
    let cases = [
        (BlockFormat::Q4_0, &[0][..], 66.9972786968858, 448.440793),
        (BlockFormat::Q4_1, &[0, 2], -86.77267190814328, 613.790373),
        (BlockFormat::Q5_0, &[0], -95.42239533485723, 622.703173),
        (BlockFormat::Q5_1, &[0, 2], -801.4588921898248, 1592.524193),
        (BlockFormat::Q8_0, &[0], 635.9916354693557, 5337.575845),
        (BlockFormat::Q2K, &[80, 82], -4.88453487741943, 72.454099),
        (BlockFormat::Q3K, &[108], -2.659369928628249, 18.889357),
        (BlockFormat::Q4K, &[0, 2], 32.290647419522614, 234.969061),
        (BlockFormat::Q5K, &[0, 2], -4728.531941947768, 35612.701205),
        (BlockFormat::Q6K, &[208], 514.543401240715, 34806.733170),
    ];
    for (format, halves, dot, terms) in cases {
        let mut state = 1u64;
        let mut data: Vec<u8> = (0..768 / format.elements() * format.bytes())
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        for block in data.chunks_exact_mut(format.bytes()) {
            halves.iter().for_each(|at| block[at + 1] &= 0xbb);
        }
        for path in KernelPath::available() {
            let a = gguf(format, 768, data.clone()).with_path(path).unwrap();
            let found = f64::from(a.matvec(&cosine(768)).unwrap()[0]);
            assert!((found - dot).abs() < 1e-6 * terms, "{format} {path}: {found}, not {dot}");
            let a = a.with_activations(Activations::Q8);
            let found = f64::from(a.matvec(&cosine(768)).unwrap()[0]);
            assert!((found - dot).abs() < 4e-3 * terms, "{format} {path}: {found}, not {dot}");
        }
    }
}

#[test]
fn extreme_codes_do_not_overflow() {
    // Largest magnitudes in every place, against activations of the largest magnitude. The right
    // numbers follow from the formats by hand.
    let one = f16::ONE.to_le_bytes();
    let half = f16::from_f32(0.5).to_le_bytes();
    let with = |scale: [u8; 2], rest: &[u8]| [&scale[..], rest].concat();
    let q6 = |scale: i8, low: u8, high: u8| {
        [&[low; 128][..], &[high; 64], &[scale as u8; 16], &one].concat()
    };
    let cases = [
        (BlockFormat::Q4_0, with(one, &[0x00; 16]), -8.0),
        (BlockFormat::Q4_0, with(one, &[0xff; 16]), 7.0),
        (BlockFormat::Q5_0, with(one, &[0x00; 20]), -16.0),
        (BlockFormat::Q5_0, with(one, &[0xff; 20]), 15.0),
        (BlockFormat::Q8_0, with(one, &[0x80; 32]), -128.0),
        (BlockFormat::Q8_0, with(half, &[0x7f; 32]), 63.5),
        (BlockFormat::Q6K, q6(-128, 0x00, 0x00), 128.0 * 32.0),
        (BlockFormat::Q6K, q6(127, 0xff, 0xff), 127.0 * 31.0),
        (BlockFormat::Q6K, q6(-128, 0xff, 0xff), -128.0 * 31.0),
    ];
    for (format, data, weight) in cases {
        let cols = format.elements();
        for path in KernelPath::available() {
            for x in [127.0f32, -127.0] {
                for activations in [Activations::F32, Activations::Q8] {
                    let a = gguf(format, cols, data.clone()).with_path(path).unwrap();
                    let y = a.with_activations(activations).matvec(&vec![x; cols]).unwrap()[0];
                    let expected = weight * x * cols as f32;
                    assert!(
                        (y - expected).abs() <= 1e-6 * expected.abs(),
                        "{format} {path} {activations:?}: {y}, not {expected}"
                    );
                }
            }
        }
    }
}

fn number(stream: &mut SeedStream) -> f32 {
    (2.0 * stream.uniform() - 1.0) as f32
}

fn vector(seed: u64, count: usize) -> Vec<f32> {
    let mut stream = Seed::new(seed).stream("vector");
    (0..count).map(|_| number(&mut stream)).collect()
}

/// Random parts with scales in half precision, and the weights that they stand for.
fn groups(
    seed: u64,
    (rows, cols): (usize, usize),
    bits: usize,
    group: usize,
    zero: bool,
) -> (GroupParts<f16>, Array2<f64>) {
    let mut stream = Seed::new(seed).stream("groups");
    let mut below = |n: f64| (stream.uniform() * n) as u8;
    let codes: Array2<u8> =
        Array2::from_shape_simple_fn((rows, cols), || below((1u32 << bits) as f64));
    let count = cols.div_ceil(group);
    let zeros: Option<Vec<f16>> = zero.then(|| {
        (0..rows * count).map(|_| f16::from_f32(f32::from(below((1u32 << bits) as f64)))).collect()
    });
    let scales: Vec<f16> =
        (0..rows * count).map(|_| f16::from_f32(0.01 + f32::from(below(100.0)) / 100.0)).collect();
    let weights = Array2::from_shape_fn((rows, cols), |(r, c)| {
        let at = r * count + c / group;
        let middle = (1u32 << (bits - 1)) as f64;
        let zero = zeros.as_ref().map_or(middle, |z| f64::from(z[at]));
        f64::from(scales[at]) * (f64::from(codes[[r, c]]) - zero)
    });
    let words = codes.outer_iter().flat_map(|row| pack_dense(&row.to_vec(), bits as u32)).collect();
    (GroupParts { rows, cols, bits, group, words, scales, zeros }, weights)
}

/// Holds the products of `operator` against those of `weights`, with a tolerance as a part of the
/// sum of absolute terms.
fn holds(operator: &dyn LinearOperator, weights: ArrayView2<'_, f64>, tolerance: f64) {
    for k in [0, 1, 2, 3, 4, 5, 16] {
        let x = Array2::from_shape_vec((k, weights.ncols()), vector(k as u64, k * weights.ncols()))
            .unwrap();
        let y = operator.matmul(x.t()).unwrap();
        for j in 0..k {
            let column = x.row(j).to_vec();
            let y1 = (j == 0).then(|| operator.matvec(&column).unwrap());
            for (r, w) in weights.outer_iter().enumerate() {
                let terms = w.iter().zip(&column).map(|(w, x)| w * f64::from(*x));
                let (sum, size) =
                    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                let near = |y: f32| (f64::from(y) - sum).abs() <= tolerance * size + 1e-30;
                assert!(near(y[[r, j]]), "{r} {j} of {k}: {} {sum} {size}", y[[r, j]]);
                assert!(y1.as_ref().is_none_or(|y| near(y[r])), "vector {r}: {sum}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn products_with_groups_are_right(
        seed: u64, rows in 1usize..12, cols in 1usize..300, zero: bool,
        bits in prop::sample::select(vec![4usize, 8]),
        group in prop::sample::select(vec![32usize, 64, 96, 128, 1000]),
    ) {
        let (parts, weights) = groups(seed, (rows, cols), bits, group, zero);
        for path in KernelPath::available() {
            let a = GroupKernel::from_parts(parts.clone()).unwrap().with_path(path).unwrap();
            // The terms that are summed are up to 2^bits times those of the weights.
            holds(&a, weights.view(), 1e-5);
            holds(&a.with_activations(Activations::Q8), weights.view(), 0.02);
        }
    }

    #[test]
    fn products_with_blocks_are_right(seed: u64, rows in 1usize..4, blocks in 1usize..3) {
        for format in BlockFormat::ALL {
            let cols = 256 * blocks;
            let mut stream = Seed::new(seed).stream(format.name());
            let bytes = rows * cols / format.elements() * format.bytes();
            let mut data: Vec<u8> = (0..bytes).map(|_| (stream.uniform() * 256.0) as u8).collect();
            // Scales of ordinary size.
            let halves: &[usize] = match format {
                BlockFormat::Q2K => &[80, 82],
                BlockFormat::Q3K => &[108],
                BlockFormat::Q6K => &[208],
                BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
                _ => &[0, 2],
            };
            for block in data.chunks_exact_mut(format.bytes()) {
                halves.iter().for_each(|at| block[at + 1] = 0x20 | block[at + 1] & 0x83);
            }
            let portable = gguf(format, cols, data.clone());
            let weights = {
                let a = portable.with_path(KernelPath::Portable).unwrap();
                // More right-hand sides than are multiplied from the blocks: the decoded weights.
                a.matmul(Array2::eye(cols).view()).unwrap().mapv(f64::from)
            };
            for path in KernelPath::available() {
                let a = gguf(format, cols, data.clone()).with_path(path).unwrap();
                holds(&a, weights.view(), 1e-5);
                holds(&a.with_activations(Activations::Q8), weights.view(), 0.05);
            }
        }
    }

    /// As does that of the scales of blocks, also where scales of scales hang on it.
    #[test]
    fn a_power_of_two_scales_through_blocks(seed: u64, exponent in -3i32..4) {
        let factor = 2f32.powi(exponent);
        for (format, hex, halves) in [
            (BlockFormat::Q4_0, Q4_0, &[0][..]),
            (BlockFormat::Q4_1, Q4_1, &[0, 2]),
            (BlockFormat::Q5_0, Q5_0, &[0]),
            (BlockFormat::Q8_0, Q8_0, &[0]),
            (BlockFormat::Q2K, Q2_K, &[80, 82]),
            (BlockFormat::Q3K, Q3_K, &[108]),
            (BlockFormat::Q4K, Q4_K, &[0, 2]),
            (BlockFormat::Q5K, Q5_K, &[0, 2]),
            (BlockFormat::Q6K, Q6_K, &[208]),
        ] {
            // Room for both directions among the normal halves.
            let scale = |data: &mut Vec<u8>, factor: f32| {
                for block in data.chunks_exact_mut(format.bytes()) {
                    for at in halves {
                        let half = f16::from_le_bytes([block[*at], block[at + 1]]).to_f32();
                        let scaled = f16::from_f32(half * factor).to_le_bytes();
                        block[*at..at + 2].copy_from_slice(&scaled);
                    }
                }
            };
            let mut data = unhex(hex);
            scale(&mut data, 8.0);
            let mut other = data.clone();
            scale(&mut other, factor);
            for path in KernelPath::available() {
                for activations in [Activations::F32, Activations::Q8] {
                    let product = |data: &[u8]| {
                        let a = gguf(format, 256, data.to_vec()).with_path(path).unwrap();
                        a.with_activations(activations).matvec(&vector(seed, 256)).unwrap()[0]
                    };
                    prop_assert_eq!(product(&other), factor * product(&data), "{} {}", format, path);
                }
            }
        }
    }

    #[test]
    fn a_power_of_two_scales_through(seed: u64, exponent in -7i32..8) {
        // Of scales that stay normal halves.
        let factor = 2f32.powi(exponent);
        let (parts, _) = groups(seed, (3, 192), 4, 64, true);
        let scales = parts.scales.iter().map(|s| f16::from_f32(s.to_f32() * factor)).collect();
        let scaled = GroupParts { scales, ..parts.clone() };
        for activations in [Activations::F32, Activations::Q8] {
            let product = |parts| {
                let a = GroupKernel::from_parts(parts).unwrap().with_activations(activations);
                a.matvec(&vector(seed, 192)).unwrap()
            };
            let plain: Vec<f32> = product(parts.clone()).iter().map(|y| y * factor).collect();
            prop_assert_eq!(product(scaled.clone()), plain);
        }
    }
}

#[test]
fn rows_wider_than_a_tile_are_right() {
    for (bits, group, cols) in [(4, 96, 8250), (4, 128, 4224), (8, 32, 8230), (8, 10_000, 4100)] {
        let (parts, weights) = groups(5, (6, cols), bits, group, true);
        for path in KernelPath::available() {
            let a = GroupKernel::from_parts(parts.clone()).unwrap().with_path(path).unwrap();
            holds(&a, weights.view(), 1e-5);
            holds(&a.with_activations(Activations::Q8), weights.view(), 0.02);
        }
    }
    let data: Vec<u8> = (0..2 * 4160 / 32)
        .flat_map(|b| {
            [b as u8, 0x28]
                .into_iter()
                .chain((0..32u8).map(move |i| i.wrapping_mul(37).wrapping_add(b as u8) >> 1))
        })
        .collect();
    let a = gguf(BlockFormat::Q8_0, 4160, data);
    let weights = a.matmul(Array2::eye(4160).view()).unwrap().mapv(f64::from);
    holds(&a.with_activations(Activations::Q8), weights.view(), 0.02);
}

#[test]
fn zeros_multiply_to_exact_zeros() {
    let (parts, _) = groups(1, (5, 160), 4, 32, true);
    for path in KernelPath::available() {
        for activations in [Activations::F32, Activations::Q8, Activations::Q8Ggml] {
            let a = GroupKernel::from_parts(parts.clone()).unwrap().with_path(path).unwrap();
            let y = a.with_activations(activations).matvec(&[0.0; 160]).unwrap();
            assert_eq!(y, [0.0; 5]);
            let blocks = [Q4_K, Q6_K].map(unhex);
            for (format, data) in [BlockFormat::Q4K, BlockFormat::Q6K].into_iter().zip(blocks) {
                let a = gguf(format, 256, data).with_path(path).unwrap();
                let y = a.with_activations(activations).matvec(&[0.0; 256]).unwrap();
                assert_eq!(y, [0.0]);
            }
        }
    }
}

#[test]
fn quantised_matrices_become_kernels() {
    let (rows, cols, group) = (6, 128, 32);
    let mut stream = Seed::new(3).stream("codes");
    for (bits, zero) in [
        (3, ZeroPoint::Symmetric),
        (4, ZeroPoint::Symmetric),
        (4, ZeroPoint::Integer),
        (4, ZeroPoint::Float),
        (8, ZeroPoint::Integer),
    ] {
        let scheme = QuantScheme::int(bits).unwrap().group(group).zero(zero);
        let top = f64::from(1u32 << bits);
        let codes = Array2::from_shape_simple_fn((rows, cols), || (stream.uniform() * top) as u8);
        let each =
            |f: &mut dyn FnMut() -> f32| Array2::from_shape_simple_fn((rows, cols / group), f);
        let scales = each(&mut || f16::from_f32(0.1 + stream.uniform() as f32).to_f32());
        let zeros = match zero {
            ZeroPoint::Symmetric => None,
            ZeroPoint::Integer => Some(each(&mut || (stream.uniform() * top).floor() as f32)),
            _ => Some(each(&mut || f16::from_f32((stream.uniform() * top) as f32).to_f32())),
        };
        // In the order of activations: column c is in group 7 c mod 4, in groups of equal size.
        for (group_index, column_scales) in [
            (None, None),
            (Some((0..cols as u32).map(|c| 7 * c % 4).collect()), None),
            (None, Some(vector(9, cols).iter().map(|v| 2.0 + v).collect())),
        ] {
            let parts = QuantizedParts {
                scheme,
                codes: codes.clone(),
                scales: scales.clone(),
                zeros: zeros.clone(),
                global_scale: None,
                group_index,
                column_scales,
            };
            let matrix = QuantizedMatrix::from_parts("w", parts).unwrap();
            let a = GroupKernel::<f16>::try_from(&matrix).unwrap();
            holds(&a, matrix.dequantize().mapv(f64::from).view(), 2e-5);
        }
    }
    let nf4 = QuantScheme::nf4();
    let parts = QuantizedParts {
        scheme: nf4,
        codes: Array2::zeros((1, 64)),
        scales: array![[1.0]],
        zeros: None,
        global_scale: None,
        group_index: None,
        column_scales: None,
    };
    if let Ok(matrix) = QuantizedMatrix::from_parts("w", parts) {
        let error = GroupKernel::<f16>::try_from(&matrix).unwrap_err().to_string();
        assert!(
            error.starts_with("the product with groups does not support the scheme"),
            "{error}"
        );
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (parts, _) = groups(4, (300, 512), 4, 128, true);
    let groups = GroupKernel::from_parts(parts).unwrap();
    let blocks = gguf(BlockFormat::Q4K, 256, unhex(Q4_K).repeat(1000));
    let operators: Vec<Box<dyn LinearOperator>> = vec![
        Box::new(groups.clone()),
        Box::new(groups.with_activations(Activations::Q8)),
        Box::new(blocks.clone()),
        Box::new(blocks.with_activations(Activations::Q8)),
    ];
    for a in operators {
        for k in [1, 5, 20] {
            let x = Array2::from_shape_vec((k, a.cols()), vector(5, k * a.cols())).unwrap();
            let products: Vec<_> = [1, 2, 3, 8]
                .map(|threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.unwrap().install(|| {
                        (a.matvec(&x.row(0).to_vec()).unwrap(), a.matmul(x.t()).unwrap())
                    })
                })
                .into();
            assert!(products.iter().all(|p| *p == products[0]));
        }
    }
}

#[test]
fn broken_parts_are_named() {
    let (good, _) = groups(6, (3, 100), 4, 32, true);
    type Break = fn(&mut GroupParts<f16>);
    let cases: [(&str, Break); 7] = [
        ("bits: found 3, expected 4 or 8", |p| p.bits = 3),
        ("group: found 48, expected a multiple of 32 or all 100 columns", |p| p.group = 48),
        ("group: found 0", |p| p.group = 0),
        ("words: found length 38, expected 39", |p| p.words.truncate(38)),
        ("scales: found length 11, expected 12", |p| p.scales.truncate(11)),
        ("scales: found NaN, expected finite numbers", |p| p.scales[3] = f16::NAN),
        ("zeros: found inf, expected finite numbers", |p| {
            p.zeros = Some(vec![f16::INFINITY; 12]);
        }),
    ];
    for (says, breaks) in cases {
        let mut parts = good.clone();
        breaks(&mut parts);
        let error = GroupKernel::from_parts(parts).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let block = |format, cols, data| GgufKernel::from_bytes(format, 1, cols, data).unwrap_err();
    let error = block(BlockFormat::Q4K, 128, vec![0; 72]).to_string();
    assert!(error.contains("Q4_K: 128 columns are no whole blocks of 256"), "{error}");
    let error = block(BlockFormat::Q4_0, 64, vec![0; 35]).to_string();
    assert!(error.contains("data: Q4_0: found 35 bytes"), "{error}");
    let mut data = vec![0; 36];
    data[19] = 0x7c;
    let error = block(BlockFormat::Q4_0, 64, data).to_string();
    assert!(error.contains("block 1 has the scale inf"), "{error}");
    let a = gguf(BlockFormat::Q4_0, 32, vec![0; 18]).with_activations(Activations::Q8);
    let mut x = [1.0; 32];
    x[5] = f32::INFINITY;
    assert!(a.matvec(&x).unwrap_err().to_string().contains("element 5 is inf"));
}
