//! Blocks of 32, of which the low nibbles are elements 0 to 15, the high ones 16 to 31, and NVFP4.

use half::f16;

use super::super::block::{FP4_LEVELS, half_power, half_scale};

/// The element of largest magnitude with its sign; of equal ones the first.
fn extreme(x: &[f32; 32]) -> f32 {
    let mut most = (0.0f32, 0.0f32);
    for v in x {
        if v.abs() > most.0 {
            most = (v.abs(), *v);
        }
    }
    most.1
}

fn range(x: &[f32; 32]) -> (f32, f32) {
    x.iter().fold((x[0], x[0]), |(lo, hi), v| {
        (if *v < lo { *v } else { lo }, if *v > hi { *v } else { hi })
    })
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn half(out: &mut [u8], at: usize, value: f32) {
    out[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Truncated towards zero, at most `most`; never negative for what is passed here.
fn truncated(x: f32, most: u8) -> u8 {
    (x as i32).clamp(0, i32::from(most)) as u8
}

pub(super) fn q4_0(x: &[f32; 32], out: &mut [u8; 18]) {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    half(out, 0, d);
    for j in 0..16 {
        let code = |v: f32| truncated(v * id + 8.5, 15);
        out[2 + j] = code(x[j]) | code(x[j + 16]) << 4;
    }
}

pub(super) fn q4_1(x: &[f32; 32], out: &mut [u8; 20]) {
    let (lo, hi) = range(x);
    let d = (hi - lo) / 15.0;
    let id = inverse(d);
    half(out, 0, d);
    half(out, 2, lo);
    for j in 0..16 {
        let code = |v: f32| truncated((v - lo) * id + 0.5, 15);
        out[4 + j] = code(x[j]) | code(x[j + 16]) << 4;
    }
}

pub(super) fn q5_0(x: &[f32; 32], out: &mut [u8; 22]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    half(out, 0, d);
    five_bits(&mut out[2..], |j| truncated(x[j] * id + 16.5, 31));
}

pub(super) fn q5_1(x: &[f32; 32], out: &mut [u8; 24]) {
    let (lo, hi) = range(x);
    let d = (hi - lo) / 31.0;
    let id = inverse(d);
    half(out, 0, d);
    half(out, 2, lo);
    five_bits(&mut out[4..], |j| truncated((x[j] - lo) * id + 0.5, 31));
}

/// Four bytes of fifth bits, then nibbles.
fn five_bits(out: &mut [u8], code: impl Fn(usize) -> u8) {
    let mut high = 0u32;
    for j in 0..16 {
        let (a, b) = (code(j), code(j + 16));
        out[4 + j] = a & 15 | (b & 15) << 4;
        high |= u32::from(a >> 4) << j | u32::from(b >> 4) << (j + 16);
    }
    out[..4].copy_from_slice(&high.to_le_bytes());
}

pub(super) fn q8_0(x: &[f32; 32], out: &mut [u8; 34]) {
    let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = most / 127.0;
    let id = inverse(d);
    half(out, 0, d);
    for (code, v) in out[2..].iter_mut().zip(x) {
        // Halves away from zero, as `roundf` has it.
        *code = (v * id).round() as i8 as u8;
    }
}

pub(super) fn mxfp4(x: &[f32; 32], out: &mut [u8; 17]) {
    let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    // The logarithm is rounded to f32, and just below a power of two up to it, as in the reference.
    out[0] = if most > 0.0 { (most.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
    let d = half_power(out[0]);
    for j in 0..16 {
        out[1 + j] = fp4(x[j], d) | fp4(x[j + 16], d) << 4;
    }
}

pub(super) fn nvfp4(x: &[f32; 64], out: &mut [u8; 36]) {
    let (scales, codes) = out.split_at_mut(4);
    let groups = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<8>().0);
    for ((x, codes), scale) in groups.zip(scales) {
        let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        *scale = ue4m3(most / 6.0);
        let d = half_scale(*scale);
        for (j, code) in codes.iter_mut().enumerate() {
            *code = fp4(x[j], d) | fp4(x[j + 8], d) << 4;
        }
    }
}

/// The code of the level nearest to `v` in steps of `d`; of equally near ones the first, so that
/// nothing becomes a negative zero.
fn fp4(v: f32, d: f32) -> u8 {
    let mut best = (0u8, f32::INFINITY);
    for (code, level) in (0u8..).zip(FP4_LEVELS) {
        let error = (level * d - v).abs();
        if error < best.1 {
            best = (code, error);
        }
    }
    best.0
}

/// The FP8 E4M3 code of a scale from 0 on, as ggml rounds it: halves up, numbers below the smallest
/// normal one at most to the largest of these, and everything from 256 on to 448.
fn ue4m3(scale: f32) -> u8 {
    const SMALLEST_NORMAL: f32 = 0.015_625;
    // Three bits of mantissa, and 7 in place of 127 as the bias.
    const BIAS: u32 = (127 - 7) << 3;
    if scale < SMALLEST_NORMAL {
        return ((scale * 512.0 + 0.5) as u8).min(7);
    }
    // The half that is added carries into the exponent, where the mantissa has no place for it.
    let code = ((scale.to_bits() + (1 << 19)) >> 20) - BIAS;
    if code < 15 << 3 { code as u8 } else { 0x7e }
}
