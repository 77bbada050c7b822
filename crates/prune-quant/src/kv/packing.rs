use super::KvBits;

/// Bytes of `codes` codes.
pub(crate) fn packed_len(codes: usize, bits: KvBits) -> usize {
    (codes * bits.width() as usize).div_ceil(8)
}

/// Packs codes of at most 8 bits, the first in the lowest bits. As little-endian 32-bit words this
/// is KIVI's layout.
pub(crate) fn pack(codes: &[u8], bits: KvBits, out: &mut [u8]) {
    match bits {
        KvBits::Two => {
            for (byte, codes) in out.iter_mut().zip(codes.chunks(4)) {
                *byte = codes.iter().rev().fold(0, |byte, code| byte << 2 | code);
            }
        }
        KvBits::Four => {
            for (byte, codes) in out.iter_mut().zip(codes.chunks(2)) {
                *byte = codes.iter().rev().fold(0, |byte, code| byte << 4 | code);
            }
        }
        _ => out.copy_from_slice(codes),
    }
}

/// Undoes [`pack`].
pub(crate) fn unpack(packed: &[u8], bits: KvBits, codes: &mut [u8]) {
    match bits {
        KvBits::Two => {
            for (codes, byte) in codes.chunks_mut(4).zip(packed) {
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = byte >> (2 * i) & 3;
                }
            }
        }
        KvBits::Four => {
            for (codes, byte) in codes.chunks_mut(2).zip(packed) {
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = byte >> (4 * i) & 15;
                }
            }
        }
        _ => codes.copy_from_slice(packed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(codes: &[u8], bits: KvBits) -> u32 {
        let mut bytes = [0; 4];
        pack(codes, bits, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn words_are_those_of_kivi() {
        // From KIVI's packing function, revision 876b4d2.
        let two: Vec<u8> = (0..16).map(|i| (3 * i + 1) % 4).collect();
        assert_eq!(word(&two, KvBits::Two), 0xb1b1_b1b1);
        let four: Vec<u8> = (0..8).map(|i| (5 * i + 3) % 16).collect();
        assert_eq!(word(&four, KvBits::Four), 0x61c7_2d83);
    }

    #[test]
    fn packing_is_a_bijection_for_every_length() {
        for bits in [KvBits::Two, KvBits::Four, KvBits::Eight] {
            for n in 0..19usize {
                let codes: Vec<u8> =
                    (0..n).map(|i| ((i * 37 + 11) as u32 & bits.levels()) as u8).collect();
                let mut packed = vec![0; packed_len(n, bits)];
                pack(&codes, bits, &mut packed);
                let mut back = vec![0; n];
                unpack(&packed, bits, &mut back);
                assert_eq!(back, codes);
            }
        }
    }
}
