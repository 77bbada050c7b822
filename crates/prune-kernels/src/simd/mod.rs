//! Vectors of one instruction set, and the choice between sets.
//!
//! A product is written once, as a [`Job`] over any [`Simd`], and compiled once for each
//! instruction set. Everything between the entry of an instruction set and its intrinsics must be
//! `#[inline(always)]`: a function that is compiled on its own is compiled without the features,
//! and each intrinsic in it becomes a call. For the same reason no closure stands around an
//! intrinsic of x86.

#[cfg(target_arch = "aarch64")]
mod neon;
mod path;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use path::KernelPath;
pub(crate) use path::Selected;
pub(crate) use portable::half_to_f32;

use half::{bf16, f16};

/// A computation over the vectors of whichever instruction set was selected.
pub(crate) trait Job {
    type Output;

    /// Must be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The operations of one instruction set.
///
/// Having a value is proof that the processor has the instructions: implementations are made only
/// behind a check, so that no operation here but [`Simd::gather`] needs care.
///
/// Integer operations give the same lanes everywhere. Of the float operations, `mul_add` rounds
/// once where the processor can and twice in the portable set, and `sum` adds in one fixed order.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Eight `f32`.
    type F: Copy;
    /// Sixteen `f32`.
    type W: Copy;
    /// Eight `i32`.
    type I: Copy;
    /// Sixteen `i32`.
    type J: Copy;
    /// Sixteen `i16`.
    type H: Copy;
    /// Thirty-two bytes.
    type B: Copy;

    /// How many right-hand sides a kernel with one [`Simd::W`] for each fits in registers.
    const COLUMNS: usize;

    fn splat(self, v: f32) -> Self::F;
    fn load(self, from: &[f32; 8]) -> Self::F;
    /// The values are finite.
    fn load_f16(self, from: &[f16; 8]) -> Self::F;
    fn load_bf16(self, from: &[bf16; 8]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; 8]);
    /// `low` in the first four lanes, `high` in the others.
    fn halves(self, low: f32, high: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `((0+4)+(2+6)) + ((1+5)+(3+7))`, by lane.
    fn sum(self, v: Self::F) -> f32;
    /// Four values, twice.
    fn repeat4(self, from: &[f32; 4]) -> Self::F;
    /// In each half, the lane of that half that the low two bits of `index` say.
    fn permute4(self, v: Self::F, index: Self::I) -> Self::F;
    /// The first values of `v`, in order, at the lanes whose bit is set; zero at the others.
    fn expand(self, v: Self::F, lanes: u8) -> Self::F;
    /// The values of `from` at each index.
    ///
    /// # Safety
    /// Every index is below the length of `from` and below 2^31.
    #[allow(unsafe_code)]
    unsafe fn gather(self, from: &[f32], index: Self::I) -> Self::F;
    /// A half precision number, finite, from its bits.
    fn half(self, bits: u16) -> f32;

    fn wide_splat(self, v: f32) -> Self::W;
    fn wide_load(self, from: &[f32; 16]) -> Self::W;
    /// The values are finite.
    fn wide_load_f16(self, from: &[f16; 16]) -> Self::W;
    fn wide_load_bf16(self, from: &[bf16; 16]) -> Self::W;
    fn wide_store(self, v: Self::W, to: &mut [f32; 16]);
    fn wide_add(self, a: Self::W, b: Self::W) -> Self::W;
    /// `a · b + c`.
    fn wide_mul_add(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    /// The sums of lanes `i` and `i + 8`.
    fn wide_fold(self, v: Self::W) -> Self::F;
    fn wide_splat_i32(self, v: i32) -> Self::J;
    fn wide_load_u32(self, from: &[u32; 16]) -> Self::J;
    fn wide_and_i32(self, a: Self::J, b: Self::J) -> Self::J;
    /// Logical, by a count below 32.
    fn wide_shift_right(self, a: Self::J, count: i32) -> Self::J;
    fn wide_to_f32(self, a: Self::J) -> Self::W;

    fn splat_i32(self, v: i32) -> Self::I;
    /// `low` in the first four lanes, `high` in the others.
    fn halves_i32(self, low: i32, high: i32) -> Self::I;
    fn load_u32(self, from: &[u32; 8]) -> Self::I;
    fn load_i32(self, from: &[i32; 8]) -> Self::I;
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// Logical, each lane by its count below 32.
    fn shift_right_each(self, a: Self::I, counts: Self::I) -> Self::I;
    fn to_f32(self, a: Self::I) -> Self::F;
    /// The bytes of the lanes, the lowest first.
    fn bytes(self, a: Self::I) -> Self::B;
    /// Signed bytes as numbers, eight by eight.
    fn i8_to_f32(self, a: Self::B) -> [Self::F; 4];

    fn load_u8(self, from: &[u8; 32]) -> Self::B;
    fn load_i8(self, from: &[i8; 32]) -> Self::B;
    fn splat_u8(self, v: u8) -> Self::B;
    /// The low nibbles of sixteen bytes, then the high ones.
    fn nibbles(self, from: &[u8; 16]) -> Self::B;
    fn and(self, a: Self::B, b: Self::B) -> Self::B;
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    fn xor(self, a: Self::B, b: Self::B) -> Self::B;
    /// Wraps around.
    fn sub_u8(self, a: Self::B, b: Self::B) -> Self::B;
    /// Logical, of each byte.
    fn shift_right<const N: i32>(self, a: Self::B) -> Self::B;
    /// Of each byte.
    fn shift_left<const N: i32>(self, a: Self::B) -> Self::B;
    /// `byte` where the bit of the lane is set, zero elsewhere.
    fn select_u8(self, lanes: u32, byte: u8) -> Self::B;
    /// Sums of two adjacent products of `a` in 0..=127 with `b` in −127..=127.
    fn pairs_u7(self, a: Self::B, b: Self::B) -> Self::H;
    /// Sums of two adjacent products of `a` in −128..=127 with `b` in −127..=127.
    fn pairs_i8(self, a: Self::B, b: Self::B) -> Self::H;
    fn add_i16(self, a: Self::H, b: Self::H) -> Self::H;
    /// `low` in the first eight lanes, `high` in the others.
    fn halves_i16(self, low: i16, high: i16) -> Self::H;
    fn load_i16(self, from: &[i16; 16]) -> Self::H;
    /// Sums of two adjacent products.
    fn pairs_i16(self, a: Self::H, b: Self::H) -> Self::I;
}

#[cfg(test)]
mod tests;
