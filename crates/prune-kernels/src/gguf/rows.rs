//! Rows of blocks times right-hand sides.

use std::marker::PhantomData;

use ndarray::ArrayViewMut2;

use crate::activations::Activations;
use crate::simd::{Job, Selected, Simd};

/// A format of blocks of `ELEMENTS` weights in `BYTES` bytes. All functions that take vectors must
/// be `#[inline(always)]`.
pub(super) trait Block<const BYTES: usize, const ELEMENTS: usize>: Send + Sync {
    /// `ELEMENTS` elements of a right-hand side in 8 bits.
    type Input: Sync;
    /// What turns the codes of a block into weights, unpacked.
    type Scales;

    /// A right-hand side, finite, of whole blocks.
    fn input(selected: Selected, x: &[f32], activations: Activations) -> Vec<Self::Input>;

    fn scales<S: Simd>(simd: S, block: &[u8; BYTES]) -> Self::Scales;

    /// Weights `32 part` to `32 part + 31`.
    fn weights<S: Simd>(
        simd: S,
        block: &[u8; BYTES],
        scales: &Self::Scales,
        part: usize,
    ) -> [S::F; 4];

    /// `totals` and the products with each of `x`, spread over the lanes.
    fn add_products<S: Simd, const N: usize>(
        simd: S,
        block: &[u8; BYTES],
        x: [&Self::Input; N],
        totals: [S::F; N],
    ) -> [S::F; N];
}

/// The `N` bytes of a block from byte `at` on.
#[inline(always)]
pub(super) fn field<const BYTES: usize, const N: usize>(
    block: &[u8; BYTES],
    at: usize,
) -> &[u8; N] {
    // Both are constants of a format that fit: the check is compiled away.
    match block[at..].first_chunk() {
        Some(field) => field,
        None => &[0; N],
    }
}

/// Right-hand sides for which a block is unpacked once.
pub(super) const TOGETHER: usize = 4;

/// Rows of a product with right-hand sides in 8 bits.
pub(super) struct IntegerRows<
    'a,
    B: Block<BYTES, ELEMENTS>,
    const BYTES: usize,
    const ELEMENTS: usize,
> {
    /// As many rows as `y` has.
    pub(super) data: &'a [u8],
    /// From one to [`TOGETHER`] of one length.
    pub(super) inputs: &'a [Vec<B::Input>],
    pub(super) y: ArrayViewMut2<'a, f32>,
}

impl<B: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize> Job
    for IntegerRows<'_, B, BYTES, ELEMENTS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match self.inputs.len() {
            1 => self.columns::<S, 1>(simd),
            2 => self.columns::<S, 2>(simd),
            3 => self.columns::<S, 3>(simd),
            _ => self.columns::<S, TOGETHER>(simd),
        }
    }
}

impl<B: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize>
    IntegerRows<'_, B, BYTES, ELEMENTS>
{
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S) {
        let blocks = self.inputs[0].len();
        if blocks == 0 {
            return self.y.fill(0.0);
        }
        let mut inputs: [&[B::Input]; N] = [&[]; N];
        for j in 0..N {
            inputs[j] = &self.inputs[j][..blocks];
        }
        let rows = self.data.as_chunks::<BYTES>().0.chunks_exact(blocks);
        for (r, row) in rows.enumerate() {
            // Even and odd blocks apart, so that they do not wait for each other.
            let (mut even, mut odd) = ([simd.splat(0.0); N], [simd.splat(0.0); N]);
            let mut x: [&B::Input; N] = [&inputs[0][0]; N];
            for (i, block) in row.iter().enumerate() {
                for j in 0..N {
                    x[j] = &inputs[j][i];
                }
                if i % 2 == 0 {
                    even = B::add_products(simd, block, x, even);
                } else {
                    odd = B::add_products(simd, block, x, odd);
                }
            }
            for j in 0..N {
                self.y[[r, j]] = simd.sum(simd.add(even[j], odd[j]));
            }
        }
    }
}

/// Rows of a product with right-hand sides in f32.
pub(super) struct FloatRows<'a, B, const BYTES: usize, const ELEMENTS: usize> {
    pub(super) format: PhantomData<B>,
    /// As many rows as `y` has.
    pub(super) data: &'a [u8],
    /// As many right-hand sides of `cols` elements as `y` has columns, from one to [`TOGETHER`].
    pub(super) x: &'a [f32],
    pub(super) cols: usize,
    pub(super) y: ArrayViewMut2<'a, f32>,
}

impl<B: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize> Job
    for FloatRows<'_, B, BYTES, ELEMENTS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match self.y.ncols() {
            1 => self.columns::<S, 1>(simd),
            2 => self.columns::<S, 2>(simd),
            3 => self.columns::<S, 3>(simd),
            _ => self.columns::<S, TOGETHER>(simd),
        }
    }
}

impl<B: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize>
    FloatRows<'_, B, BYTES, ELEMENTS>
{
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S) {
        let blocks = self.cols / ELEMENTS;
        if blocks == 0 {
            return self.y.fill(0.0);
        }
        // Thirty-two elements of each right-hand side at a time.
        let mut x: [&[[[f32; 8]; 4]]; N] = [&[]; N];
        for j in 0..N {
            let eights = self.x[j * self.cols..(j + 1) * self.cols].as_chunks::<8>().0;
            x[j] = eights.as_chunks::<4>().0;
        }
        let rows = self.data.as_chunks::<BYTES>().0.chunks_exact(blocks);
        for (r, row) in rows.enumerate() {
            let (mut even, mut odd) = ([simd.splat(0.0); N], [simd.splat(0.0); N]);
            for (i, block) in row.iter().enumerate() {
                let scales = B::scales(simd, block);
                for part in 0..ELEMENTS / 32 {
                    let w = B::weights(simd, block, &scales, part);
                    for j in 0..N {
                        let x = &x[j][i * (ELEMENTS / 32) + part];
                        even[j] = simd.mul_add(w[0], simd.load(&x[0]), even[j]);
                        odd[j] = simd.mul_add(w[1], simd.load(&x[1]), odd[j]);
                        even[j] = simd.mul_add(w[2], simd.load(&x[2]), even[j]);
                        odd[j] = simd.mul_add(w[3], simd.load(&x[3]), odd[j]);
                    }
                }
            }
            for j in 0..N {
                self.y[[r, j]] = simd.sum(simd.add(even[j], odd[j]));
            }
        }
    }
}

/// The weights of whole rows.
pub(super) struct Weights<'a, B, const BYTES: usize, const ELEMENTS: usize> {
    pub(super) format: PhantomData<B>,
    pub(super) data: &'a [u8],
    pub(super) w: &'a mut [f32],
}

impl<B: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize> Job
    for Weights<'_, B, BYTES, ELEMENTS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let eights = self.w.as_chunks_mut::<8>().0;
        let parts = eights.as_chunks_mut::<4>().0.chunks_exact_mut(ELEMENTS / 32);
        for (block, parts) in self.data.as_chunks::<BYTES>().0.iter().zip(parts) {
            let scales = B::scales(simd, block);
            for (part, to) in parts.iter_mut().enumerate() {
                let w = B::weights(simd, block, &scales, part);
                for p in 0..4 {
                    simd.store(w[p], &mut to[p]);
                }
            }
        }
    }
}
