//! From f32 to quantised blocks, as the scalar code of ggml does it.
//!
//! Sums are in f32 and in the order of the reference, so that on one machine the bytes agree with
//! those of a ggml that was compiled without vector instructions. Vectorised builds sum in other
//! orders, and may differ where two choices are equally good.

mod k;
mod search;
mod small;

use rayon::prelude::*;

use super::types::BlockType;

/// Blocks that are not worth a task of their own.
const FEW: usize = 64;

/// The bytes of the blocks of `values`, whose number is a multiple of the block's. Not finite
/// where a scale is beyond f16; see [`scales_are_finite`].
pub(super) fn quantize(block: BlockType, values: &[f32]) -> Vec<u8> {
    match block {
        BlockType::Q4_0 => run(values, small::q4_0),
        BlockType::Q4_1 => run(values, small::q4_1),
        BlockType::Q5_0 => run(values, small::q5_0),
        BlockType::Q5_1 => run(values, small::q5_1),
        BlockType::Q8_0 => run(values, small::q8_0),
        BlockType::Mxfp4 => run(values, small::mxfp4),
        BlockType::Nvfp4 => run(values, small::nvfp4),
        BlockType::Q2K => run(values, k::q2_k),
        BlockType::Q3K => run(values, k::q3_k),
        BlockType::Q4K => run(values, k::q4_k),
        BlockType::Q5K => run(values, k::q5_k),
        BlockType::Q6K => run(values, k::q6_k),
    }
}

fn run<const BYTES: usize, const ELEMENTS: usize>(
    values: &[f32],
    encode: impl Fn(&[f32; ELEMENTS], &mut [u8; BYTES]) + Sync,
) -> Vec<u8> {
    let blocks = values.as_chunks::<ELEMENTS>().0;
    let mut out = vec![0; blocks.len() * BYTES];
    out.par_chunks_exact_mut(BYTES * FEW).zip(blocks.par_chunks_exact(FEW)).for_each(
        |(out, blocks)| {
            for (bytes, values) in out.as_chunks_mut::<BYTES>().0.iter_mut().zip(blocks) {
                encode(values, bytes);
            }
        },
    );
    let done = blocks.len() / FEW * FEW;
    let rest = out[done * BYTES..].as_chunks_mut::<BYTES>().0;
    for (bytes, values) in rest.iter_mut().zip(&blocks[done..]) {
        encode(values, bytes);
    }
    out
}

/// The first block whose scale or minimum is beyond f16.
pub(super) fn first_overflow(block: BlockType, bytes: &[u8]) -> Option<usize> {
    use BlockType::*;
    let halves: &[usize] = match block {
        Q4_0 | Q5_0 | Q8_0 => &[0],
        Q4_1 | Q5_1 | Q4K | Q5K => &[0, 2],
        Q2K => &[80, 82],
        Q3K => &[108],
        Q6K => &[208],
        Mxfp4 | Nvfp4 => &[],
    };
    // All exponent bits of a half stand in its high byte.
    bytes.chunks_exact(block.bytes()).position(|b| halves.iter().any(|at| b[at + 1] & 0x7c == 0x7c))
}
