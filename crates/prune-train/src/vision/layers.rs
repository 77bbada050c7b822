//! Norms, sums, pools and linear layers over values `(images, channels, places)`.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::conv::sum_of;
use super::network::relu;
use super::{Activation, Size};

/// Mean and inverse deviation of each channel of one norm.
#[derive(Debug, Clone, Default)]
pub(super) struct Moments {
    pub(super) mean: Vec<f32>,
    pub(super) variance: Vec<f32>,
    pub(super) inverse: Vec<f32>,
}

impl Moments {
    /// Of given statistics.
    pub(super) fn of(mean: &[f32], variance: &[f32], eps: f32) -> Self {
        let inverse = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        Self { mean: mean.to_vec(), variance: variance.to_vec(), inverse }
    }

    /// Of a batch; the variance is that of the batch itself, not an estimate for more.
    pub(super) fn measure(x: &[f32], size: Size, eps: f32) -> Self {
        let places = size.places();
        let count = (x.len() / size.len() * places) as f64;
        let channel = |c: usize| x[c * places..].chunks(places).step_by(size.channels);
        let both: Vec<(f32, f32)> = (0..size.channels)
            .into_par_iter()
            .map(|c| {
                let mean = channel(c).map(sum).sum::<f64>() / count;
                let m = mean as f32;
                let squares = channel(c).map(|x| squares(x, m)).sum::<f64>();
                (m, (squares / count) as f32)
            })
            .collect();
        let mean: Vec<f32> = both.iter().map(|b| b.0).collect();
        let variance: Vec<f32> = both.iter().map(|b| b.1).collect();
        Self::of(&mean, &variance, eps)
    }

    /// Normalises, scales, shifts, activates.
    pub(super) fn forward(
        &self,
        x: &[f32],
        size: Size,
        (scale, shift): (&[f32], &[f32]),
        activation: Activation,
        out: &mut [f32],
    ) {
        let places = size.places();
        out.par_chunks_mut(size.len()).zip(x.par_chunks(size.len())).for_each(|(out, x)| {
            let channels = out.chunks_mut(places).zip(x.chunks(places)).enumerate();
            for (c, (out, x)) in channels {
                let a = scale[c] * self.inverse[c];
                let b = shift[c] - self.mean[c] * a;
                // One loop for each activation, so that each vectorises.
                match activation {
                    Activation::Linear => each(out, x, |x| x * a + b),
                    Activation::Relu => each(out, x, |x| relu(x * a + b)),
                    Activation::Relu6 => each(out, x, |x| (x * a + b).clamp(0.0, 6.0)),
                }
            }
        });
    }

    /// Turns the gradient by the output into that by the input, in place; returns those by scale
    /// and shift. `through` says whether the moments were measured on this batch and depend on it.
    pub(super) fn backward(
        &self,
        (x, y): (&[f32], &[f32]),
        size: Size,
        scale: &[f32],
        activation: Activation,
        through: bool,
        gradient: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let places = size.places();
        mask(activation, y, gradient);
        let count = (x.len() / size.len() * places) as f32;
        let sums: Vec<(f32, f32)> = {
            let gradient = &*gradient;
            (0..size.channels)
                .into_par_iter()
                .map(|c| {
                    let (mut sum, mut product) = (0f64, 0f64);
                    let x = x[c * places..].chunks(places).step_by(size.channels);
                    let g = gradient[c * places..].chunks(places).step_by(size.channels);
                    for (x, g) in x.zip(g) {
                        let (s, p) = sums(x, g, self.mean[c]);
                        sum += s;
                        product += p;
                    }
                    (sum as f32, (product * f64::from(self.inverse[c])) as f32)
                })
                .collect()
        };
        gradient.par_chunks_mut(size.len()).zip(x.par_chunks(size.len())).for_each(|(g, x)| {
            for (c, (g, x)) in g.chunks_mut(places).zip(x.chunks(places)).enumerate() {
                let a = scale[c] * self.inverse[c];
                if !through {
                    g.iter_mut().for_each(|g| *g *= a);
                    continue;
                }
                // a (g - mean g - x̂ mean(g x̂))
                let (sum, product) = sums_of(&sums, c, count);
                let slope = -a * product * self.inverse[c];
                let level = -a * sum - slope * self.mean[c];
                g.iter_mut().zip(x).for_each(|(g, x)| *g = a * *g + slope * x + level);
            }
        });
        sums.iter().map(|(sum, product)| (*product, *sum)).unzip()
    }
}

fn sums_of(sums: &[(f32, f32)], channel: usize, count: f32) -> (f32, f32) {
    (sums[channel].0 / count, sums[channel].1 / count)
}

#[inline(always)]
fn each(out: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    out.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x));
}

/// Zeroes the gradient where the activation is flat.
pub(super) fn mask(activation: Activation, y: &[f32], gradient: &mut [f32]) {
    if activation == Activation::Linear {
        return;
    }
    gradient.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(g, y)| {
        for (g, y) in g.iter_mut().zip(y) {
            *g = if activation.passes(*y) { *g } else { 0.0 };
        }
    });
}

const CHUNK: usize = 1 << 14;

/// The activation of the sum.
pub(super) fn add(a: &[f32], b: &[f32], activation: Activation, out: &mut [f32]) {
    let inputs = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (a, b))| {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            *o = activation.of(a + b);
        }
    });
}

/// The largest of every 2 x 2 places.
pub(super) fn max_pool(x: &[f32], from: Size, to: Size, out: &mut [f32]) {
    out.par_chunks_mut(to.places()).zip(x.par_chunks(from.places())).for_each(|(out, x)| {
        for (i, o) in out.iter_mut().enumerate() {
            *o = x[largest(x, from, to, i)];
        }
    });
}

