use prune_core::Seed;
use rayon::prelude::*;

use super::spectra::WindowSpectra;
use crate::{Error, Result, Spectrum, TailFit};

/// How stable an exponent is: it is fitted again to spectra drawn with replacement.
///
/// Replicate `r` of a layer draws from the random stream of the layer's name and `r`: results do
/// not depend on the order of layers or the number of threads. Costs one fit a replicate.
///
/// ```
/// use ndarray::Array2;
/// use prune_core::Seed;
/// use prune_spectral::{Bootstrap, Farms, TailFit};
/// let weight = Array2::from_shape_fn((60, 90), |(i, j)| ((i * i + 7 * j * j + i * j) as f32).sin());
/// let farms = Farms::new(30, 1.0)?.fit(TailFit::median());
/// let measure = farms.measure(weight.view())?;
/// let interval = Bootstrap::new(100, 0.9, Seed::new(5))?.over_windows(
///     "mlp.up_proj",
///     &measure.spectra,
///     &TailFit::median(),
/// )?;
/// assert!(interval.low <= measure.alpha && measure.alpha <= interval.high);
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    replicates: usize,
    level: f64,
    seed: Seed,
}

/// An interval of an exponent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end: the (1 − level) / 2 quantile of the replicates.
    pub low: f64,
    /// Upper end: the (1 + level) / 2 quantile.
    pub high: f64,
    /// Standard deviation of the replicates.
    pub standard_error: f64,
    /// The number of replicates that could be fitted.
    pub replicates: usize,
}

impl Default for Bootstrap {
    /// 200 replicates, level 0.95, seed 0.
    fn default() -> Self {
        Self { replicates: 200, level: 0.95, seed: Seed::default() }
    }
}

impl Bootstrap {
    /// A bootstrap of `replicates` fits and an interval that holds the share `level` of them.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for fewer than two replicates or a level outside (0, 1).
    pub fn new(replicates: usize, level: f64, seed: Seed) -> Result<Self> {
        if replicates < 2 {
            return Err(Error::OutOfRange {
                what: "the number of bootstrap replicates",
                found: replicates.to_string(),
                expected: "2 or more",
            });
        }
        if !(level > 0.0 && level < 1.0) {
            return Err(Error::OutOfRange {
                what: "the level of the interval",
                found: level.to_string(),
                expected: "a number between 0 and 1",
            });
        }
        Ok(Self { replicates, level, seed })
    }

    /// The interval of the exponent of a whole matrix: its eigenvalues are drawn, as if they were
    /// independent.
    ///
    /// # Errors
    /// As [`TailFit::fit`], when fewer than half of the replicates can be fitted.
    pub fn over_eigenvalues(
        &self,
        layer: &str,
        spectrum: &Spectrum,
        fit: &TailFit,
    ) -> Result<Interval> {
        self.interval(layer, "eigenvalues", |draw| {
            let n = spectrum.len();
            let mut times = vec![0u32; n];
            (0..n).for_each(|_| times[draw(n)] += 1);
            fit.fit(&repeated(spectrum, |i| times[i], 1)).map(|f| f.alpha)
        })
    }

    /// The interval of the exponent of a layer: its windows are drawn, each with all of its
    /// eigenvalues.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for fewer than two windows; as [`TailFit::fit`], when fewer than half
    /// of the replicates can be fitted.
    pub fn over_windows(
        &self,
        layer: &str,
        spectra: &WindowSpectra,
        fit: &TailFit,
    ) -> Result<Interval> {
        if let Some(group) = spectra.groups().iter().find(|g| g.count < 2) {
            return Err(Error::OutOfRange {
                what: "the number of windows",
                found: group.count.to_string(),
                expected: "2 or more to draw from; draw eigenvalues instead",
            });
        }
        self.interval(layer, "windows", |draw| {
            let mut sum = 0.0;
            for group in spectra.groups() {
                let mut times = vec![0u32; group.count];
                (0..group.count).for_each(|_| times[draw(group.count)] += 1);
                let of = |i: usize| times[group.windows[i] as usize];
                sum += fit.fit(&repeated(&group.spectrum, of, group.count))?.alpha;
            }
            Ok(sum / spectra.groups().len() as f64)
        })
    }

    fn interval(
        &self,
        layer: &str,
        what: &str,
        replicate: impl Fn(&mut dyn FnMut(usize) -> usize) -> Result<f64> + Sync,
    ) -> Result<Interval> {
        let results: Vec<Result<f64>> = (0..self.replicates)
            .into_par_iter()
            .map(|r| {
                let mut stream = self.seed.stream(&format!("{layer}/{what}/{r}"));
                replicate(&mut |bound| stream.below(bound as u64) as usize)
            })
            .collect();
        let mut alphas = Vec::with_capacity(results.len());
        let mut failure = None;
        for result in results {
            match result {
                Ok(alpha) => alphas.push(alpha),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        if let Some(e) = failure
            && (2 * alphas.len() < self.replicates || alphas.len() < 2)
        {
            return Err(e);
        }
        alphas.sort_unstable_by(f64::total_cmp);
        let count = alphas.len() as f64;
        let mean = alphas.iter().sum::<f64>() / count;
        let squares: f64 = alphas.iter().map(|a| (a - mean).powi(2)).sum();
        Ok(Interval {
            low: quantile(&alphas, 0.5 - self.level / 2.0),
            high: quantile(&alphas, 0.5 + self.level / 2.0),
            standard_error: (squares / (count - 1.0)).sqrt(),
            replicates: alphas.len(),
        })
    }
}

/// The spectrum with eigenvalue `i` repeated `times(i)` times: in order without sorting.
fn repeated(spectrum: &Spectrum, times: impl Fn(usize) -> u32, matrices: usize) -> Spectrum {
    let mut values = Vec::with_capacity(spectrum.len() + spectrum.len() / 4);
    for (i, v) in spectrum.eigenvalues().iter().enumerate() {
        (0..times(i)).for_each(|_| values.push(*v));
    }
    Spectrum::pooled(values, spectrum.longer(), spectrum.shorter(), matrices)
}

/// The quantile of sorted values, with linear interpolation.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let below = (place as usize).min(sorted.len() - 1);
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}
