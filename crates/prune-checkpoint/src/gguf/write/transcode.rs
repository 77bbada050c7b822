use prune_core::{
    Granularity, NumberFormat, QuantScheme, QuantizedMatrix, ScaleFormat, ZeroPoint, decode_e4m3,
    decode_e8m0, encode_e4m3, encode_e8m0,
};

use half::f16;

use super::super::types::BlockType;
use crate::{Error, Result};

/// The blocks of a quantised matrix without quantising again: its codes as they are.
///
/// | matrix | type | exact |
/// |---|---|---|
/// | 4-bit symmetric | Q4_0 | where scales are f16 |
/// | 4-bit with zero points | Q4_1 | but for the minimum `−zero · scale`, rounded to f16 |
/// | 5-bit, likewise | Q5_0, Q5_1 | likewise |
/// | 8-bit symmetric | Q8_0 | where scales are f16 |
/// | FP4 with scales that are powers of two | MXFP4 | always; −0 becomes 0 |
/// | FP4 with scales in FP8 | NVFP4 | always; −0 becomes 0. Other scales than FP8 E4M3 numbers from 0 on, once they are divided by that of the matrix, are refused |
///
/// Groups have to be whole rows or multiples of 32 columns (16 for NVFP4, with rows of multiples of
/// 64), in the order of the columns. Scales that are not f16 are rounded to it. GGUF has no place
/// beside a tensor of NVFP4 for the scale of the whole matrix; only where this one is a power of two,
/// or by chance, the others can take it up.
///
/// # Errors
/// [`Error::Tensor`] naming `what` when the matrix does not fit the type: other codes, groups that
/// cut blocks, an order of groups or scales of columns of its own, a scale beyond f16.
///
/// ```
/// use ndarray::Array2;
/// use prune_checkpoint::{BlockType, transcode};
/// use prune_core::{QuantScheme, QuantizedMatrix, QuantizedParts};
///
/// let parts = QuantizedParts {
///     scheme: QuantScheme::int(4)?.group(32),
///     codes: Array2::from_shape_fn((1, 64), |(_, j)| (j % 16) as u8),
///     scales: ndarray::array![[0.5, 0.25]],
///     zeros: None,
///     global_scale: None,
///     group_index: None,
///     column_scales: None,
/// };
/// let matrix = QuantizedMatrix::from_parts("w", parts)?;
/// let bytes = transcode("w", &matrix, BlockType::Q4_0)?;
/// let back = BlockType::Q4_0.decode("w", &bytes)?;
/// assert_eq!(back, matrix.dequantize().into_raw_vec_and_offset().0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn transcode(what: &str, matrix: &QuantizedMatrix, to: BlockType) -> Result<Vec<u8>> {
    let scheme = matrix.scheme();
    let refuse = |expected: &str| Error::Tensor {
        path: Default::default(),
        tensor: what.to_string(),
        field: "the quantisation scheme",
        found: format!("`{scheme}`, to be stored as {}", super::super::types::GgufType::Blocks(to)),
        expected: expected.to_string(),
    };
    let (group, expected) = match to {
        BlockType::Nvfp4 => (16, "groups of multiples of 16 and rows of multiples of 64 columns"),
        _ => (BLOCK, "groups and rows of multiples of 32 columns"),
    };
    let fits = match scheme.granularity {
        Granularity::Group(n) => n.is_multiple_of(group),
        Granularity::PerChannel | Granularity::PerTensor => true,
        Granularity::Flat(_) => false,
    };
    if !fits || !matrix.cols().is_multiple_of(if to == BlockType::Nvfp4 { 64 } else { BLOCK }) {
        return Err(refuse(expected));
    }
    if matrix.group_index().is_some() {
        return Err(refuse("groups in the order of the columns; quantise with static groups"));
    }
    if matrix.column_scales().is_some() {
        return Err(refuse("no scales of columns; fold them into the layer before"));
    }
    if to == BlockType::Nvfp4 {
        if (scheme.number, scheme.scale) != (NumberFormat::Fp4, ScaleFormat::E4M3) {
            return Err(refuse("`fp4` with `s-e4m3` scales"));
        }
        return nvfp4(matrix).ok_or_else(|| {
            refuse("scales that are FP8 numbers when divided by that of the matrix; use `ggml`")
        });
    }
    if matrix.global_scale().is_some() {
        return Err(refuse("no scale of the whole matrix"));
    }
    if to == BlockType::Mxfp4 {
        if (scheme.number, scheme.scale) != (NumberFormat::Fp4, ScaleFormat::E8M0) {
            return Err(refuse("`fp4` with `s-e8m0` scales"));
        }
        return mxfp4(matrix).ok_or_else(|| refuse("scales that are powers of two"));
    }
    let (bits, zero) = match to {
        BlockType::Q4_0 => (4, ZeroPoint::Symmetric),
        BlockType::Q4_1 => (4, ZeroPoint::Integer),
        BlockType::Q5_0 => (5, ZeroPoint::Symmetric),
        BlockType::Q5_1 => (5, ZeroPoint::Integer),
        BlockType::Q8_0 => (8, ZeroPoint::Symmetric),
        _ => return Err(refuse("Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4 or NVFP4 as the type")),
    };
    let symmetric = zero == ZeroPoint::Symmetric;
    if scheme.number != (NumberFormat::Int { bits }) || (symmetric && scheme.zero != zero) {
        return Err(refuse(match symmetric {
            true => "symmetric integers of as many bits as the type has",
            false => "integers of as many bits as the type has",
        }));
    }
    let middle = (1u32 << (bits - 1)) as f32;
    let mut out = Vec::with_capacity(matrix.rows() * matrix.cols() / BLOCK * to.bytes());
    let mut codes = [0u8; BLOCK];
    for (r, row) in matrix.codes().outer_iter().enumerate() {
        for first in (0..matrix.cols()).step_by(BLOCK) {
            for (code, value) in codes.iter_mut().zip(row.iter().skip(first)) {
                *code = *value;
            }
            let at = matrix.scale_at(r, first);
            let scale = matrix.scales()[at];
            out.extend(f16::from_f32(scale).to_le_bytes());
            if !symmetric {
                let zero = matrix.zeros().map_or(middle, |z| z[at]);
                out.extend(f16::from_f32(-zero * scale).to_le_bytes());
            }
            push_codes(&mut out, to, &codes);
        }
    }
    match super::super::encode::first_overflow(to, &out) {
        None => Ok(out),
        Some(_) => Err(refuse("scales and minima within f16")),
    }
}