/// Sends each gradient to the place that was largest, the first of equals.
pub(super) fn max_pool_backward(x: &[f32], from: Size, to: Size, dy: &[f32], dx: &mut [f32]) {
    let pairs = x.par_chunks(from.places()).zip(dy.par_chunks(to.places()));
    dx.par_chunks_mut(from.places()).zip(pairs).for_each(|(dx, (x, dy))| {
        dx.fill(0.0);
        for (i, dy) in dy.iter().enumerate() {
            dx[largest(x, from, to, i)] += dy;
        }
    });
}

fn largest(x: &[f32], from: Size, to: Size, i: usize) -> usize {
    let corner = 2 * (i / to.width) * from.width + 2 * (i % to.width);
    let mut best = corner;
    for at in [corner + 1, corner + from.width, corner + from.width + 1] {
        if x[at] > x[best] {
            best = at;
        }
    }
    best
}

/// The mean of the places of every channel.
pub(super) fn mean_pool(x: &[f32], places: usize, out: &mut [f32]) {
    let mean = |x: &[f32]| (sum(x) / places as f64) as f32;
    out.par_iter_mut().zip(x.par_chunks(places)).for_each(|(o, x)| *o = mean(x));
}

/// See [`mean_pool`].
pub(super) fn mean_pool_backward(dy: &[f32], places: usize, dx: &mut [f32]) {
    let share = 1.0 / places as f32;
    dx.par_chunks_mut(places).zip(dy).for_each(|(dx, dy)| dx.fill(dy * share));
}

/// Images of a group of a linear layer.
const GROUP: usize = 32;

/// `x Wᵀ + b`, activated; `x` is `(images, inputs)`.
pub(super) fn linear(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    activation: Activation,
    out: &mut [f32],
) {
    let (m, k) = (bias.len(), weight.len() / bias.len());
    let w = MatRef::from_row_major_slice(weight, m, k);
    out.par_chunks_mut(GROUP * m).zip(x.par_chunks(GROUP * k)).for_each(|(out, x)| {
        let rows = out.len() / m;
        let x = MatRef::from_row_major_slice(x, rows, k);
        let product = MatMut::from_row_major_slice_mut(&mut *out, rows, m);
        matmul(product, Accum::Replace, x, w.transpose(), 1.0, Par::Seq);
        for row in out.chunks_mut(m) {
            row.iter_mut().zip(bias).for_each(|(o, b)| *o = activation.of(*o + b));
        }
    });
}

/// The gradients by weight and bias; by the input into `dx`, unless that is empty.
pub(super) fn linear_backward(
    x: &[f32],
    weight: &[f32],
    features: usize,
    dy: &[f32],
    dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let (m, k) = (features, weight.len() / features);
    if !dx.is_empty() {
        let w = MatRef::from_row_major_slice(weight, m, k);
        dx.par_chunks_mut(GROUP * k).zip(dy.par_chunks(GROUP * m)).for_each(|(dx, dy)| {
            let rows = dx.len() / k;
            let dy = MatRef::from_row_major_slice(dy, rows, m);
            let dx = MatMut::from_row_major_slice_mut(dx, rows, k);
            matmul(dx, Accum::Replace, dy, w, 1.0, Par::Seq);
        });
    }
    let parts: Vec<(Vec<f32>, Vec<f32>)> = x
        .par_chunks(GROUP * k)
        .zip(dy.par_chunks(GROUP * m))
        .map(|(x, dy)| {
            let rows = x.len() / k;
            let (mut dw, mut db) = (vec![0.0; m * k], vec![0.0; m]);
            for row in dy.chunks(m) {
                db.iter_mut().zip(row).for_each(|(b, d)| *b += d);
            }
            let (x, dy) = (
                MatRef::from_row_major_slice(x, rows, k),
                MatRef::from_row_major_slice(dy, rows, m),
            );
            let sum = MatMut::from_row_major_slice_mut(&mut dw, m, k);
            matmul(sum, Accum::Replace, dy.transpose(), x, 1.0, Par::Seq);
            (dw, db)
        })
        .collect();
    let (weights, biases) = parts.into_iter().unzip();
    (sum_of(weights), sum_of(biases))
}

/// The sum, in eight lanes of f32 a row and f64 over rows of 1024.
fn sum(x: &[f32]) -> f64 {
    fold(x, |x| x)
}

/// The sum of the squared distances from `mean`.
fn squares(x: &[f32], mean: f32) -> f64 {
    fold(x, |x| (x - mean) * (x - mean))
}

#[inline(always)]
fn fold(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    x.chunks(1024)
        .map(|x| {
            let mut lanes = [0f32; 8];
            let (chunks, rest) = x.as_chunks::<8>();
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane += f(*x);
                }
            }
            f64::from(lanes.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>())
        })
        .sum()
}

/// The sums of g and of g (x − mean).
fn sums(x: &[f32], g: &[f32], mean: f32) -> (f64, f64) {
    let (mut sum, mut product) = (0f64, 0f64);
    for (x, g) in x.chunks(1024).zip(g.chunks(1024)) {
        let (mut s, mut p) = ([0f32; 8], [0f32; 8]);
        let ((xs, x_rest), (gs, g_rest)) = (x.as_chunks::<8>(), g.as_chunks::<8>());
        for (x, g) in xs.iter().zip(gs) {
            for i in 0..8 {
                s[i] += g[i];
                p[i] += g[i] * (x[i] - mean);
            }
        }
        let mut rest = (0f32, 0f32);
        for (x, g) in x_rest.iter().zip(g_rest) {
            rest = (rest.0 + g, rest.1 + g * (x - mean));
        }
        sum += f64::from(s.iter().sum::<f32>() + rest.0);
        product += f64::from(p.iter().sum::<f32>() + rest.1);
    }
    (sum, product)
}
