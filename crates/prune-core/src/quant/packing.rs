//! Codes of one to eight bits in words, and back.

use crate::{Error, Result};

/// `codes` as a dense little-endian bitstream in 32-bit words, least significant bit first: code
/// `i` occupies bits `[bits·i, bits·(i+1))` and may cross words. `⌈n·bits/32⌉` words, the spare
/// bits 0.
///
/// This is the packing of GPTQ files (also their 3-bit one), of compressed-tensors from 0.18 on and
/// of KIVI. Bits of a code above `bits` are dropped. Widths outside 1 to 8 are taken as the nearest
/// of them.
///
/// ```
/// use prune_core::{pack_dense, unpack_dense};
/// let codes = [0, 1, 7, 8, 9, 10, 14, 15];
/// assert_eq!(pack_dense(&codes, 4), [0xfea9_8710]);
/// assert_eq!(unpack_dense(&pack_dense(&codes, 4), 4, 8)?, codes);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn pack_dense(codes: &[u8], bits: u32) -> Vec<u32> {
    let bits = bits.clamp(1, 8);
    let mut words = Vec::with_capacity((codes.len() * bits as usize).div_ceil(32));
    let (mut word, mut used) = (0u64, 0);
    for code in codes {
        word |= u64::from(u32::from(*code) & mask(bits)) << used;
        used += bits;
        if used >= 32 {
            words.push(word as u32);
            word >>= 32;
            used -= 32;
        }
    }
    if used > 0 {
        words.push(word as u32);
    }
    words
}

/// The first `count` codes of a bitstream made by [`pack_dense`].
///
/// # Errors
/// [`Error::InvalidQuantized`] unless `words` has exactly `⌈count·bits/32⌉` words.
pub fn unpack_dense(words: &[u32], bits: u32, count: usize) -> Result<Vec<u8>> {
    let bits = bits.clamp(1, 8);
    check_words(words, dense_words(count, bits))?;
    let mut codes = Vec::with_capacity(count);
    let (mut word, mut held) = (0u64, 0);
    let mut rest = words.iter();
    for _ in 0..count {
        if held < bits {
            word |= u64::from(rest.next().copied().unwrap_or_default()) << held;
            held += 32;
        }
        codes.push((word as u32 & mask(bits)) as u8);
        word >>= bits;
        held -= bits;
    }
    Ok(codes)
}

/// The words that [`pack_dense`] makes of `count` codes.
pub fn dense_words(count: usize, bits: u32) -> Option<usize> {
    Some(count.checked_mul(bits as usize)?.div_ceil(32))
}

/// `codes` in lanes: `⌊32/bits⌋` whole codes a word, least significant first, the spare top bits 0.
///
/// Equal to [`pack_dense`] for widths that divide 32. compressed-tensors before 0.18 packed all
/// widths like this.
///
/// ```
/// use prune_core::{pack_lanes, unpack_lanes};
/// let codes = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3];
/// let words = pack_lanes(&codes, 3);
/// assert_eq!(words.len(), 2); // ten codes, then one
/// assert_eq!(unpack_lanes(&words, 3, 11)?, codes);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn pack_lanes(codes: &[u8], bits: u32) -> Vec<u32> {
    let bits = bits.clamp(1, 8);
    let word =
        |lane: &[u8]| lane.iter().rev().fold(0u32, |w, c| w << bits | (u32::from(*c) & mask(bits)));
    codes.chunks(lanes(bits)).map(word).collect()
}

/// The first `count` codes of words made by [`pack_lanes`].
///
/// # Errors
/// [`Error::InvalidQuantized`] unless `words` has exactly `⌈count/⌊32/bits⌋⌉` words.
pub fn unpack_lanes(words: &[u32], bits: u32, count: usize) -> Result<Vec<u8>> {
    let bits = bits.clamp(1, 8);
    check_words(words, Some(count.div_ceil(lanes(bits))))?;
    let code = |i: usize| words[i / lanes(bits)] >> (i % lanes(bits) * bits as usize);
    Ok((0..count).map(|i| (code(i) & mask(bits)) as u8).collect())
}

