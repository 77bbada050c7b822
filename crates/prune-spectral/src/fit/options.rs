use crate::fit::power_law::PowerLaw;
use crate::fit::search::{Best, search};
use crate::fit::tail::Tail;
use crate::fit::{clip, peak, small};
use crate::{Error, Result, Spectrum};

/// Where the tail of a spectrum starts.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum TailStart {
    /// At index `⌊N / divisor⌋` of the N ascending eigenvalues: `xmin_mid` of TempBalance and
    /// AlphaPruning, `median` of FARMS, with divisor 2.
    Median {
        /// Above 1; larger starts lower.
        divisor: f64,
    },
    /// Where the distance D between tail and fit is least (Clauset, Shalizi, Newman 2009):
    /// WeightWatcher's default.
    GoodnessOfFit,
    /// Likewise, among the eigenvalues near the peak of the histogram of log λ (100 bins):
    /// `xmin_peak` of WeightWatcher and FARMS.
    Peak(PeakBand),
    /// [`TailStart::GoodnessOfFit`] without the largest 2 to `max_fingers − 1` eigenvalues, the
    /// fewest that lower α by more than `threshold`: `clip_xmax` of WeightWatcher.
    Clipped {
        /// 10 in WeightWatcher.
        max_fingers: usize,
        /// 1.0 in WeightWatcher.
        threshold: f64,
    },
}

/// Which eigenvalues near the peak `x` of the histogram may start the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PeakBand {
    /// 0.95 x ≤ λ ≤ 1.5 x: scaling the weight does not change α.
    #[default]
    Exact,
    /// log₁₀(0.95 x) ≤ λ ≤ 1.5 x, as the released code of WeightWatcher, AlphaPruning and FARMS
    /// has it. The lower bound is a logarithm compared with an eigenvalue: it hardly ever excludes
    /// one, and α changes with the scale of the weight.
    Released,
}

/// The estimator of α for a given start of the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Hill {
    /// 1 + n / Σ ln(λ_j / λ_i) over the n eigenvalues j ≥ i of the tail: the maximum likelihood of
    /// Clauset et al., with the first eigenvalue of the tail as threshold. What all released code
    /// computes.
    #[default]
    Released,
    /// The Hill estimator of the papers, whose threshold is the eigenvalue just below the tail:
    /// 1 + n / Σ ln(λ_j / λ_{i−1}).
    Textbook,
}

/// Which side of the steps of the empirical distribution D looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KsSteps {
    /// Below each step, as WeightWatcher and FARMS do: max |F(λ_t) − t/n|.
    #[default]
    Below,
    /// Both sides, the definition of Kolmogorov and Smirnov.
    Both,
}

/// Which eigenvalues count as zero and are left out before a fit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Cutoff {
    /// λ ≤ M · 2.2e-16 · λ_max, rounding errors: does not change with the scale of the weight.
    #[default]
    Relative,
    /// λ ≤ the value; WeightWatcher's is 1e-5.
    Absolute(f64),
    /// None, as in the released code of FARMS.
    Keep,
}

/// What is done with fewer than 20 eigenvalues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SmallSample {
    /// The same as with many.
    #[default]
    Plain,
    /// As WeightWatcher from 0.7.6: α is corrected for bias, 1 + (n − 1) / Σ, and tails have
    /// eight eigenvalues or more. For [`TailStart::GoodnessOfFit`] only.
    BiasCorrected,
}

/// How a power law is fitted to the tail of a spectrum.
///
/// Everything is O(N log N) for N eigenvalues; D is computed from sums over suffixes and
/// abandoned as soon as a candidate is known to be worse than the best.
///
/// Source: Clauset, Shalizi, Newman, "Power-law distributions in empirical data", 2009; Hill,
/// 1975; Martin, Peng, Mahoney, "Predicting trends in the quality of state-of-the-art neural
/// networks without access to training or testing data", 2021 (WeightWatcher).
///
/// ```
/// use prune_spectral::{Spectrum, TailFit};
/// // Quantiles of a Pareto law of exponent 3.
/// let law = (0..1000).map(|k| (1.0 - (f64::from(k) + 0.5) / 1000.0).powf(-0.5)).collect();
/// let fit = TailFit::goodness_of_fit().fit(&Spectrum::from_eigenvalues(law)?)?;
/// assert!((fit.alpha - 3.0).abs() < 0.01);
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TailFit {
    start: TailStart,
    hill: Hill,
    steps: KsSteps,
    cutoff: Cutoff,
    small: SmallSample,
}

/// What a fit needs at least.
pub(crate) const MIN_EIGENVALUES: usize = 5;

impl Default for TailFit {
    /// [`TailFit::goodness_of_fit`].
    fn default() -> Self {
        Self::goodness_of_fit()
    }
}

impl TailFit {
    /// The fit with this start and the default of everything else.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a divisor of 1 or less, fewer than 3 fingers, or numbers that are
    /// not finite.
    pub fn new(start: TailStart) -> Result<Self> {
        match start {
            TailStart::Median { divisor } if !(divisor.is_finite() && divisor > 1.0) => {
                return Err(Error::OutOfRange {
                    what: "the divisor of the median start",
                    found: divisor.to_string(),
                    expected: "a finite number above 1",
                });
            }
            TailStart::Clipped { threshold, .. } if !(threshold.is_finite() && threshold > 0.0) => {
                return Err(Error::OutOfRange {
                    what: "the threshold of clipping",
                    found: threshold.to_string(),
                    expected: "a finite number above 0",
                });
            }
            TailStart::Clipped { max_fingers, .. } if max_fingers < 3 => {
                return Err(Error::OutOfRange {
                    what: "the number of fingers",
                    found: max_fingers.to_string(),
                    expected: "3 or more",
                });
            }
            _ => {}
        }
        Ok(Self::start(start))
    }