impl BlockType {
    /// The type to which [`transcode`] takes matrices of this scheme; `None` where there is none, and
    /// for [`QuantScheme::nvfp4`], the scale of whose matrix seldom goes along.
    ///
    /// ```
    /// use prune_checkpoint::BlockType;
    /// assert_eq!(BlockType::of_scheme(&"int4 g32".parse()?), Some(BlockType::Q4_0));
    /// assert_eq!(BlockType::of_scheme(&"int4 g64 asym".parse()?), Some(BlockType::Q4_1));
    /// assert_eq!(BlockType::of_scheme(&"fp4 g32 s-e8m0".parse()?), Some(BlockType::Mxfp4));
    /// assert_eq!(BlockType::of_scheme(&"int3 g32".parse()?), None);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn of_scheme(scheme: &QuantScheme) -> Option<BlockType> {
        match scheme.granularity {
            Granularity::Group(n) if !n.is_multiple_of(BLOCK) => return None,
            Granularity::Flat(_) => return None,
            _ => {}
        }
        let bits = match (scheme.number, scheme.scale) {
            (NumberFormat::Int { bits }, _) => bits,
            (NumberFormat::Fp4, ScaleFormat::E8M0) => return Some(BlockType::Mxfp4),
            _ => return None,
        };
        match (bits, scheme.zero == ZeroPoint::Symmetric) {
            (4, true) => Some(BlockType::Q4_0),
            (4, false) => Some(BlockType::Q4_1),
            (5, true) => Some(BlockType::Q5_0),
            (5, false) => Some(BlockType::Q5_1),
            (8, true) => Some(BlockType::Q8_0),
            _ => None,
        }
    }
}

const BLOCK: usize = 32;

/// `None` where a scale is no power of two.
fn mxfp4(matrix: &QuantizedMatrix) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(matrix.rows() * matrix.cols() / BLOCK * 17);
    for (r, row) in matrix.codes().outer_iter().enumerate() {
        let row = row.as_slice().unwrap_or_default();
        for (block, codes) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            let scale = matrix.scales()[matrix.scale_at(r, block * BLOCK)];
            let power = encode_e8m0(scale);
            if decode_e8m0(power) != scale {
                return None;
            }
            out.push(power);
            push_codes(&mut out, BlockType::Mxfp4, codes);
        }
    }
    Some(out)
}

/// `None` where a scale over that of the matrix is no number of FP8, or negative.
fn nvfp4(matrix: &QuantizedMatrix) -> Option<Vec<u8>> {
    let global = matrix.global_scale().unwrap_or(1.0);
    let mut out = Vec::with_capacity(matrix.rows() * matrix.cols() / 64 * 36);
    for (r, row) in matrix.codes().outer_iter().enumerate() {
        let row = row.as_slice().unwrap_or_default();
        for (block, codes) in row.as_chunks::<64>().0.iter().enumerate() {
            for first in (0..64).step_by(16) {
                let scale = matrix.scales()[matrix.scale_at(r, block * 64 + first)] / global;
                let code = encode_e4m3(scale);
                if decode_e4m3(code) != scale || scale < 0.0 {
                    return None;
                }
                // The sign of a zero does not count, as there is none.
                out.push(code & 0x7f);
            }
            for codes in codes.as_chunks::<16>().0 {
                out.extend((0..8).map(|j| codes[j] | codes[j + 8] << 4));
            }
        }
    }
    Some(out)
}

fn push_codes(out: &mut Vec<u8>, to: BlockType, codes: &[u8; BLOCK]) {
    match to {
        // Offset binary to two's complement.
        BlockType::Q8_0 => out.extend(codes.iter().map(|c| c ^ 0x80)),
        BlockType::Q5_0 | BlockType::Q5_1 => {
            let high = codes.iter().enumerate().fold(0, |h, (e, c)| h | u32::from(c >> 4) << e);
            out.extend(high.to_le_bytes());
            out.extend((0..16).map(|j| codes[j] & 15 | (codes[j + 16] & 15) << 4));
        }
        _ => out.extend((0..16).map(|j| codes[j] | codes[j + 16] << 4)),
    }
}