/// `codes` in bit planes, as GPTQModel's checkpoint format `gptq_p` has them: of every 32 codes
/// first the lowest bits, then the higher ones, each plane as wide as a power of two, so that no
/// field crosses words.
///
/// | bits | planes, the lowest first |
/// |---|---|
/// | 3 | 2, 1 |
/// | 5 | 4, 1 |
/// | 6 | 4, 2 |
/// | 7 | 4, 2, 1 |
///
/// A plane of `w` bits takes `w` words, least significant bit first. `⌈n/32⌉ · bits` words; the last
/// 32 codes are filled up with zeros. Equal to [`pack_dense`] of whole blocks for 1, 2, 4 and 8
/// bits. Bits of a code above `bits` are dropped. Widths outside 1 to 8 are taken as the nearest of
/// them.
///
/// ```
/// use prune_core::{pack_planar, unpack_planar};
/// let codes: Vec<u8> = (0..32).map(|i| 5 * i % 8).collect();
/// let words = pack_planar(&codes, 3);
/// assert_eq!(words, [0xe4e4_e4e4, 0xe4e4_e4e4, 0x5a5a_5a5a]);
/// assert_eq!(unpack_planar(&words, 3, 32)?, codes);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn pack_planar(codes: &[u8], bits: u32) -> Vec<u32> {
    let bits = bits.clamp(1, 8);
    let mut words = Vec::with_capacity(codes.len().div_ceil(32) * bits as usize);
    let mut plane = [0u8; 32];
    for block in codes.chunks(32) {
        for (width, offset) in planes(bits) {
            plane.fill(0);
            plane.iter_mut().zip(block).for_each(|(field, code)| *field = code >> offset);
            words.extend(pack_dense(&plane, width));
        }
    }
    words
}

/// The first `count` codes of words made by [`pack_planar`].
///
/// # Errors
/// [`Error::InvalidQuantized`] unless `words` has exactly `⌈count/32⌉ · bits` words.
pub fn unpack_planar(words: &[u32], bits: u32, count: usize) -> Result<Vec<u8>> {
    let bits = bits.clamp(1, 8);
    check_words(words, count.div_ceil(32).checked_mul(bits as usize))?;
    let mut codes = vec![0; words.len() / bits as usize * 32];
    let blocks = words.chunks_exact(bits as usize).zip(codes.as_chunks_mut::<32>().0);
    for (words, block) in blocks {
        let mut rest = words;
        for (width, offset) in planes(bits) {
            let (now, later) = rest.split_at(width as usize);
            for (code, field) in block.iter_mut().zip(unpack_dense(now, width, 32)?) {
                *code |= field << offset;
            }
            rest = later;
        }
    }
    codes.truncate(count);
    Ok(codes)
}

/// Widths and offsets of the planes of codes of `bits` bits, the lowest first: the powers of two
/// that add up to `bits`, the largest of them lowest.
fn planes(bits: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut offset = 0;
    [8, 4, 2, 1].into_iter().filter(move |width| bits & width != 0).map(move |width| {
        let plane = (width, offset);
        offset += width;
        plane
    })
}

/// Where the nibbles of four-bit codes stand in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NibbleOrder {
    /// Code 2k in the low nibble of byte k, 2k+1 in the high one: compressed-tensors' FP4.
    EvenLow,
    /// Code 2k in the high nibble of byte k, 2k+1 in the low one: bitsandbytes' NF4.
    EvenHigh,
    /// Code j in the low nibble of byte j, j + n/2 in the high one: blocks of GGUF. Odd counts are
    /// taken as if a zero followed.
    Halves,
}