    fn start(start: TailStart) -> Self {
        Self {
            start,
            hill: Hill::default(),
            steps: KsSteps::default(),
            cutoff: Cutoff::default(),
            small: SmallSample::default(),
        }
    }

    /// The upper half of the spectrum.
    pub fn median() -> Self {
        Self::start(TailStart::Median { divisor: 2.0 })
    }

    /// The start with the least distance D.
    pub fn goodness_of_fit() -> Self {
        Self::start(TailStart::GoodnessOfFit)
    }

    /// The start with the least distance D near the peak of the density.
    pub fn peak() -> Self {
        Self::start(TailStart::Peak(PeakBand::Exact))
    }

    /// The peak fit of the released code of FARMS and AlphaPruning, to the letter: no eigenvalue
    /// is left out and the band is [`PeakBand::Released`].
    pub fn released_peak() -> Self {
        Self::start(TailStart::Peak(PeakBand::Released)).keep_all()
    }

    /// The fit without the fingers at the end of the tail, with WeightWatcher's limits.
    pub fn clipped() -> Self {
        Self::start(TailStart::Clipped { max_fingers: 10, threshold: 1.0 })
    }

    /// The estimator of α.
    pub fn hill(self, hill: Hill) -> Self {
        Self { hill, ..self }
    }

    /// The definition of D.
    pub fn steps(self, steps: KsSteps) -> Self {
        Self { steps, ..self }
    }

    /// The treatment of fewer than 20 eigenvalues.
    pub fn small_sample(self, small: SmallSample) -> Self {
        Self { small, ..self }
    }

    /// Leaves out no eigenvalue but those that are exactly zero: [`Cutoff::Keep`].
    pub fn keep_all(self) -> Self {
        Self { cutoff: Cutoff::Keep, ..self }
    }

    /// Which eigenvalues are left out.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an absolute cutoff that is negative or not finite.
    pub fn cutoff(self, cutoff: Cutoff) -> Result<Self> {
        match cutoff {
            Cutoff::Absolute(v) if !(v.is_finite() && v >= 0.0) => Err(Error::OutOfRange {
                what: "the cutoff of eigenvalues",
                found: v.to_string(),
                expected: "a finite number, 0 or above",
            }),
            cutoff => Ok(Self { cutoff, ..self }),
        }
    }

    /// The power law of the tail of a spectrum.
    ///
    /// # Errors
    /// [`Error::TooFewEigenvalues`] for fewer than five above the cutoff;
    /// [`Error::DegenerateSpectrum`] when no tail has a finite exponent, as when all eigenvalues
    /// are equal.
    pub fn fit(&self, spectrum: &Spectrum) -> Result<PowerLaw> {
        let all = spectrum.eigenvalues();
        let dropped = match self.cutoff {
            Cutoff::Relative => {
                let zero = spectrum.zero();
                all.partition_point(|v| *v <= zero)
            }
            Cutoff::Absolute(limit) => all.partition_point(|v| *v <= limit),
            Cutoff::Keep => 0,
        };
        let values = &all[dropped..];
        if values.len() < MIN_EIGENVALUES {
            return Err(Error::TooFewEigenvalues {
                found: values.len(),
                dropped,
                needed: MIN_EIGENVALUES,
            });
        }
        let fit = match self.start {
            TailStart::Clipped { max_fingers, threshold } => {
                clip::fit(values, max_fingers, threshold, |kept| self.unclipped(kept))?
            }
            _ => self.unclipped(values)?,
        };
        Ok(PowerLaw { start: fit.start + dropped, ..fit })
    }

    fn unclipped(&self, values: &[f64]) -> Result<PowerLaw> {
        let tail = Tail::new(values, self.hill, self.steps);
        let last = values.len() - 1;
        let best = match self.start {
            TailStart::Median { divisor } => {
                let start = (values.len() as f64 / divisor) as usize;
                tail.alpha(start).map(|alpha| Best {
                    start,
                    alpha,
                    distance: tail.distance(start, alpha),
                })
            }
            TailStart::Peak(band) => {
                let candidates = peak::band(&tail, band)?;
                search(&tail, candidates.start..candidates.end.min(last), |i| tail.alpha(i))
            }
            _ if self.small == SmallSample::BiasCorrected && values.len() < small::LIMIT => {
                small::fit(&tail)
            }
            _ => search(&tail, 0..last, |i| tail.alpha(i)),
        };
        let best = best.ok_or(Error::DegenerateSpectrum {
            reason: "no tail has a finite exponent: its eigenvalues are all equal, or zero",
        })?;
        let count = values.len() - best.start;
        Ok(PowerLaw {
            alpha: best.alpha,
            xmin: tail.threshold(best.start),
            distance: best.distance,
            sigma: (best.alpha - 1.0) / (count as f64).sqrt(),
            tail: count,
            start: best.start,
            clipped: 0,
            raw_alpha: best.alpha,
        })
    }
}
