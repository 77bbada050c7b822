//! Sparse tensors of compressed-tensors and PyTorch's 2:4 metadata.
#![allow(missing_docs, clippy::unwrap_used)]

use half::f16;
use ndarray::Array2;
use proptest::prelude::*;
use prune_checkpoint::{
    CompressedKeys, MetadataOrder, NamedTensor, SparseFormat, SparsityConfig, code_of_kept,
    compress, compressed_modules, decompress, kept_of_code, metadata16, metadata16_codes,
    metadata32, metadata32_codes,
};
use prune_core::{DType, Error, Result, TensorInfo, TensorSource, decode_f32, encode_f32};

/// A checkpoint in memory.
struct Tensors(Vec<TensorInfo>, Vec<NamedTensor>);

impl Tensors {
    fn new(mut tensors: Vec<NamedTensor>) -> Self {
        tensors.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        Self(tensors.iter().map(|t| t.info.clone()).collect(), tensors)
    }
}

impl TensorSource for Tensors {
    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
        let tensor = self.1.iter().find(|t| t.info.name == name);
        let tensor = tensor.ok_or_else(|| Error::UnknownTensor(name.to_string()))?;
        buf.copy_from_slice(&tensor.data[offset..offset + buf.len()]);
        Ok(())
    }
}

fn weight(dtype: DType, shape: &[usize], values: &[f32]) -> NamedTensor {
    let info = TensorInfo { name: "block.up.weight".to_string(), dtype, shape: shape.to_vec() };
    NamedTensor { data: encode_f32("w", dtype, values).unwrap(), info }
}

fn sine(rows: usize, cols: usize) -> Vec<f32> {
    let at = |i: usize| ((7 * (i / cols) + 3 * (i % cols)) as f64).sin() as f32;
    (0..rows * cols).map(at).collect()
}

/// Zeros all but the `keep` largest of every `group`.
fn keep_largest(values: &[f32], group: usize, keep: usize) -> Vec<f32> {
    let mut out = values.to_vec();
    for group in out.chunks_mut(group) {
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by(|a, b| group[*b].abs().total_cmp(&group[*a].abs()));
        order[keep..].iter().for_each(|i| group[*i] = 0.0);
    }
    out
}

fn part<'a>(tensors: &'a [NamedTensor], end: &str) -> &'a NamedTensor {
    tensors.iter().find(|t| t.info.name.ends_with(end)).unwrap()
}

fn longs(tensor: &NamedTensor) -> Vec<i64> {
    tensor.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

#[test]
fn the_two_of_four_tensors_are_those_of_the_library() {
    // compressed-tensors 0.12.2 on sin(7i + 3j), 4 x 8.
    let dense = keep_largest(&sine(4, 8), 4, 2);
    let tensors = compress(
        &weight(DType::F32, &[4, 8], &dense),
        SparseFormat::Bitmask24,
        CompressedKeys::Current,
    )
    .unwrap();
    let names: Vec<_> = tensors.iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(names, ["block.up.shape", "block.up.compressed", "block.up.bitmask"]);
    assert_eq!(tensors[0].info.shape, [2, 1]);
    assert_eq!(longs(&tensors[0]), [4, 8]);
    assert_eq!((tensors[2].info.dtype, &tensors[2].info.shape[..]), (DType::U8, &[4, 1][..]));
    assert_eq!(tensors[2].data, [204, 147, 51, 60]);
    assert_eq!(tensors[1].info.shape, [4, 4]);
    let values = decode_f32("values", DType::F32, &tensors[1].data).unwrap();
    let expected = [
        -0.279415, 0.412118, -0.750987, 0.836656, 0.656987, -0.544021, 0.149877, 0.270906,
        0.990607, -0.961397, 0.762558, -0.663634, 0.956376, -0.988032, 0.999912, -0.991779,
    ];
    assert!(values.iter().zip(expected).all(|(v, e)| (v - e).abs() < 1e-6));
}

#[test]
fn the_bitmask_tensors_are_those_of_the_library() {
    let dense = keep_largest(&sine(4, 8), 8, 3);
    let tensors = compress(
        &weight(DType::F32, &[4, 8], &dense),
        SparseFormat::Bitmask,
        CompressedKeys::Weight,
    )
    .unwrap();
    let names: Vec<_> = tensors.iter().map(|t| t.info.name.as_str()).collect();
    let weight_key = |part| format!("block.up.weight.{part}");
    assert_eq!(names, ["shape", "compressed", "bitmask", "row_offsets"].map(weight_key));
    assert_eq!(tensors[0].info.shape, [2]);
    assert_eq!(tensors[1].info.shape, [12]);
    assert_eq!(tensors[2].data, [224, 7, 7, 56]);
    assert_eq!(longs(&tensors[3]), [0, 3, 6, 9]);

    // Eleven columns: the last byte is padded.
    let dense = keep_largest(&sine(3, 11), 11, 6);
    let tensors = compress(
        &weight(DType::F32, &[3, 11], &dense),
        SparseFormat::Bitmask,
        CompressedKeys::Current,
    )
    .unwrap();
    assert_eq!(part(&tensors, "bitmask").data, [224, 7, 7, 7, 63, 0]);
    assert_eq!(part(&tensors, "bitmask").info.shape, [3, 2]);
}

#[test]
fn a_third_nonzero_is_refused_and_zeros_fill_up() {
    let two_four = |values: &[f32]| {
        let shape = [1, values.len()];
        let weight = weight(DType::F32, &shape, values);
        compress(&weight, SparseFormat::Bitmask24, CompressedKeys::Current)
    };
    let error = two_four(&[0.0, 1.0, 2.0, 3.0]).unwrap_err().to_string();
    assert!(error.contains("row 0, group 0: 3 kept, at most 2 allowed"), "{error}");
    assert!(two_four(&[1.0; 6]).unwrap_err().to_string().contains("1 x 6"));
    let tensors = two_four(&[0.0, 0.0, 0.0, 0.0, 0.0, -0.0, 0.0, 7.0]).unwrap();
    assert_eq!(part(&tensors, "bitmask").data, [0b1001_0011]);
    let values = &part(&tensors, "compressed").data;
    assert_eq!(decode_f32("v", DType::F32, values).unwrap(), [0.0, 0.0, 0.0, 7.0]);
}

#[test]
fn minus_zero_is_zero_and_infinities_are_refused() {
    let one = |v: f32| {
        let weight = weight(DType::BF16, &[1, 2], &[v, 1.0]);
        compress(&weight, SparseFormat::Bitmask, CompressedKeys::Current)
    };
    assert_eq!(part(&one(-0.0).unwrap(), "bitmask").data, [0b10]);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut tensor = weight(DType::BF16, &[1, 2], &[0.0, 1.0]);
        tensor.data[..2].copy_from_slice(&half::bf16::from_f32(bad).to_le_bytes());
        let error = compress(&tensor, SparseFormat::Bitmask, CompressedKeys::Current);
        assert!(matches!(error, Err(Error::NotFinite { index: 0, .. })));
    }
}

