use ndarray::ArrayView2;
use prune_core::{
    Error, Fidelity, Granularity, LayerStats, NumberFormat, QuantReport, QuantScheme, QuantTarget,
    Quantized, Quantizer, Result, ScaleFormat, ZeroPoint,
};
use rayon::prelude::*;

use crate::grid::{Coder, Input, Params, Rules, assemble};

/// Finds the float zero point of each group that makes the errors sparse: half-quadratic
/// quantisation (Badri, Shaji 2023, mobiusml.github.io/hqq_blog). Data-free.
///
/// Minimises `Σ |W − Ŵ|^p` by turns over the errors and the zero point:
///
/// ```text
/// e    = shrink(W − Ŵ),  shrink(x) = sign(x) · max(|x| − |x|^(p−1) / β, 0)
/// zero = mean over the group of (code − (W − e) / scale)
/// ```
///
/// A group stops at the first zero point that does not lower its mean absolute error and keeps the
/// best, so that it is never worse than where it began. Takes integers with a float zero point
/// whose groups lie within rows; the scale stays that of the range. The reported loss is the mean
/// absolute error.
///
/// ```
/// use ndarray::Array2;
/// use prune_core::{LayerId, LayerStats, QuantTarget, Quantizer};
/// use prune_quant::{Hqq, Rtn};
///
/// let weight = Array2::from_shape_fn((2, 16), |(i, j)| ((7 * i + 3 * j) as f32).sin().powi(3));
/// let layer = LayerId::new("up_proj");
/// let target = QuantTarget { layer: &layer, scheme: "int2 g16 float".parse()?, keep: None };
/// let error = |w: &dyn Quantizer| -> prune_core::Result<f32> {
///     let done = w.quantize(weight.view(), &LayerStats::default(), &target)?;
///     Ok((done.matrix.dequantize() - &weight).mapv(f32::abs).sum())
/// };
/// assert!(error(&Hqq::default())? < 0.9 * error(&Rtn::default())?);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hqq {
    /// The exponent p, in (0, 1].
    pub norm: f64,
    /// β at the start, above 0.
    pub beta: f64,
    /// What β is multiplied by after each iteration, at least 1. The released code does not.
    pub kappa: f64,
    /// The most iterations.
    pub iterations: u32,
    /// [`Fidelity::Released`]: β stays, all groups stop together when the mean absolute error of
    /// the whole matrix no longer falls, and keep the zero point after that; 4-bit zero points
    /// start out whole.
    pub fidelity: Fidelity,
}

impl Default for Hqq {
    fn default() -> Self {
        Self { norm: 0.7, beta: 10.0, kappa: 1.01, iterations: 20, fidelity: Fidelity::Exact }
    }
}

impl Hqq {
    fn check(&self) -> Result<()> {
        let bad = |what: &str, found: f64, expected: &str| {
            Err(Error::OutOfRange {
                what: format!("{what} of HQQ"),
                found: found.to_string(),
                expected: expected.to_string(),
            })
        };
        if !(self.norm > 0.0 && self.norm <= 1.0) {
            return bad("norm", self.norm, "above 0 and at most 1");
        }
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return bad("beta", self.beta, "above 0 and finite");
        }
        if !(self.kappa >= 1.0 && self.kappa.is_finite()) {
            return bad("kappa", self.kappa, "at least 1 and finite");
        }
        Ok(())
    }

    /// What is left of an error.
    fn shrink(&self, x: f32, beta: f64) -> f32 {
        let size = f64::from(x.abs());
        // 0^(p−1) is infinite, and what it shrinks is 0.
        if size == 0.0 {
            return 0.0;
        }
        ((size - size.powf(self.norm - 1.0) / beta).max(0.0)).copysign(f64::from(x)) as f32
    }
}

/// A group while its zero point is sought. `scale` multiplies weights, as in the reference.
struct Group<'a> {
    weights: &'a [f32],
    scale: f32,
    zero: f32,
    /// The best zero point so far and its error.
    best: (f32, f64),
    done: bool,
}

impl Group<'_> {
    /// One iteration; the sum of absolute errors of the zero point before it.
    fn step(&mut self, hqq: &Hqq, beta: f64, top: f32) -> f64 {
        let (mut error, mut next) = (0.0, 0.0f64);
        for w in self.weights {
            let code = (w * self.scale + self.zero).round_ties_even().clamp(0.0, top);
            let back = (code - self.zero) / self.scale;
            let e = hqq.shrink(w - back, beta);
            next += f64::from(code - (w - e) * self.scale);
            error += f64::from((w - back).abs());
        }
        if error < self.best.1 {
            self.best = (self.zero, error);
        } else {
            self.done = true;
        }
        self.zero = (next / self.weights.len().max(1) as f64) as f32;
        error
    }
}

