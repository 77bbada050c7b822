use std::mem;

use half::f16;

use prune_core::decode_e4m3;

use super::types::BlockType;

/// Writes the little-endian f32 bytes of the blocks in `raw`, from byte `skip` on, until `out` is
/// full.
///
/// `raw` starts at a block and holds every block that is touched. The arithmetic is that of the
/// reference (`gguf.quants`, ggml), operation by operation in f32, so that the bits agree.
pub(super) fn dequantize(block: BlockType, raw: &[u8], skip: usize, out: &mut [u8]) {
    match block {
        BlockType::Q4_0 => run::<18, 32>(raw, skip, out, q4_0),
        BlockType::Q4_1 => run::<20, 32>(raw, skip, out, q4_1),
        BlockType::Q5_0 => run::<22, 32>(raw, skip, out, q5_0),
        BlockType::Q5_1 => run::<24, 32>(raw, skip, out, q5_1),
        BlockType::Q8_0 => run::<34, 32>(raw, skip, out, q8_0),
        BlockType::Mxfp4 => run::<17, 32>(raw, skip, out, mxfp4),
        BlockType::Nvfp4 => run::<36, 64>(raw, skip, out, nvfp4),
        BlockType::Q2K => run::<84, 256>(raw, skip, out, q2_k),
        BlockType::Q3K => run::<110, 256>(raw, skip, out, q3_k),
        BlockType::Q4K => run::<144, 256>(raw, skip, out, q4_k),
        BlockType::Q5K => run::<176, 256>(raw, skip, out, q5_k),
        BlockType::Q6K => run::<210, 256>(raw, skip, out, q6_k),
    }
}

fn run<const BYTES: usize, const ELEMENTS: usize>(
    raw: &[u8],
    mut skip: usize,
    mut out: &mut [u8],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let mut values = [0.0; ELEMENTS];
    for block in raw.as_chunks::<BYTES>().0 {
        decode(block, &mut values);
        let take = (4 * ELEMENTS - skip).min(out.len());
        let (now, later) = mem::take(&mut out).split_at_mut(take);
        if take == 4 * ELEMENTS {
            for (bytes, value) in now.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        } else {
            for (i, byte) in now.iter_mut().enumerate() {
                *byte = values[(skip + i) / 4].to_le_bytes()[(skip + i) % 4];
            }
        }
        out = later;
        skip = 0;
        if out.is_empty() {
            return;
        }
    }
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

// Small blocks: the low nibbles are elements 0 to 15, the high ones 16 to 31.

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block[0], block[1]);
    for (i, q) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(q & 15) - 8.0);
        out[i + 16] = d * (f32::from(q >> 4) - 8.0);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let d = half(block[0], block[1]);
    let m = half(block[2], block[3]);
    for (i, q) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block[0], block[1]);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (i, q) in block[6..].iter().enumerate() {
        out[i] = d * (five_bits(q & 15, high >> i) - 16.0);
        out[i + 16] = d * (five_bits(q >> 4, high >> (i + 16)) - 16.0);
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let d = half(block[0], block[1]);
    let m = half(block[2], block[3]);
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (i, q) in block[8..].iter().enumerate() {
        out[i] = d * five_bits(q & 15, high >> i) + m;
        out[i + 16] = d * five_bits(q >> 4, high >> (i + 16)) + m;
    }
}

fn five_bits(low: u8, high: u32) -> f32 {
    f32::from(low | (((high & 1) as u8) << 4))
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block[0], block[1]);
    for (value, q) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(*q as i8) * d;
    }
}

/// Twice the number that each code stands for; of the two zeros none is negative.
pub(super) const FP4_LEVELS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Half of the power of two that `code` stands for: 2^(code − 128).
pub(super) fn half_power(code: u8) -> f32 {
    match code {
        0 | 1 => f32::from_bits(0x0020_0000 << code),
        _ => f32::from_bits((u32::from(code) - 1) << 23),
    }
}

fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_power(block[0]);
    for (i, q) in block[1..].iter().enumerate() {
        out[i] = d * FP4_LEVELS[usize::from(q & 15)];
        out[i + 16] = d * FP4_LEVELS[usize::from(q >> 4)];
    }
}

/// Half of the scale that `code` stands for. The sign does not count, but for the code that is no
/// number: as in the reference, it gives 0 without and goes on with the next number with it.
pub(super) fn half_scale(code: u8) -> f32 {
    match code {
        0x7f => 0.0,
        0xff => 240.0,
        _ => 0.5 * decode_e4m3(code & 0x7f),
    }
}

// Four scales, then four groups of 16: the low nibbles are the first half of a group.

fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let (scales, codes) = block.split_at(4);
    let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<8>().0);
    for ((values, codes), scale) in groups.zip(scales) {
        let d = half_scale(*scale);
        for (i, q) in codes.iter().enumerate() {
            values[i] = d * FP4_LEVELS[usize::from(q & 15)];
            values[i + 8] = d * FP4_LEVELS[usize::from(q >> 4)];
        }
    }
}