impl NibbleOrder {
    /// `⌈n/2⌉` bytes; a spare nibble is 0.
    ///
    /// ```
    /// use prune_core::NibbleOrder;
    /// let codes = [1, 2, 3, 4];
    /// assert_eq!(NibbleOrder::EvenLow.pack(&codes), [0x21, 0x43]);
    /// assert_eq!(NibbleOrder::EvenHigh.pack(&codes), [0x12, 0x34]);
    /// assert_eq!(NibbleOrder::Halves.pack(&codes), [0x31, 0x42]);
    /// ```
    pub fn pack(self, codes: &[u8]) -> Vec<u8> {
        let bytes = codes.len().div_ceil(2);
        let code = |i: usize| codes.get(i).map_or(0, |c| c & 15);
        (0..bytes)
            .map(|k| {
                let (low, high) = self.places(k, bytes);
                code(low) | code(high) << 4
            })
            .collect()
    }

    /// The first `count` codes of bytes made by [`NibbleOrder::pack`].
    ///
    /// # Errors
    /// [`Error::InvalidQuantized`] unless there are exactly `⌈count/2⌉` bytes.
    pub fn unpack(self, bytes: &[u8], count: usize) -> Result<Vec<u8>> {
        if bytes.len() != count.div_ceil(2) {
            return Err(wrong_length("bytes", bytes.len(), Some(count.div_ceil(2))));
        }
        let mut codes = vec![0; 2 * bytes.len()];
        for (k, byte) in bytes.iter().enumerate() {
            let (low, high) = self.places(k, bytes.len());
            codes[low] = byte & 15;
            codes[high] = byte >> 4;
        }
        codes.truncate(count);
        Ok(codes)
    }

    /// The codes in the low and in the high nibble of byte `k` of `bytes`.
    fn places(self, k: usize, bytes: usize) -> (usize, usize) {
        match self {
            NibbleOrder::EvenLow => (2 * k, 2 * k + 1),
            NibbleOrder::EvenHigh => (2 * k + 1, 2 * k),
            NibbleOrder::Halves => (k, k + bytes),
        }
    }
}

/// Nibble `i` of an AWQ word holds this column of the eight that share it.
pub const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Four-bit `codes` in the interleaved order of AWQ's `gemm` files: nibble `i` of a word holds
/// column [`AWQ_ORDER`]`[i]` of its eight. A last word is filled up with zeros.
///
/// ```
/// use prune_core::{pack_awq, unpack_awq};
/// assert_eq!(pack_awq(&[0, 1, 2, 3, 4, 5, 6, 7]), [0x7531_6420]);
/// assert_eq!(unpack_awq(&[0x7531_6420], 8)?, [0, 1, 2, 3, 4, 5, 6, 7]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn pack_awq(codes: &[u8]) -> Vec<u32> {
    let word = |eight: &[u8]| {
        AWQ_ORDER.iter().enumerate().fold(0, |word, (nibble, column)| {
            let code = eight.get(*column).map_or(0, |c| u32::from(c & 15));
            word | code << (4 * nibble)
        })
    };
    codes.chunks(8).map(word).collect()
}

/// The first `count` codes of words made by [`pack_awq`].
///
/// # Errors
/// [`Error::InvalidQuantized`] unless there are exactly `⌈count/8⌉` words.
pub fn unpack_awq(words: &[u32], count: usize) -> Result<Vec<u8>> {
    check_words(words, Some(count.div_ceil(8)))?;
    let mut codes = vec![0; 8 * words.len()];
    for (word, eight) in words.iter().zip(codes.as_chunks_mut::<8>().0) {
        for (nibble, column) in AWQ_ORDER.iter().enumerate() {
            eight[*column] = (word >> (4 * nibble) & 15) as u8;
        }
    }
    codes.truncate(count);
    Ok(codes)
}

/// Which bits of a byte (or word) the first rows of a matrix take, where parts of its rows lie over
/// one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartOrder {
    /// The lowest: Quanto.
    FirstLow,
    /// The highest: HQQ.
    FirstHigh,
}

