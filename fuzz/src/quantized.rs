//! Quantised matrices from parts, and packed codes.

use ndarray::Array2;
use prune_core::{
    Granularity, NibbleOrder, NumberFormat, QuantScheme, QuantizedMatrix, QuantizedParts,
    ScaleFormat, ZeroPoint, pack_awq, pack_dense, pack_lanes, unpack_awq, unpack_dense,
    unpack_lanes,
};

use crate::bounded::{Limit, Outcome, bounded};
use crate::parts::Parts;

/// A code of one bit is held in a byte, and a float of four bytes may stand for each.
const LIMIT: Limit = Limit { per_byte: 256, constant: 1 << 20 };

/// Scheme, rows, columns, shape of the scales, which other parts there are, the parts.
pub fn quantized(input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || {
        let mut parts = Parts(input);
        let scheme = scheme(&mut parts);
        let [rows, cols, scale_rows, scale_cols, present] = parts.array::<5>();
        let codes: Vec<u8> =
            (0..usize::from(rows) * usize::from(cols)).map(|_| parts.array::<1>()[0]).collect();
        let shape = (usize::from(scale_rows), usize::from(scale_cols));
        let mut scales = |is_there: bool| {
            is_there.then(|| {
                let values = parts.floats(shape.0 * shape.1);
                Array2::from_shape_vec(shape, values).expect("as many as the shape says")
            })
        };
        let made = QuantizedParts {
            scheme,
            codes: Array2::from_shape_vec((rows.into(), cols.into()), codes).expect("as many"),
            scales: scales(true).unwrap_or_default(),
            zeros: scales(present & 1 != 0),
            global_scale: (present & 2 != 0).then(|| f32::from_le_bytes(parts.array())),
            group_index: (present & 4 != 0).then(|| parts.indices()),
            column_scales: (present & 8 != 0).then(|| parts.floats(cols.into())),
        };
        match QuantizedMatrix::from_parts("input", made) {
            Ok(matrix) => {
                let (rows, cols) = (matrix.rows(), matrix.cols());
                assert_eq!(matrix.dequantize().dim(), (rows, cols));
                let bits = matrix.bits_per_weight();
                assert!(bits.is_finite() && bits >= 0.0, "{bits}");
                let text = scheme.to_string();
                assert_eq!(text.parse::<QuantScheme>().expect("it was written by us"), scheme);
                let parts = matrix.clone().into_parts();
                assert_eq!(QuantizedMatrix::from_parts("again", parts).expect("valid"), matrix);
                Outcome::Accepted
            }
            Err(e) => Outcome::refused(&e),
        }
    })
}

fn scheme(parts: &mut Parts<'_>) -> QuantScheme {
    let [number, bits, granularity, zero, scale] = parts.array();
    let size = parts.size();
    QuantScheme {
        number: match number % 5 {
            0 => NumberFormat::Int { bits },
            1 => NumberFormat::Nf4,
            2 => NumberFormat::Fp4,
            3 => NumberFormat::Fp8E4M3,
            _ => NumberFormat::Fp8E5M2,
        },
        granularity: match granularity % 4 {
            0 => Granularity::PerTensor,
            1 => Granularity::PerChannel,
            2 => Granularity::Group(size),
            _ => Granularity::Flat(size),
        },
        zero: [ZeroPoint::Symmetric, ZeroPoint::Integer, ZeroPoint::Float][usize::from(zero % 3)],
        scale: [
            ScaleFormat::F32,
            ScaleFormat::F16,
            ScaleFormat::BF16,
            ScaleFormat::E4M3,
            ScaleFormat::E8M0,
            ScaleFormat::Double,
        ][usize::from(scale % 6)],
    }
}

/// Packing, bits, number of codes, packed codes.
pub fn packed_codes(input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || {
        let mut parts = Parts(input);
        let [packing, bits] = parts.array();
        let (bits, count) = (u32::from(bits), parts.size());
        let bytes = parts.0;
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let order = match packing % 6 {
            3 => NibbleOrder::EvenLow,
            4 => NibbleOrder::EvenHigh,
            _ => NibbleOrder::Halves,
        };
        let unpack = |words: &[u32], bytes: &[u8]| match packing % 6 {
            0 => unpack_dense(words, bits, count),
            1 => unpack_lanes(words, bits, count),
            2 => unpack_awq(words, count),
            _ => order.unpack(bytes, count),
        };
        match unpack(&words, bytes) {
            Ok(codes) => {
                assert_eq!(codes.len(), count);
                let words = match packing % 6 {
                    0 => pack_dense(&codes, bits),
                    1 => pack_lanes(&codes, bits),
                    _ => pack_awq(&codes),
                };
                assert_eq!(
                    unpack(&words, &order.pack(&codes)).expect("it was packed by us"),
                    codes
                );
                Outcome::Accepted
            }
            Err(e) => Outcome::refused(&e),
        }
    })
}
