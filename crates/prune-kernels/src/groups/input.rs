use super::GroupKernel;
use crate::activations::{Activations, Q8Block, ToBlocks};
use crate::storage::Storage;

/// A right-hand side in the order of the codes in a unit.
pub(super) enum Input {
    Float {
        /// For each two units, for each place of a code in a word: the element of each of the eight
        /// words of both, divided by the place's weight so that the code need not be shifted there.
        x: Vec<[f32; 16]>,
        /// For each span, the sum of what each word meets.
        sums: Vec<[f32; 8]>,
    },
    Integer {
        /// Two blocks of 32 a unit for 4 bits, one for 8.
        units: Vec<Unit>,
        /// For each span, the sum of what each word meets.
        sums: Vec<[f32; 8]>,
    },
}

/// A unit of a right-hand side in 8 bits.
pub(super) struct Unit {
    /// What meets the low nibbles (all bytes, for 8 bits) and the high nibbles.
    pub(super) codes: [[i8; 32]; 2],
    /// The sums of the codes that each word meets.
    pub(super) sums: [f32; 8],
    /// The scale of each word's codes.
    pub(super) scales: [f32; 8],
}

impl Input {
    /// Of padded length.
    pub(super) fn new<T: Storage>(matrix: &GroupKernel<T>, x: &[f32]) -> Self {
        let (bits, unit) = (matrix.bits, matrix.unit());
        if matrix.activations == Activations::F32 {
            let in_word = 32 / bits;
            let mut ordered = vec![[0.0; 16]; (x.len() / unit).div_ceil(2) * in_word];
            let mut sums = vec![[0.0; 8]; (x.len() / unit).div_ceil(matrix.span())];
            for (u, from) in x.chunks_exact(unit).enumerate() {
                let sums = &mut sums[u / matrix.span()];
                let (first, half) = (u / 2 * in_word, u % 2 * 8);
                for (place, to) in ordered[first..][..in_word].iter_mut().enumerate() {
                    // The topmost code is shifted down, for it would reach the sign.
                    let scale = match place + 1 == in_word {
                        true => 1.0,
                        false => ((1u32 << (place * bits)) as f32).recip(),
                    };
                    for word in 0..8 {
                        let v = from[word * in_word + place];
                        to[half + word] = v * scale;
                        sums[word] += v;
                    }
                }
            }
            return Self::Float { x: ordered, sums };
        }
        let precision = matrix.activations;
        let blocks = matrix.selected.run(ToBlocks { x, precision });
        let units: Vec<Unit> = match bits {
            8 => blocks.into_iter().map(Unit::of_bytes).collect(),
            _ => blocks.as_chunks::<2>().0.iter().map(Unit::of_nibbles).collect(),
        };
        let of_span = |units: &[Unit]| {
            let of_word = |w: usize| units.iter().map(|u| u.scales[w] * u.sums[w]).sum();
            std::array::from_fn(of_word)
        };
        let sums = units.chunks(matrix.span()).map(of_span).collect();
        Self::Integer { units, sums }
    }
}

impl Unit {
    fn of_bytes(block: Q8Block) -> Self {
        let Q8Block { codes, sums, scale, .. } = block;
        Self { codes: [codes, [0; 32]], sums: sums.map(|s| s as f32), scales: [scale; 8] }
    }

    fn of_nibbles(blocks: &[Q8Block; 2]) -> Self {
        let [a, b] = blocks;
        let code = |c: usize| if c < 32 { a.codes[c] } else { b.codes[c - 32] };
        let sum = |word: usize| (0..8).map(|i| f32::from(code(8 * word + i))).sum();
        let codes = [0, 1].map(|odd| std::array::from_fn(|i| code(2 * i + odd)));
        let scales = std::array::from_fn(|word| if word < 4 { a.scale } else { b.scale });
        Self { codes, sums: std::array::from_fn(sum), scales }
    }
}