// Blocks of 256 ("k-quants"): 16 groups of 16 (Q2_K, Q3_K, Q6_K) or 8 of 32 (Q4_K, Q5_K).

fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, rest) = block.split_at(16);
    let (qs, tail) = rest.split_at(64);
    let d = half(tail[0], tail[1]);
    let d_min = half(tail[2], tail[3]);
    for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(scales[group] & 15);
        let ml = d_min * f32::from(scales[group] >> 4);
        let quarter = two_bit_quarter(qs, group);
        for (value, q) in values.iter_mut().zip(quarter.0) {
            *value = dl * f32::from((q >> quarter.1) & 3) - ml;
        }
    }
}

fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, rest) = block.split_at(32);
    let (qs, rest) = rest.split_at(64);
    let (packed, tail) = rest.split_at(12);
    let d = half(tail[0], tail[1]);
    for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Six bits a scale: four in the first eight bytes, two in the last four.
        let low = (packed[group % 8] >> (4 * (group / 8))) & 15;
        let top = (packed[8 + group % 4] >> (2 * (group / 4))) & 3;
        let dl = d * (f32::from(low | (top << 4)) - 32.0);
        let quarter = two_bit_quarter(qs, group);
        let mask = &high[16 * (group % 2)..][..16];
        let bit = group / 2;
        for ((value, q), h) in values.iter_mut().zip(quarter.0).zip(mask) {
            // The offset of 4 is there when the bit is not.
            let offset = 4 * (1 - ((h >> bit) & 1));
            *value = dl * (f32::from((q >> quarter.1) & 3) - f32::from(offset));
        }
    }
}

/// The 16 bytes that hold group `group` of 16 two-bit values, and by how much to shift them.
fn two_bit_quarter(qs: &[u8], group: usize) -> (&[u8], usize) {
    let start = 32 * (group / 8) + 16 * (group % 2);
    (&qs[start..start + 16], 2 * (group % 8 / 2))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let d = half(block[0], block[1]);
    let d_min = half(block[2], block[3]);
    let (packed, qs) = block[4..].split_at(12);
    for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, group);
        let (dl, ml) = (d * scale, d_min * min);
        let shift = 4 * (group % 2);
        for (value, q) in values.iter_mut().zip(&qs[32 * (group / 2)..]) {
            *value = dl * f32::from((q >> shift) & 15) - ml;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let d = half(block[0], block[1]);
    let d_min = half(block[2], block[3]);
    let (packed, rest) = block[4..].split_at(12);
    let (high, qs) = rest.split_at(32);
    for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, group);
        let (dl, ml) = (d * scale, d_min * min);
        let shift = 4 * (group % 2);
        for ((value, q), h) in values.iter_mut().zip(&qs[32 * (group / 2)..]).zip(high) {
            *value = dl * f32::from(((q >> shift) & 15) | (((h >> group) & 1) << 4)) - ml;
        }
    }
}

/// Six-bit scale and minimum of group `group` of eight: the first four whole in bytes 0 to 7, the
/// last four with their low bits in bytes 8 to 11 and their high bits in the spare bits of 0 to 7.
fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        ((low & 15) | ((packed[group - 4] >> 2) & 0x30), (low >> 4) | ((packed[group] >> 2) & 0x30))
    };
    (f32::from(scale), f32::from(min))
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, tail) = rest.split_at(16);
    let d = half(tail[0], tail[1]);
    for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(scales[group] as i8);
        // Group of 16 -> row of 32 -> half of 128 elements.
        let (row, side) = (group / 2, 16 * (group % 2));
        let low = &low[64 * (row / 4) + 32 * (row % 2) + side..][..16];
        let high = &high[32 * (row / 4) + side..][..16];
        let (low_shift, high_shift) = (4 * (row % 4 / 2), 2 * (row % 4));
        for ((value, l), h) in values.iter_mut().zip(low).zip(high) {
            let q = ((l >> low_shift) & 15) | (((h >> high_shift) & 3) << 4);
            *value = dl * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scale bytes of a block that ggml made; unpacked with gguf 0.19.0 for Python.
    #[test]
    fn scales_and_minima_of_six_bits_are_unpacked_as_ggml_packs_them() {
        let packed = [144, 213, 220, 225, 0, 220, 66, 232, 138, 50, 23, 255];
        let found: [(f32, f32); 8] = std::array::from_fn(|group| scale_and_min(&packed, group));
        let want = [(16, 0), (21, 28), (28, 2), (33, 40), (42, 8), (50, 51), (55, 17), (63, 63)];
        assert_eq!(found, want.map(|(s, m)| (s as f32, m as f32)));
    }

    #[test]
    fn powers_of_two_are_halved_down_to_the_subnormal_ones() {
        for code in 0..=255u8 {
            let want = 2f64.powi(i32::from(code) - 128) as f32;
            assert_eq!(half_power(code), want, "{code}");
        }
    }
}
