//! Blocks of 256 ("k-quants"): groups of 16 or 32 whose scales are quantised in turn.

use half::f16;

use super::search::{
    Measure, TINY, Trials, nearest, scale_and_min, scale_by_descent, scale_by_trials,
};

fn half(out: &mut [u8], value: f32) -> f32 {
    let value = f16::from_f32(value);
    out.copy_from_slice(&value.to_le_bytes());
    value.to_f32()
}

pub(super) fn q2_k(x: &[f32; 256], out: &mut [u8; 84]) {
    let trials = Trials { first: -0.5, step: 0.1, count: 15 };
    let mut codes = [0u8; 256];
    let (mut scales, mut mins) = ([0.0f32; 16], [0.0f32; 16]);
    let groups = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (j, (x, codes)) in groups.enumerate() {
        let weights = x.map(f32::abs);
        (scales[j], mins[j]) = scale_and_min(x, &weights, 3, &trials, Measure::Magnitudes, codes);
    }
    // The reference scans for the largest from 0 on: negative scales count as none.
    let largest = |v: &[f32; 16]| v.iter().fold(0.0f32, |m, s| if *s > m { *s } else { m });
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let mut small = [0u8; 16];
    for j in 0..16 {
        let four = |max: f32, v: f32| match max > 0.0 {
            true => nearest(15.0 / max * v).clamp(0, 15) as u8,
            false => 0,
        };
        small[j] = four(max_scale, scales[j]) | four(max_min, mins[j]) << 4;
    }
    out[..16].copy_from_slice(&small);
    let d = half(&mut out[80..82], if max_scale > 0.0 { max_scale / 15.0 } else { 0.0 });
    let d_min = half(&mut out[82..84], if max_min > 0.0 { max_min / 15.0 } else { 0.0 });
    let groups = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (j, (x, codes)) in groups.enumerate() {
        let d = d * f32::from(small[j] & 15);
        let m = d_min * f32::from(small[j] >> 4);
        recode(x, codes, d, m, 3);
    }
    two_bits(&codes, &mut out[16..80]);
}

/// The codes of `x ≈ d · code − m`, unless `d` is 0 and they do not matter.
fn recode(x: &[f32], codes: &mut [u8], d: f32, m: f32, top: i32) {
    if d == 0.0 {
        return;
    }
    for (c, v) in codes.iter_mut().zip(x) {
        *c = nearest((v + m) / d).clamp(0, top) as u8;
    }
}

/// The codes of `x ≈ d · (code − top)`, unless `d` is 0 and they do not matter.
fn recode_signed(x: &[f32; 16], codes: &mut [u8; 16], d: f32, top: i32) {
    if d == 0.0 {
        return;
    }
    for (c, v) in codes.iter_mut().zip(x) {
        *c = (nearest(v / d).clamp(-top, top - 1) + top) as u8;
    }
}

/// In each half of 128: four runs of 32 share 32 bytes.
fn two_bits(codes: &[u8; 256], out: &mut [u8]) {
    for half in 0..2 {
        for l in 0..32 {
            let at = 128 * half + l;
            let code = |run: usize| codes[at + 32 * run] << (2 * run);
            out[32 * half + l] = code(0) | code(1) | code(2) | code(3);
        }
    }
}

pub(super) fn q3_k(x: &[f32; 256], out: &mut [u8; 110]) {
    let groups = x.as_chunks::<16>().0;
    let mut codes = [0u8; 256];
    let mut scales = [0.0f32; 16];
    for (j, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        scales[j] = scale_by_descent(&groups[j], 4, codes);
    }
    let mut max = 0.0f32;
    for s in scales {
        if s.abs() > max.abs() {
            max = s;
        }
    }
    let mut small = [0i32; 16];
    let packed = &mut out[96..108];
    packed.fill(0);
    let mut d = 0.0;
    if max != 0.0 {
        let inverse = -32.0 / max;
        for j in 0..16 {
            small[j] = nearest(inverse * scales[j]).clamp(-32, 31);
            let code = (small[j] + 32) as u8;
            packed[j % 8] |= (code & 15) << (4 * (j / 8));
            packed[8 + j % 4] |= (code >> 4) << (2 * (j / 4));
        }
        d = 1.0 / inverse;
    } else {
        small.fill(-32);
    }
    let d = half(&mut out[108..110], d);
    for (j, (x, codes)) in groups.iter().zip(codes.as_chunks_mut::<16>().0).enumerate() {
        recode_signed(x, codes, d * small[j] as f32, 4);
    }
    let (high, rest) = out.split_at_mut(32);
    high.fill(0);
    for (e, c) in codes.iter_mut().enumerate() {
        if *c > 3 {
            high[e % 32] |= 1 << (e / 32);
            *c -= 4;
        }
    }
    two_bits(&codes, &mut rest[..64]);
}