proptest! {
    #[test]
    fn decompressing_undoes_compressing(
        rows in 1usize..6, cols in 1usize..40, seed in 1u64.., density in 0u64..100, legacy: bool,
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]),
    ) {
        let mut state = seed;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| if next() % 100 < density { (next() % 63) as f32 - 31.5 } else { 0.0 })
            .collect();
        let keys = if legacy { CompressedKeys::Weight } else { CompressedKeys::Current };
        let dense = weight(dtype, &[rows, cols], &values);
        let source = Tensors::new(compress(&dense, SparseFormat::Bitmask, keys).unwrap());
        prop_assert_eq!(
            compressed_modules(&source),
            [("block.up".to_string(), SparseFormat::Bitmask)]
        );
        prop_assert_eq!(decompress(&source, "block.up").unwrap(), dense);

        let four: Vec<f32> = (0..rows * 4 * cols)
            .map(|i| if i % 4 == (seed % 4) as usize || i % 4 == 1 { (i % 9) as f32 } else { 0.0 })
            .collect();
        let dense = weight(dtype, &[rows, 4 * cols], &four);
        let source = Tensors::new(compress(&dense, SparseFormat::Bitmask24, keys).unwrap());
        prop_assert_eq!(
            compressed_modules(&source),
            [("block.up".to_string(), SparseFormat::Bitmask24)]
        );
        prop_assert_eq!(decompress(&source, "block.up").unwrap(), dense);
    }

    #[test]
    fn metadata_survives_packing_and_every_order(
        rows in 1usize..3, words in 1usize..4, seed in any::<u64>(),
    ) {
        let legal = [0x4, 0x8, 0x9, 0xc, 0xd, 0xe];
        let codes = |rows, groups| {
            Array2::from_shape_fn((rows, groups), |(r, g): (usize, usize)| {
                let at = seed.wrapping_mul((31 * r + g + 1) as u64) >> 40;
                legal[at as usize % 6]
            })
        };
        for order in [MetadataOrder::Cutlass16, MetadataOrder::Marlin16] {
            let codes = codes(rows * order.rows(), 8 * words);
            let words = metadata16(codes.view()).unwrap();
            let reordered = order.reorder(words.view()).unwrap();
            let restored = order.restore(reordered.view()).unwrap();
            prop_assert_eq!(metadata16_codes(restored.view()).unwrap(), codes);
        }
        let order = MetadataOrder::Cutlass32;
        let codes = codes(rows * order.rows(), 16 * words);
        let words = metadata32(codes.view()).unwrap();
        let reordered = order.reorder(words.view()).unwrap();
        let restored = order.restore(reordered.view()).unwrap();
        prop_assert_eq!(metadata32_codes(restored.view()).unwrap(), codes);
    }
}