impl PartOrder {
    /// By how much part `part` of `parts` is shifted.
    fn shift(self, part: usize, parts: usize, bits: u32) -> u32 {
        let place = match self {
            PartOrder::FirstLow => part,
            PartOrder::FirstHigh => parts - 1 - part,
        };
        place as u32 * bits
    }
}

/// The codes of a row-major matrix of `columns` columns with its rows in `8 / bits` equal parts that
/// lie over one another: byte `i` holds element `i` of every part. Rows that are missing in the last
/// parts are zeros. `⌈rows · bits / 8⌉ · columns` bytes.
///
/// This is how Quanto (`FirstLow`) and HQQ (`FirstHigh`) store 2 and 4 bits. HQQ packs the matrix of
/// groups, not that of the weights: with `axis = 1` its rows are the groups in row-major order.
///
/// # Errors
/// [`Error::OutOfRange`] unless `bits` is 1, 2, 4 or 8; [`Error::InvalidQuantized`] for codes that
/// are no whole rows.
///
/// ```
/// use prune_core::{PartOrder, pack_parts, unpack_parts};
/// let codes = [1, 2, 3, 4]; // four rows of one column
/// assert_eq!(pack_parts(&codes, 1, 4, PartOrder::FirstHigh)?, [0x13, 0x24]);
/// assert_eq!(pack_parts(&codes, 1, 4, PartOrder::FirstLow)?, [0x31, 0x42]);
/// assert_eq!(unpack_parts(&[0x13, 0x24], 1, 4, 4, PartOrder::FirstHigh)?, codes);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn pack_parts(codes: &[u8], columns: usize, bits: u32, order: PartOrder) -> Result<Vec<u8>> {
    let parts = parts_of_a_byte(bits)?;
    let words = fold_parts(codes, columns, parts, bits, order)?;
    Ok(words.into_iter().map(|word| word as u8).collect())
}

/// The first `rows · columns` codes of bytes made by [`pack_parts`].
///
/// # Errors
/// [`Error::OutOfRange`] unless `bits` is 1, 2, 4 or 8; [`Error::InvalidQuantized`] unless there are
/// exactly `⌈rows · bits / 8⌉ · columns` bytes.
pub fn unpack_parts(
    bytes: &[u8],
    columns: usize,
    rows: usize,
    bits: u32,
    order: PartOrder,
) -> Result<Vec<u8>> {
    let parts = parts_of_a_byte(bits)?;
    let expected = rows.div_ceil(parts).checked_mul(columns);
    if Some(bytes.len()) != expected {
        return Err(wrong_length("bytes", bytes.len(), expected));
    }
    let shift = |part| order.shift(part, parts, bits);
    let code = |part, byte: &u8| (u32::from(*byte) >> shift(part) & mask(bits)) as u8;
    let all = (0..parts).flat_map(|part| bytes.iter().map(move |byte| code(part, byte)));
    Ok(all.take(rows * columns).collect())
}

/// Three-bit codes of a row-major matrix of `columns` columns as HQQ stores them: its rows, filled up
/// with zeros to a multiple of ten, in ten equal parts that lie over one another in 32-bit words, the
/// first in bits 27 to 29, the last in bits 0 to 2. `⌈rows / 10⌉ · columns` words.
///
/// # Errors
/// [`Error::InvalidQuantized`] for codes that are no whole rows.
///
/// ```
/// use prune_core::{pack_hqq3, unpack_hqq3};
/// let codes = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]; // eleven rows of one column
/// let words = pack_hqq3(&codes, 1)?;
/// assert_eq!(words.len(), 2);
/// assert_eq!(unpack_hqq3(&words, 1, 11)?, codes);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn pack_hqq3(codes: &[u8], columns: usize) -> Result<Vec<u32>> {
    fold_parts(codes, columns, lanes(3), 3, PartOrder::FirstHigh)
}

