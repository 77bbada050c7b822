use prune_core::Seed;
use prune_linalg::Real;

use super::diagnosis::{Diagnosis, Randomised, Status, Warning};
use crate::shuffled::shuffled_spectrum;
use crate::{
    Bootstrap, Bulk, BulkFit, Cutoff, Error, Result, SmallSample, Spectrum, SquareLaw, TailFit,
    Weight, jensen_shannon_distance,
};

/// What [`diagnose`] measures, and how.
///
/// ```
/// use prune_core::Seed;
/// use prune_spectral::{Bootstrap, DiagnoseOptions};
/// let options = DiagnoseOptions::weightwatcher()
///     .randomise(Seed::new(1))
///     .interval(Bootstrap::new(100, 0.95, Seed::new(1))?);
/// assert_ne!(options, DiagnoseOptions::default());
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiagnoseOptions {
    fit: TailFit,
    bulk: BulkFit,
    limits: Option<Limits>,
    random: Option<Seed>,
    interval: Option<Bootstrap>,
}

/// The sizes that WeightWatcher analyses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    min_evals: usize,
    max_evals: usize,
    max_n: usize,
}

impl Default for DiagnoseOptions {
    /// The goodness-of-fit power law with a cutoff that does not depend on the scale of the
    /// weight, the correct quarter circle for square weights, no limits; nothing random.
    fn default() -> Self {
        Self {
            fit: TailFit::goodness_of_fit(),
            bulk: BulkFit::default(),
            limits: None,
            random: None,
            interval: None,
        }
    }
}

impl DiagnoseOptions {
    /// What WeightWatcher 0.7.7 computes by default: eigenvalues up to 1e-5 count as zero, fewer
    /// than 20 are corrected for bias, square weights have its quarter circle of radius 2, and
    /// layers with fewer than 8 eigenvalues, more than 15 000, or more than 50 000 rows or columns
    /// are skipped.
    pub fn weightwatcher() -> Self {
        let fit = TailFit::goodness_of_fit().small_sample(SmallSample::BiasCorrected);
        Self {
            fit: fit.cutoff(Cutoff::Absolute(1e-5)).unwrap_or(fit),
            bulk: BulkFit::default().square(SquareLaw::Released),
            limits: Some(Limits { min_evals: 8, max_evals: 15_000, max_n: 50_000 }),
            ..Self::default()
        }
    }

    /// The fit of the tail.
    pub fn fit(self, fit: TailFit) -> Self {
        Self { fit, ..self }
    }

    /// The fit of the bulk.
    pub fn bulk(self, bulk: BulkFit) -> Self {
        Self { bulk, ..self }
    }

    /// Compares with the shuffled elements too, drawn from the layer's own random stream. Costs a
    /// second decomposition, five more for fewer than 100 eigenvalues.
    pub fn randomise(self, seed: Seed) -> Self {
        Self { random: Some(seed), ..self }
    }

    /// Adds an interval of α, by drawing eigenvalues.
    pub fn interval(self, bootstrap: Bootstrap) -> Self {
        Self { interval: Some(bootstrap), ..self }
    }
}