#[test]
fn contradicting_tensors_are_refused_by_name() {
    let dense = weight(DType::F16, &[3, 11], &keep_largest(&sine(3, 11), 11, 6));
    let good = compress(&dense, SparseFormat::Bitmask, CompressedKeys::Current).unwrap();
    type Break = fn(&mut Vec<NamedTensor>);
    let cases: [(&str, Break); 9] = [
        ("no tensor named `block.up.shape`", |t| drop(t.remove(0))),
        ("no tensor named `block.up.compressed`", |t| drop(t.remove(1))),
        ("`block.up.shape` is 4 x 11; expected the shape of a bitmask of [3, 2]", |t| {
            t[0].data[0] = 4;
        }),
        ("`block.up.shape` is -1 x 11", |t| t[0].data[..8].fill(0xff)),
        ("`block.up.bitmask` is set beyond column 10 in row 1", |t| t[2].data[3] |= 0x80),
        ("block.up.compressed: found shape [18], expected [17]", |t| t[2].data[0] &= 0x7f),
        ("`block.up.row_offsets` is 7 for row 1; expected 6", |t| t[3].data[8] = 7),
        ("block.up.shape: dtype I32 where I64 was expected", |t| {
            t[0].info.dtype = DType::I32;
            t[0].data.truncate(8);
        }),
        ("block.up.weight: element 2 is NaN or infinite", |t| t[1].data[5] = 0x7c),
    ];
    for (says, breaks) in cases {
        let mut tensors = good.clone();
        breaks(&mut tensors);
        let error = decompress(&Tensors::new(tensors), "block.up").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // Without offsets rows must have equally many values.
    let mut tensors = good.clone();
    tensors.pop();
    decompress(&Tensors::new(tensors.clone()), "block.up").unwrap();
    tensors[2].data[0] ^= 0x80;
    tensors[2].data[2] ^= 0x80;
    let error = decompress(&Tensors::new(tensors), "block.up").unwrap_err().to_string();
    assert!(error.contains("`block.up.row_offsets` is missing, and row 1 has 7"), "{error}");
}

#[test]
fn a_configuration_survives_json() {
    for format in [SparseFormat::Bitmask, SparseFormat::Bitmask24] {
        let config = SparsityConfig::new(format, 0.45);
        let json = serde_json::json!({
            "quantization_config": {"sparsity_config": serde_json::to_value(&config).unwrap()},
        });
        assert_eq!(SparsityConfig::of_model(&json).unwrap(), Some(config.clone()));
        assert_eq!(config.sparse_format().unwrap(), Some(format));
    }
    let marlin = serde_json::json!({
        "quantization_config": {"sparsity_config": {"format": "marlin-24"}},
    });
    let config = SparsityConfig::of_model(&marlin).unwrap().unwrap();
    assert!(config.sparse_format().unwrap_err().to_string().contains("marlin-24"));
    let broken = serde_json::json!({"quantization_config": {"sparsity_config": {"format": 3}}});
    assert!(SparsityConfig::of_model(&broken).is_err());
}

/// Codes of the 2:4 magnitude mask of sin(7i + 3j), rounded to f16.
fn codes(rows: usize, cols: usize) -> Array2<u8> {
    let values: Vec<f32> = sine(rows, cols).iter().map(|v| f16::from_f32(*v).to_f32()).collect();
    let kept = keep_largest(&values, 4, 2);
    let codes = kept.chunks(4).map(|g| code_of_kept(std::array::from_fn(|c| g[c] != 0.0)));
    Array2::from_shape_vec((rows, cols / 4), codes.collect()).unwrap()
}

#[test]
fn metadata_is_that_of_pytorch() {
    // PyTorch 2.15 on a 32 x 64 matrix.
    let words = metadata16(codes(32, 64).view()).unwrap();
    assert_eq!(words.row(0).to_vec(), [20206, 60996, 58441, 17646]);
    assert_eq!(words.row(1).to_vec(), [61124, 58436, 17646, 20204]);
    let reordered = MetadataOrder::Cutlass16.reorder(words.view()).unwrap();
    assert_eq!(reordered.row(0).to_vec(), [20206, 17646, 60996, 40676]);
    assert_eq!(reordered.row(1).to_vec(), [17486, 58436, 18926, 17566]);
    assert_eq!(reordered.row(2).to_vec(), [61124, 20204, 58436, 60996]);
    assert_eq!(reordered.row(3).to_vec(), [17646, 17486, 61156, 20206]);
    assert_eq!(reordered.iter().map(|w| u64::from(*w)).sum::<u64>(), 5057687);
    let offsets =
        |order: MetadataOrder, rows, row| [0, 1, 2, 3].map(|c| order.offset(rows, row, c));
    let cutlass = |row| offsets(MetadataOrder::Cutlass16, 32, row);
    assert_eq!(cutlass(0), [0, 2, 64, 66]);
    assert_eq!(cutlass(1), [8, 10, 72, 74]);
    assert_eq!(cutlass(8), [1, 3, 65, 67]);
    assert_eq!(cutlass(16), [4, 6, 68, 70]);
    assert_eq!(cutlass(31), [61, 63, 125, 127]);
    let marlin = |row| offsets(MetadataOrder::Marlin16, 64, row);
    assert_eq!(marlin(0), [0, 2, 128, 130]);
    assert_eq!(marlin(1), [4, 6, 132, 134]);
    assert_eq!(marlin(2), [64, 66, 192, 194]);
    assert_eq!(marlin(63), [125, 127, 253, 255]);
}

#[test]
fn metadata_of_several_tiles_and_of_int8_is_that_of_pytorch() {
    // `sparse_semi_structured_from_dense_cutlass` of PyTorch 2.15, the words in memory order.
    let weighted = |words: &[i64]| (1..).zip(words).map(|(i, w)| i * w).sum::<i64>();
    let words = metadata16(codes(64, 128).view()).unwrap();
    let words = MetadataOrder::Cutlass16.reorder(words.view()).unwrap();
    let words: Vec<i64> = words.iter().map(|w| i64::from(*w as i16)).collect();
    assert_eq!(words[..8], [20206, 17646, -4540, -24860, 17486, -7100, 18926, 17566]);
    assert_eq!(words[504..], [-7095, -4540, 17646, 17486, -4380, 20204, -7100, -4540]);
    assert_eq!((words.iter().sum::<i64>(), weighted(&words)), (2194745, 556978057));

    // The same sines times 100, rounded.
    let values: Vec<f32> = sine(32, 128).iter().map(|v| (100.0 * v).round()).collect();
    let kept = keep_largest(&values, 4, 2);
    let codes = kept.chunks(4).map(|g| code_of_kept(std::array::from_fn(|c| g[c] != 0.0)));
    let codes = Array2::from_shape_vec((32, 32), codes.collect()).unwrap();
    let words = metadata32(codes.view()).unwrap();
    let words = MetadataOrder::Cutlass32.reorder(words.view()).unwrap();
    let words: Vec<i64> = words.iter().map(|w| i64::from(*w as i32)).collect();
    assert_eq!(words[..4], [-297513234, -1629207314, 1156506697, 1146023492]);
    assert_eq!(words[124..], [1146023492, -465244444, -287028754, 1324237982]);
    assert_eq!((words.iter().sum::<i64>(), weighted(&words)), (37980111293, 2471860480964));
}

#[test]
fn six_codes_are_legal_and_other_patterns_are_filled_up_or_cut() {
    let bits = |text: &str| -> [bool; 4] { std::array::from_fn(|i| text.as_bytes()[i] == b'1') };
    let legal =
        [("1100", 0x4), ("1010", 0x8), ("0110", 0x9), ("1001", 0xc), ("0101", 0xd), ("0011", 0xe)];
    for (pattern, code) in legal {
        assert_eq!(code_of_kept(bits(pattern)), code);
        assert_eq!(kept_of_code(code), Some(bits(pattern)));
    }
    assert_eq!((0..=255).filter(|code| kept_of_code(*code).is_some()).count(), 6);
    let others = [
        ("0000", 0xe),
        ("0001", 0xe),
        ("0010", 0xe),
        ("0100", 0x9),
        ("1000", 0x8),
        ("1110", 0x4),
        ("1101", 0x4),
        ("1111", 0x4),
        ("1011", 0xc),
        ("0111", 0xd),
    ];
    for (pattern, code) in others {
        assert_eq!(code_of_kept(bits(pattern)), code, "{pattern}");
    }
    let bad = ndarray::array![[0x4u8, 0x8, 0x5, 0xe]];
    let error = metadata16(bad.view()).unwrap_err().to_string();
    assert!(error.starts_with("code of row 0, group 2 is 0x5"), "{error}");
    let error = metadata32(bad.view()).unwrap_err().to_string();
    assert!(error.starts_with("groups of a row is 4; expected a multiple of 8"), "{error}");
    let words = ndarray::Array2::<u16>::zeros((31, 4));
    let error = MetadataOrder::Cutlass16.reorder(words.view()).unwrap_err().to_string();
    assert!(error.starts_with("shape of 2:4 metadata is 31 x 4 words"), "{error}");
}