/// The first `rows · columns` codes of words made by [`pack_hqq3`].
///
/// # Errors
/// [`Error::InvalidQuantized`] unless there are exactly `⌈rows / 10⌉ · columns` words.
pub fn unpack_hqq3(words: &[u32], columns: usize, rows: usize) -> Result<Vec<u8>> {
    let parts = lanes(3);
    check_words(words, rows.div_ceil(parts).checked_mul(columns))?;
    let shift = |part| PartOrder::FirstHigh.shift(part, parts, 3);
    let code = |part, word: &u32| (word >> shift(part) & mask(3)) as u8;
    let all = (0..parts).flat_map(|part| words.iter().map(move |word| code(part, word)));
    Ok(all.take(rows * columns).collect())
}

/// Parts of the rows over one another, a word for each element of a part.
fn fold_parts(
    codes: &[u8],
    columns: usize,
    parts: usize,
    bits: u32,
    order: PartOrder,
) -> Result<Vec<u32>> {
    if !codes.len().is_multiple_of(columns.max(1)) {
        let reason = format!("found {}, expected whole rows of {columns}", codes.len());
        return Err(Error::InvalidQuantized { field: "codes", reason });
    }
    let rows = codes.len() / columns.max(1);
    let size = rows.div_ceil(parts) * columns;
    let mut words = vec![0; size];
    for (part, codes) in codes.chunks(size.max(1)).enumerate() {
        let shift = order.shift(part, parts, bits);
        for (word, code) in words.iter_mut().zip(codes) {
            *word |= (u32::from(*code) & mask(bits)) << shift;
        }
    }
    Ok(words)
}

fn parts_of_a_byte(bits: u32) -> Result<usize> {
    match bits {
        1 | 2 | 4 | 8 => Ok(8 / bits as usize),
        _ => Err(Error::out_of_range("bits of a code", bits, "1, 2, 4 or 8")),
    }
}

fn mask(bits: u32) -> u32 {
    (1 << bits) - 1
}

fn lanes(bits: u32) -> usize {
    (32 / bits) as usize
}

fn check_words(words: &[u32], expected: Option<usize>) -> Result<()> {
    if Some(words.len()) == expected {
        return Ok(());
    }
    Err(wrong_length("words", words.len(), expected))
}