/// Every metric of the layer of this name.
///
/// The name is for the random streams. One decomposition of each matrix (see
/// [`Spectrum::of`](crate::Spectrum::of) for its memory), on one thread: diagnose many layers side
/// by side. A tail or a bulk that nothing fits is not an error; its columns are `None`.
///
/// # Errors
/// [`Error::Empty`]; [`Error::Linalg`] for NaN and infinity; [`Error::DegenerateSpectrum`] for a
/// weight of zeros; [`Error::Skipped`] outside of the limits of
/// [`DiagnoseOptions::weightwatcher`].
///
/// ```
/// use ndarray::Array2;
/// use prune_spectral::{DiagnoseOptions, diagnose};
/// let weight = Array2::from_shape_fn((60, 40), |(i, j)| ((i * i + 7 * j * j + i * j) as f32).sin());
/// let diagnosis = diagnose("mlp.up_proj", weight.view(), &DiagnoseOptions::default())?;
/// assert_eq!((diagnosis.n, diagnosis.m, diagnosis.matrix_rank), (60, 40, 40));
/// assert!(diagnosis.alpha.is_some_and(|a| a > 1.0));
/// # Ok::<(), prune_spectral::Error>(())
/// ```
pub fn diagnose<'a, T: Real>(
    layer: &str,
    weight: impl Into<Weight<'a, T>>,
    options: &DiagnoseOptions,
) -> Result<Diagnosis> {
    let weight = weight.into();
    if let Some(limits) = options.limits {
        limits.check(&weight)?;
    }
    let spectrum = Spectrum::of(weight)?;
    if spectrum.largest() <= 0.0 {
        return Err(Error::DegenerateSpectrum { reason: "every eigenvalue is zero" });
    }
    let fit = measured(options.fit.fit(&spectrum))?;
    let interval = match (&options.interval, &fit) {
        (Some(bootstrap), Some(_)) => {
            measured(bootstrap.over_eigenvalues(layer, &spectrum, &options.fit))?
        }
        _ => None,
    };
    let bulk = measured(options.bulk.fit(&spectrum))?;
    let det_x = measured(spectrum.unit_determinant_tail())?;
    let random = match options.random {
        Some(seed) => Some(randomised(layer, weight, &spectrum, seed, &options.bulk)?),
        None => None,
    };
    let values = spectrum.eigenvalues();
    let rank = spectrum.rank();
    let clipped = fit.filter(|f| f.clipped > 0);
    Ok(Diagnosis {
        n: weight.longer(),
        m: weight.shorter(),
        rf: weight.receptive_field(),
        q: spectrum.aspect(),
        num_evals: spectrum.len(),
        sv_max: spectrum.largest().sqrt(),
        sv_min: spectrum.smallest().sqrt(),
        rank_loss: spectrum.len() - rank,
        weak_rank_loss: values.partition_point(|v| *v < 1e-6),
        lambda_max: spectrum.largest(),
        alpha: fit.map(|f| f.alpha),
        xmin: fit.map(|f| f.xmin),
        xmax: fit.map(|f| values[values.len() - 1 - f.clipped]),
        d: fit.map(|f| f.distance),
        sigma: fit.map(|f| f.sigma),
        num_pl_spikes: fit.map(|f| values.len() - values.partition_point(|v| *v < f.xmin)),
        num_fingers: clipped.map(|f| f.clipped),
        raw_alpha: clipped.map(|f| f.raw_alpha),
        interval,
        status: if fit.is_some() { Status::Success } else { Status::Failed },
        warning: fit.and_then(|f| Warning::of(f.alpha)),
        num_spikes: bulk.map(|b| b.num_spikes),
        sigma_mp: bulk.map(|b| b.sigma),
        mp_softrank: bulk.map(|b| b.softrank),
        w_scale: bulk.map(|b| b.scale),
        bulk_max: bulk.map(|b| b.max),
        bulk_min: bulk.map(|b| b.min),
        det_x_num: det_x.map(|d| d.0),
        det_x_val: det_x.map(|d| d.1),
        random,
        norm: spectrum.sum(),
        log_norm: spectrum.sum().log10(),
        spectral_norm: spectrum.largest(),
        log_spectral_norm: spectrum.largest().log10(),
        alpha_weighted: fit.map(|f| spectrum.weighted_alpha(f.alpha)),
        log_alpha_norm: fit.map(|f| spectrum.log_alpha_norm(f.alpha)),
        stable_rank: spectrum.stable_rank(),
        matrix_rank: rank,
        entropy: spectrum.entropy(),
    })
}

fn randomised<T: Real>(
    layer: &str,
    weight: Weight<'_, T>,
    spectrum: &Spectrum,
    seed: Seed,
    bulk: &BulkFit,
) -> Result<Randomised> {
    const FEW: usize = 100;
    let mut stream = seed.stream(layer);
    let one = shuffled_spectrum(weight, 1, &mut stream)?;
    let many =
        if spectrum.len() < FEW { shuffled_spectrum(weight, 5, &mut stream)? } else { one.clone() };
    let bulk: Option<Bulk> = measured(bulk.fit(&many))?;
    Ok(Randomised {
        max_rand_eval: many.largest(),
        rand_distance: jensen_shannon_distance(spectrum.eigenvalues(), one.eigenvalues())?,
        ww_softrank: one.largest() / spectrum.largest(),
        ww_maxdist: spectrum.largest() - one.largest(),
        rand_num_spikes: bulk.map(|b| b.num_spikes),
        rand_sigma_mp: bulk.map(|b| b.sigma),
        rand_mp_softrank: bulk.map(|b| b.softrank),
        rand_w_scale: bulk.map(|b| b.scale),
        rand_bulk_max: bulk.map(|b| b.max),
        rand_bulk_min: bulk.map(|b| b.min),
    })
}

/// `None` for what a spectrum does not have; other errors stay.
fn measured<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            Error::TooFewEigenvalues { .. }
            | Error::DegenerateSpectrum { .. }
            | Error::NoBulk { .. },
        ) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Limits {
    fn check<T: Real>(&self, weight: &Weight<'_, T>) -> Result<()> {
        let evals = weight.shorter() * weight.receptive_field();
        let skipped = |what, found, limit| Err(Error::Skipped { what, found, limit });
        if evals < self.min_evals {
            return skipped("the number of eigenvalues", evals, self.min_evals);
        }
        if evals > self.max_evals {
            return skipped("the number of eigenvalues", evals, self.max_evals);
        }
        if weight.longer() > self.max_n {
            return skipped("the longer side", weight.longer(), self.max_n);
        }
        Ok(())
    }
}
