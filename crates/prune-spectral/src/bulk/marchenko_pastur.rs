use std::f64::consts::PI;

use super::density::Density;
use super::simplex::minimise;
use crate::{Error, Result, Spectrum};

/// The law of a square random matrix that a bulk fit compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SquareLaw {
    /// The quarter circle of radius 2σ, density √(4σ² − x²) / (πσ²) of the singular values.
    #[default]
    Scaled,
    /// WeightWatcher's: √(4 − x²) / (πσ²). Its radius is 2 whatever σ is, so that its integral
    /// is not 1. Where no σ fits, WeightWatcher returns the smallest that it tries, and so does
    /// this.
    Released,
}

/// How the bulk of a spectrum is fitted with the law of Marchenko and Pastur.
///
/// Eigenvalues are rescaled to a mean of 1. Their density is estimated with a triangular kernel of
/// half width 0.1 at 1000 points from 0 to λ_max + 0.5; points of density 0.01 or less are left
/// out. σ minimises the squared difference between law and density over a grid of 195 values up to
/// twice the σ₀ whose upper edge is λ_max, and then by a simplex search. Laws whose upper edge lies
/// below the mode of the density or beyond its last point, or whose lower edge lies above the mode,
/// do not count. Source: WeightWatcher's `mp_fit`. O(N log N).
///
/// ```
/// use prune_core::Seed;
/// use prune_spectral::{BulkFit, Spectrum};
/// let mut stream = Seed::new(1).stream("noise");
/// let noise = ndarray::Array2::from_shape_simple_fn((200, 100), || stream.uniform() - 0.5);
/// let bulk = BulkFit::default().fit(&Spectrum::of(noise.view())?)?;
/// assert_eq!(bulk.num_spikes, 0);
/// assert!((bulk.sigma - 1.0).abs() < 0.05);
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BulkFit {
    square: SquareLaw,
}

/// A Marchenko–Pastur bulk, and what stands out of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bulk {
    /// Standard deviation σ of the elements of the rescaled random matrix: near 1 for noise,
    /// smaller the more variance the spikes take.
    pub sigma: f64,
    /// Lower edge of the bulk, in units of the eigenvalues.
    pub min: f64,
    /// Upper edge of the bulk, in units of the eigenvalues.
    pub max: f64,
    /// Where spikes start: the upper edge and WeightWatcher's allowance for its fluctuation, the
    /// square root of Q^(−1/2) (b/M)^(2/3), in units of the eigenvalues.
    pub spike_edge: f64,
    /// The number of eigenvalues above [`Bulk::spike_edge`].
    pub num_spikes: usize,
    /// Upper edge over largest eigenvalue: above 1 for pure noise, small for strong correlations.
    pub softrank: f64,
    /// √(N / Σλ): eigenvalues times its square are those of the rescaled matrix.
    pub scale: f64,
}

impl BulkFit {
    /// The law of square matrices.
    pub fn square(self, square: SquareLaw) -> Self {
        Self { square }
    }

    /// The bulk of a spectrum.
    ///
    /// # Errors
    /// [`Error::DegenerateSpectrum`] when every eigenvalue is zero or there is none;
    /// [`Error::NoBulk`] when no law counts.
    pub fn fit(&self, spectrum: &Spectrum) -> Result<Bulk> {
        let sum = spectrum.sum();
        if sum.is_nan() || sum <= 0.0 {
            return Err(Error::DegenerateSpectrum { reason: "every eigenvalue is zero" });
        }
        let scale = (spectrum.len() as f64 / sum).sqrt();
        let values: Vec<f64> = spectrum.eigenvalues().iter().map(|v| v * scale * scale).collect();
        let largest = values.last().copied().unwrap_or(0.0);
        let (aspect, m) = (spectrum.aspect(), spectrum.shorter() as f64);
        let sigma = self.sigma(&values, aspect)?;
        let [low, high] = edges(sigma, aspect);
        let allowance = (aspect.powf(-0.5) * high.powf(2.0 / 3.0) * m.powf(-2.0 / 3.0)).sqrt();
        let spike_edge = high + allowance;
        Ok(Bulk {
            sigma,
            min: low / (scale * scale),
            max: high / (scale * scale),
            spike_edge: spike_edge / (scale * scale),
            num_spikes: values.len() - values.partition_point(|v| *v <= spike_edge),
            softrank: high / largest,
            scale,
        })
    }