fn wrong_length(field: &'static str, found: usize, expected: Option<usize>) -> Error {
    let expected = expected.map_or("a count that fits in memory".to_string(), |n| n.to_string());
    Error::InvalidQuantized { field, reason: format!("found {found}, expected {expected}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn three_bits_match_gptq_and_compressed_tensors() {
        let codes: Vec<u8> = (0..32).map(|i| (5 * i % 8) as u8).collect();
        let dense = [0xa878_cea8, 0xcea8_78ce, 0x78ce_a878];
        assert_eq!(pack_dense(&codes, 3), dense);
        let lanes = [0x2878_cea8, 0x3aa1_e33a, 0x0cea_878c, 0x0000_001e];
        assert_eq!(pack_lanes(&codes, 3), lanes);
    }

    #[test]
    fn five_bits_match_compressed_tensors() {
        let codes: Vec<u8> = (0..32).map(|i| (7 * i % 32) as u8).collect();
        let dense = [0x87ca_b8e0, 0x469b_f88a, 0xfaf0_48b7, 0xe80e_a6c2, 0xcc96_4ed9];
        assert_eq!(pack_dense(&codes, 5), dense);
        let lanes = [0x07ca_b8e0, 0x1a6f_e22a, 0x2f04_8b74, 0x03a9_b0be, 0x164e_d9e8, 0x0000_0332];
        assert_eq!(pack_lanes(&codes, 5), lanes);
    }

    /// `planar_pack_rows` of GPTQModel 7.7.0.
    #[test]
    fn planes_match_gptqmodel() {
        let codes = |step: u32, bits| -> Vec<u8> {
            (0..32).map(|i| ((step * i) & mask(bits)) as u8).collect()
        };
        for (bits, step, words) in [
            (3, 5, &[0xe4e4_e4e4u32, 0xe4e4_e4e4, 0x5a5a_5a5a][..]),
            (5, 7, &[0x1a3c_5e70, 0x92b4_d6f8, 0x1a3c_5e70, 0x92b4_d6f8, 0xcc67_3398]),
            (
                6,
                11,
                &[0xd27c_16b0, 0x5af4_9e38, 0xd27c_16b0, 0x5af4_9e38, 0x90e9_0e90, 0x4f94_f94f],
            ),
            (
                7,
                13,
                &[
                    0xbe14_7ad0,
                    0x369c_f258,
                    0xbe14_7ad0,
                    0x369c_f258,
                    0x390e_4390,
                    0x4e53_94e5,
                    0x3e0f_83e0,
                ],
            ),
        ] {
            assert_eq!(pack_planar(&codes(step, bits), bits), words, "{bits}");
        }
        // A block that is not full is filled up with zeros.
        let words = pack_planar(&codes(5, 3)[..9], 3);
        assert_eq!(words, [0x0000_e4e4, 0x0000_0000, 0x0000_005a]);
    }

    #[test]
    fn kivi_words_are_dense() {
        let two: Vec<u8> = (0..16).map(|i| (3 * i + 1) % 4).collect();
        assert_eq!(pack_dense(&two, 2), [0xb1b1_b1b1]);
        let four: Vec<u8> = (0..8).map(|i| (5 * i + 3) % 16).collect();
        assert_eq!(pack_dense(&four, 4), [0x61c7_2d83]);
    }

    /// A matrix of `rows` rows of `columns`, `(7 r + 5 c) mod 2^bits`.
    fn matrix(rows: usize, columns: usize, bits: u32) -> Vec<u8> {
        let code = |i: usize| 7 * (i / columns) + 5 * (i % columns);
        (0..rows * columns).map(|i| (code(i) as u32 & mask(bits)) as u8).collect()
    }

    /// `BitPack` of hqq 0.2.8.post1 and `pack_weights` of optimum-quanto 0.2.7.
    #[test]
    fn parts_of_rows_match_hqq_and_quanto() {
        let hex = |bits, rows, order| -> String {
            let bytes = pack_parts(&matrix(rows, 3, bits), 3, bits, order).unwrap();
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        };
        assert_eq!(hex(4, 6, PartOrder::FirstHigh), "055aaf7cc116e3388d");
        assert_eq!(hex(2, 8, PartOrder::FirstHigh), "227788dd2277");
        assert_eq!(hex(4, 6, PartOrder::FirstLow), "50a5fac71c613e83d8");
        assert_eq!(hex(4, 5, PartOrder::FirstLow), "50a5fac71c610e0308");
        assert_eq!(hex(2, 8, PartOrder::FirstLow), "88dd227788dd");
        assert_eq!(hex(2, 6, PartOrder::FirstLow), "081d2237081d");
        let words = [0x0688_6800, 0x2b3e_b200, 0x3d67_d000, 0x221a_2000];
        assert_eq!(pack_hqq3(&matrix(13, 2, 3), 2).unwrap(), words);
    }

    #[test]
    fn awq_order_matches_the_reference() {
        assert_eq!(pack_awq(&[0, 1, 7, 8, 9, 10, 14, 15]), [0xfa81_e970]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(unpack_dense(&[0], 4, 9).is_err());
        assert!(unpack_dense(&[0, 0], 4, 8).is_err());
        assert!(unpack_dense(&[0], 8, usize::MAX).is_err());
        assert!(unpack_lanes(&[0], 3, 11).is_err());
        assert!(unpack_planar(&[0; 3], 3, 33).is_err());
        assert!(unpack_planar(&[0; 6], 3, 32).is_err());
        assert!(unpack_planar(&[0; 3], 3, usize::MAX).is_err());
        assert!(unpack_awq(&[0], 9).is_err());
        assert!(NibbleOrder::Halves.unpack(&[0], 3).is_err());
        assert!(pack_parts(&[0; 4], 2, 3, PartOrder::FirstLow).is_err());
        assert!(pack_parts(&[0; 5], 2, 4, PartOrder::FirstLow).is_err());
        assert!(unpack_parts(&[0; 4], 2, 3, 3, PartOrder::FirstLow).is_err());
        assert!(unpack_parts(&[0; 3], 2, 3, 4, PartOrder::FirstLow).is_err());
        assert!(unpack_parts(&[0], usize::MAX, 3, 4, PartOrder::FirstLow).is_err());
        assert!(unpack_hqq3(&[0], 1, 11).is_err());
    }

    proptest! {
        #[test]
        fn packing_is_a_bijection(bits in 1u32..9, codes in proptest::collection::vec(any::<u8>(), 0..71)) {
            let codes: Vec<u8> = codes.into_iter().map(|c| (u32::from(c) & mask(bits)) as u8).collect();
            let n = codes.len();
            let dense = pack_dense(&codes, bits);
            prop_assert_eq!(Some(dense.len()), dense_words(n, bits));
            prop_assert_eq!(&unpack_dense(&dense, bits, n).unwrap(), &codes);
            let lanes = pack_lanes(&codes, bits);
            prop_assert_eq!(&unpack_lanes(&lanes, bits, n).unwrap(), &codes);
            let planar = pack_planar(&codes, bits);
            prop_assert_eq!(planar.len(), n.div_ceil(32) * bits as usize);
            prop_assert_eq!(&unpack_planar(&planar, bits, n).unwrap(), &codes);
            if 32 % bits == 0 {
                prop_assert_eq!(&dense, &lanes);
                prop_assert_eq!(&planar[..dense.len()], &dense);
            }
            if bits <= 4 {
                prop_assert_eq!(&unpack_awq(&pack_awq(&codes), n).unwrap(), &codes);
                for order in [NibbleOrder::EvenLow, NibbleOrder::EvenHigh, NibbleOrder::Halves] {
                    prop_assert_eq!(&order.unpack(&order.pack(&codes), n).unwrap(), &codes);
                }
            }
        }

        #[test]
        fn parts_of_rows_come_back(rows in 0usize..40, columns in 0usize..5, bits in 0u32..4) {
            let bits = 1 << bits;
            let codes = matrix(rows, columns, bits);
            for order in [PartOrder::FirstLow, PartOrder::FirstHigh] {
                let bytes = pack_parts(&codes, columns, bits, order).unwrap();
                // Without columns there is nothing to tell how many rows there were.
                let rows = if columns == 0 { 0 } else { rows };
                let back = unpack_parts(&bytes, columns, rows, bits, order).unwrap();
                prop_assert_eq!(&back, &codes);
            }
            let codes = matrix(rows, columns, 3);
            let back = unpack_hqq3(&pack_hqq3(&codes, columns).unwrap(), columns, rows).unwrap();
            prop_assert_eq!(back, codes);
        }

        #[test]
        fn words_without_padding_come_back(bits in 1u32..9, words in proptest::collection::vec(any::<u32>(), 0..5)) {
            // Words of whole blocks, which planes fill.
            let blocks = words.len() / bits as usize;
            let whole = &words[..blocks * bits as usize];
            let planar = unpack_planar(whole, bits, 32 * blocks).unwrap();
            prop_assert_eq!(pack_planar(&planar, bits), whole);
            // 8 words of any width hold a whole number of codes.
            let words: Vec<u32> = (0..8 * words.len()).map(|i| words[i / 8].wrapping_mul(i as u32 | 1)).collect();
            let n = words.len() * 32 / bits as usize;
            if n * bits as usize == words.len() * 32 {
                prop_assert_eq!(pack_dense(&unpack_dense(&words, bits, n).unwrap(), bits), words);
            }
        }
    }
}
