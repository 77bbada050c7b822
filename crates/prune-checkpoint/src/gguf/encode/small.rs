//! Blocks of 32. The low nibbles are elements 0 to 15, the high ones 16 to 31.

use half::f16;

use super::super::block::{MXFP4_LEVELS, half_power};

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
    // Of equally near codes the first, so that nothing becomes a negative zero.
    let code = |v: f32| {
        let mut best = (0u8, f32::INFINITY);
        for (code, level) in (0u8..).zip(MXFP4_LEVELS) {
            let error = (level * d - v).abs();
            if error < best.1 {
                best = (code, error);
            }
        }
        best.0
    };
    for j in 0..16 {
        out[1 + j] = code(x[j]) | code(x[j + 16]) << 4;
    }
}