pub(super) fn q4_k(x: &[f32; 256], out: &mut [u8; 144]) {
    let trials = Trials { first: -1.0, step: 0.1, count: 20 };
    let (head, qs) = out.split_at_mut(16);
    let codes = scales_and_mins(x, 15, &trials, head);
    for (j, bytes) in qs.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = codes[64 * j + l] | codes[64 * j + 32 + l] << 4;
        }
    }
}

pub(super) fn q5_k(x: &[f32; 256], out: &mut [u8; 176]) {
    let trials = Trials { first: -0.5, step: 0.1, count: 15 };
    let (head, rest) = out.split_at_mut(16);
    let codes = scales_and_mins(x, 31, &trials, head);
    let (high, qs) = rest.split_at_mut(32);
    high.fill(0);
    for (j, bytes) in qs.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (l, byte) in bytes.iter_mut().enumerate() {
            let (a, b) = (codes[64 * j + l], codes[64 * j + 32 + l]);
            *byte = a & 15 | (b & 15) << 4;
            high[l] |= (a >> 4) << (2 * j) | (b >> 4) << (2 * j + 1);
        }
    }
}

/// The first 16 bytes of Q4_K and Q5_K, and the codes of all elements.
fn scales_and_mins(x: &[f32; 256], top: i32, trials: &Trials, head: &mut [u8]) -> [u8; 256] {
    let mut codes = [0u8; 256];
    let (mut scales, mut mins) = ([0.0f32; 8], [0.0f32; 8]);
    let (mut max_scale, mut max_min) = (0.0f32, 0.0f32);
    let groups = x.as_chunks::<32>().0;
    for (j, (x, codes)) in groups.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
        let squares = x.iter().fold(0.0f32, |sum, v| sum + v * v);
        let size = (squares / 32.0).sqrt();
        let weights = x.map(|v| size + v.abs());
        (scales[j], mins[j]) = scale_and_min(x, &weights, top, trials, Measure::Squares, codes);
        if scales[j] > max_scale {
            max_scale = scales[j];
        }
        if mins[j] > max_min {
            max_min = mins[j];
        }
    }
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inverse_scale, inverse_min) = (inverse(max_scale), inverse(max_min));
    let packed = &mut head[4..16];
    packed.fill(0);
    let mut small = [(0u8, 0u8); 8];
    for j in 0..8 {
        // A negative scale, which least squares can give, has no code but 0.
        let six = |v: f32| nearest(v).clamp(0, 63) as u8;
        let (s, m) = (six(inverse_scale * scales[j]), six(inverse_min * mins[j]));
        small[j] = (s, m);
        if j < 4 {
            packed[j] = s;
            packed[j + 4] = m;
        } else {
            packed[j + 4] = s & 15 | (m & 15) << 4;
            packed[j - 4] |= (s >> 4) << 6;
            packed[j] |= (m >> 4) << 6;
        }
    }
    let d = half(&mut head[..2], max_scale / 63.0);
    let d_min = half(&mut head[2..4], max_min / 63.0);
    for (j, (x, codes)) in groups.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
        recode(x, codes, d * f32::from(small[j].0), d_min * f32::from(small[j].1), top);
    }
    codes
}

pub(super) fn q6_k(x: &[f32; 256], out: &mut [u8; 210]) {
    let groups = x.as_chunks::<16>().0;
    let mut codes = [0u8; 256];
    let mut scales = [0.0f32; 16];
    for (j, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        scales[j] = scale_by_trials(&groups[j], 32, codes);
    }
    let mut max = 0.0f32;
    for s in scales {
        if s.abs() > max.abs() {
            max = s;
        }
    }
    out.fill(0);
    if max.abs() < TINY {
        return;
    }
    let inverse = -128.0 / max;
    let d = half(&mut out[208..210], 1.0 / inverse);
    for (j, (x, codes)) in groups.iter().zip(codes.as_chunks_mut::<16>().0).enumerate() {
        let small = nearest(inverse * scales[j]).min(127) as i8;
        out[192 + j] = small as u8;
        recode_signed(x, codes, d * f32::from(small), 32);
    }
    for half in 0..2 {
        for l in 0..32 {
            let code = |run: usize| codes[128 * half + 32 * run + l];
            out[64 * half + l] = code(0) & 15 | (code(2) & 15) << 4;
            out[64 * half + 32 + l] = code(1) & 15 | (code(3) & 15) << 4;
            out[128 + 32 * half + l] =
                code(0) >> 4 | code(1) >> 4 << 2 | code(2) >> 4 << 4 | code(3) >> 4 << 6;
        }
    }
}
