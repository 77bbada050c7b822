//! How ggml seeks the scale of a group.

/// Groups below this magnitude are zero.
pub(super) const TINY: f32 = 1e-15;

/// The nearest whole number, halves to even.
pub(super) fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// What [`scale_and_min`] minimises.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Measure {
    Squares,
    Magnitudes,
}

/// The scales that [`scale_and_min`] tries: the inverse `(first + step · i + top) / range`, `i` up to
/// `count`.
pub(super) struct Trials {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: i32,
}

/// Scale `s` and minimum `m >= 0` of `x ≈ s · code − m`, with codes from 0 to `top`, which are
/// written to `codes`: for each trial scale the codes, for the codes the weighted least squares,
/// and of these the best.
pub(super) fn scale_and_min(
    x: &[f32],
    weights: &[f32],
    top: i32,
    trials: &Trials,
    measure: Measure,
    codes: &mut [u8],
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (v, w) in x.iter().zip(weights).skip(1) {
        if *v < min {
            min = *v;
        }
        if *v > max {
            max = *v;
        }
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |inverse: f32, v: f32, min: f32| nearest(inverse * (v - min)).clamp(0, top);
    let error = |scale: f32, min: f32, codes: &[u8]| {
        let mut sum = 0.0;
        for ((v, w), c) in x.iter().zip(weights).zip(codes) {
            let d = scale * f32::from(*c) + min - v;
            sum += w * if measure == Measure::Squares { d * d } else { d.abs() };
        }
        sum
    };
    let inverse = top as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    codes.iter_mut().zip(x).for_each(|(c, v)| *c = code(inverse, *v, min) as u8);
    let mut least = error(scale, min, codes);
    let mut tried = [0u8; 32];
    let tried = &mut tried[..x.len()];
    for i in 0..=trials.count {
        // From the best minimum so far, not from that of the group.
        let inverse = (trials.first + trials.step * i as f32 + top as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((c, v), w) in tried.iter_mut().zip(x).zip(weights) {
            let l = code(inverse, *v, min);
            *c = l as u8;
            let l = l as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let found = error(this_scale, this_min, tried);
            if found < least {
                codes.copy_from_slice(tried);
                (least, scale, min) = (found, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// The element of largest magnitude with its sign; 0 where all are tiny.
fn extreme(x: &[f32]) -> f32 {
    let mut most = (0.0f32, 0.0f32);
    for v in x {
        if v.abs() > most.0 {
            most = (v.abs(), *v);
        }
    }
    if most.0 < TINY { 0.0 } else { most.1 }
}

/// The scale of `x ≈ scale · code` with codes from `−top` to `top − 1`: from the extreme, then by
/// turns over the codes (coordinate descent on the error weighted by `x²`). The codes, plus `top`,
/// are written to `out`; zeros for a tiny group.
pub(super) fn scale_by_descent(x: &[f32; 16], top: i32, out: &mut [u8; 16]) -> f32 {
    let max = extreme(x);
    if max == 0.0 {
        out.fill(0);
        return 0.0;
    }
    let inverse = -(top as f32) / max;
    let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
    let mut codes = x.map(|v| {
        let l = nearest(inverse * v).clamp(-top, top - 1);
        let w = v * v;
        sum_xl += w * v * l as f32;
        sum_l2 += w * (l * l) as f32;
        l
    });
    for _ in 0..5 {
        let mut changed = false;
        for (v, code) in x.iter().zip(&mut codes) {
            let w = v * v;
            let mut xl = sum_xl - w * v * *code as f32;
            if xl > 0.0 {
                let mut l2 = sum_l2 - w * (*code * *code) as f32;
                let l = nearest(v * l2 / xl).clamp(-top, top - 1);
                if l != *code {
                    xl += w * v * l as f32;
                    l2 += w * (l * l) as f32;
                    if l2 > 0.0 && xl * xl * sum_l2 > sum_xl * sum_xl * l2 {
                        *code = l;
                        (sum_xl, sum_l2) = (xl, l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    *out = codes.map(|l| (l + top) as u8);
    if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 }
}

/// The scale of `x ≈ scale · code` with codes from `−top` to `top − 1`: the best of nineteen around
/// the one that the extreme gives, each with its least squares weighted by `x²`. Codes as in
/// [`scale_by_descent`].
pub(super) fn scale_by_trials(x: &[f32; 16], top: i32, out: &mut [u8; 16]) -> f32 {
    let max = extreme(x);
    if max == 0.0 {
        out.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, v: f32| nearest(inverse * v).clamp(-top, top - 1);
    let sums = |inverse: f32| {
        let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
        for v in x {
            let l = code(inverse, *v) as f32;
            let w = v * v;
            sum_xl += w * v * l;
            sum_l2 += w * l * l;
        }
        (sum_xl, sum_l2)
    };
    let mut inverse = -(top as f32) / max;
    let (sum_xl, sum_l2) = sums(inverse);
    let mut scale = if sum_l2 != 0.0 { sum_xl / sum_l2 } else { 0.0 };
    let mut best = scale * sum_xl;
    for i in (-9..=9).filter(|i| *i != 0) {
        let trial = -(top as f32 + 0.1 * i as f32) / max;
        let (sum_xl, sum_l2) = sums(trial);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
            inverse = trial;
        }
    }
    *out = x.map(|v| (code(inverse, v) + top) as u8);
    scale
}