    fn sigma(&self, eigenvalues: &[f64], aspect: f64) -> Result<f64> {
        const POINTS: usize = 1000;
        let square = aspect == 1.0;
        let roots: Vec<f64>;
        let values = if square {
            roots = eigenvalues.iter().map(|v| v.sqrt()).collect();
            &roots
        } else {
            eigenvalues
        };
        let end = values.last().copied().unwrap_or(0.0) + 0.5;
        let density = Density::new(values, 0.1);
        let points: Vec<(f64, f64)> = (0..POINTS)
            .map(|k| end * k as f64 / (POINTS - 1) as f64)
            .map(|x| (x, density.at(x)))
            .filter(|(_, y)| *y > 0.01)
            .collect();
        let last = points.last().map_or(0.0, |p| p.0);
        let mut mode = (0.0, 0.0);
        for p in &points {
            if p.1 > mode.1 {
                mode = *p;
            }
        }
        let counts = |sigma: f64| {
            let [low, high] = edges(sigma, aspect);
            match self.square {
                SquareLaw::Released if square => true,
                // Of singular values.
                SquareLaw::Scaled if square => 2.0 * sigma >= mode.0 && 2.0 * sigma <= last,
                _ => high >= mode.0 && high <= last && low <= mode.0,
            }
        };
        let residual = |sigma: f64| {
            if !counts(sigma) {
                return 1e6 * points.len() as f64;
            }
            let law = |x: f64| match self.square {
                SquareLaw::Released if square => circle(4.0, x) / (PI * sigma * sigma),
                SquareLaw::Scaled if square => {
                    circle(4.0 * sigma * sigma, x) / (PI * sigma * sigma)
                }
                _ => density_of_law(sigma, aspect, x),
            };
            points.iter().map(|(x, y)| (law(*x) - y).powi(2)).sum::<f64>()
        };
        let start = eigenvalues.last().copied().unwrap_or(0.0).sqrt() / (1.0 + aspect.powf(-0.5));
        let (from, to, step) = (0.05 * start, 2.0 * start, 0.01 * start);
        let mut best = (from, f64::INFINITY);
        for k in 0..((to - from) / step).ceil() as usize {
            let sigma = k as f64 * step + from;
            let r = residual(sigma);
            if r < best.1 {
                best = (sigma, r);
            }
        }
        let sigma = minimise(residual, best.0);
        if !counts(sigma) && self.square == SquareLaw::Scaled {
            return Err(Error::NoBulk {
                reason: "for every σ an edge of the law lies outside of the data",
            });
        }
        Ok(sigma)
    }
}

/// Edges of the bulk of eigenvalues.
fn edges(sigma: f64, aspect: f64) -> [f64; 2] {
    let ratio = aspect.powf(-0.5);
    [(sigma * (1.0 - ratio)).powi(2), (sigma * (1.0 + ratio)).powi(2)]
}

fn circle(radius_squared: f64, x: f64) -> f64 {
    (radius_squared - x * x).max(0.0).sqrt()
}

/// The Marchenko–Pastur density; 0 outside of its edges.
pub(crate) fn density_of_law(sigma: f64, aspect: f64, x: f64) -> f64 {
    let [low, high] = edges(sigma, aspect);
    if x <= low || x >= high {
        return 0.0;
    }
    aspect * ((high - x) * (x - low)).sqrt() / (2.0 * PI * sigma * sigma * x)
}