impl Quantizer for Hqq {
    fn name(&self) -> &str {
        "hqq"
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<()> {
        scheme.check()?;
        let refuse = |reason: &str| {
            Err(Error::UnsupportedScheme {
                method: self.name().to_string(),
                scheme: *scheme,
                reason: reason.to_string(),
            })
        };
        match (scheme.number, scheme.zero, scheme.granularity) {
            (NumberFormat::Int { bits: 2.. }, ZeroPoint::Float, g) => match g {
                Granularity::Group(_) | Granularity::PerChannel
                    if scheme.scale != ScaleFormat::Double =>
                {
                    Ok(())
                }
                _ => refuse("groups have to lie within rows, with scales of their own; use `gN`"),
            },
            _ => refuse("it seeks a zero point between codes; use `int2` to `int8` with `float`"),
        }
    }

    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        _: &LayerStats,
        target: &QuantTarget<'_>,
    ) -> Result<Quantized> {
        self.supports(&target.scheme)?;
        self.check()?;
        let input = Input::new(self.name(), &weight, target)?;
        let (rows, cols) = (input.rows, input.cols);
        let size = match target.scheme.granularity {
            Granularity::Group(n) => n,
            _ => cols.max(1),
        };
        let released = self.fidelity == Fidelity::Released;
        let bits = target.scheme.number.bits();
        let top = ((1u32 << bits) - 1) as f32;
        let mut groups: Vec<Group<'_>> = input
            .values()
            .chunks(cols.max(1))
            .flat_map(|row| row.chunks(size))
            .map(|weights| start(weights, top, released && bits == 4))
            .collect();
        let mut best = f64::INFINITY;
        let mut beta = self.beta;
        for _ in 0..self.iterations {
            let active = groups.par_iter_mut().filter(|g| released || !g.done);
            let errors: Vec<f64> = active.map(|g| g.step(self, beta, top)).collect();
            if errors.is_empty() {
                break;
            }
            if released {
                let error = errors.iter().sum();
                if error >= best {
                    break;
                }
                best = error;
            } else {
                beta *= self.kappa;
            }
        }

        let coder = Coder::new(target.scheme, Rules::default(), 0.0)?;
        let params: Vec<Params> = groups
            .par_iter()
            .map(|g| {
                let zero = if released { g.zero } else { g.best.0 };
                coder.with_scale_and_zero(1.0 / g.scale, zero)
            })
            .collect();
        let coded: Vec<(Vec<u8>, f64)> = groups
            .par_iter()
            .zip(&params)
            .map(|(g, p)| {
                let codes: Vec<u8> = g.weights.iter().map(|w| coder.code(p, *w)).collect();
                let off = |(w, c): (&f32, &u8)| f64::from((coder.value(p, *c) - w).abs());
                let error = g.weights.iter().zip(&codes).map(off).sum();
                (codes, error)
            })
            .collect();
        let loss = coded.iter().map(|(_, e)| e).sum::<f64>() / (rows * cols).max(1) as f64;
        let codes = coded.into_iter().flat_map(|(c, _)| c).collect();
        let params = match params.is_empty() {
            true => vec![coder.params(&[]); rows],
            false => params,
        };
        let shape = target.scheme.granularity.scales_shape(rows, cols);
        let params = params.into_iter().take(shape.0 * shape.1).collect::<Vec<_>>();
        let matrix = assemble(&coder, &input, codes, shape, &params, None)?;
        let report = QuantReport { loss: Some(loss), ..QuantReport::default() };
        Ok(Quantized { matrix, report })
    }
}

/// A group with the scale of its range.
fn start(weights: &[f32], top: f32, whole: bool) -> Group<'_> {
    let first = weights.first().copied().unwrap_or(0.0);
    let (lo, hi) = weights.iter().fold((first, first), |(lo, hi), w| (lo.min(*w), hi.max(*w)));
    let scale = if hi - lo <= 1e-4 { 1.0 } else { (top / (hi - lo)).min(2e4) };
    let zero = -lo * scale;
    let zero = if whole { zero.round_ties_even() } else { zero };
    Group { weights, scale, zero, best: (zero, f64::INFINITY), done: false }
}
