//! Deterministic matrices that reference programs can make too.
#![allow(dead_code)]

use ndarray::{Array2, Array4};

/// `sin(0.37 i² + 0.53 i j + 0.91 j² + 0.2)`: of full rank.
pub(crate) fn waves(rows: usize, cols: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(i, j)| {
        let (i, j) = (i as f64, j as f64);
        (0.37 * i * i + 0.53 * i * j + 0.91 * j * j + 0.2).sin()
    })
}

/// Normal numbers from x ← (1103515245 x + 12345) mod 2³¹, u = (x + ½) / 2³¹, in pairs:
/// √(−2 ln u₁) cos(2π u₂).
pub(crate) struct Normal(u64);

impl Normal {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = (1_103_515_245 * self.0 + 12_345) % (1 << 31);
        (self.0 as f64 + 0.5) / (1u64 << 31) as f64
    }

    pub(crate) fn draw(&mut self) -> f64 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }
}

pub(crate) fn normal(seed: u64, rows: usize, cols: usize) -> Array2<f64> {
    let mut normal = Normal::new(seed);
    Array2::from_shape_simple_fn((rows, cols), || normal.draw())
}

pub(crate) fn normal4(seed: u64, shape: (usize, usize, usize, usize)) -> Array4<f64> {
    let mut normal = Normal::new(seed);
    Array4::from_shape_simple_fn(shape, || normal.draw())
}

/// Exact quantiles of the Pareto law of exponent `alpha`.
pub(crate) fn pareto(count: usize, alpha: f64) -> Vec<f64> {
    (0..count).map(|k| (1.0 - (k as f64 + 0.5) / count as f64).powf(-1.0 / (alpha - 1.0))).collect()
}
