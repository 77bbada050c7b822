use std::fmt;

use crate::Interval;

/// Every metric of a layer, named as WeightWatcher's columns.
///
/// Rust spells some names differently: `n` is `N`, `d` is `D`, `w_scale` is `W_scale`, `det_x_num`
/// is `detX_num`. [`Diagnosis::columns`] gives WeightWatcher's own. λ are the squared singular
/// values, as in [`Spectrum`](crate::Spectrum).
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// Longer side of each matrix.
    pub n: usize,
    /// Shorter side of each matrix.
    pub m: usize,
    /// Receptive field: the number of matrices, 1 for a linear layer.
    pub rf: usize,
    /// Aspect ratio N / M.
    pub q: f64,
    /// The number of eigenvalues, M · rf.
    pub num_evals: usize,
    /// Largest singular value.
    pub sv_max: f64,
    /// Smallest singular value.
    pub sv_min: f64,
    /// Singular values that are zero to working precision.
    pub rank_loss: usize,
    /// λ < 1e-6.
    pub weak_rank_loss: usize,
    /// λ_max.
    pub lambda_max: f64,
    /// Exponent of the tail; `None` with all that depends on it where no power law fits.
    pub alpha: Option<f64>,
    /// Where the tail starts.
    pub xmin: Option<f64>,
    /// The largest eigenvalue of the tail.
    pub xmax: Option<f64>,
    /// Kolmogorov–Smirnov distance of the fit.
    pub d: Option<f64>,
    /// Standard error of α: (α − 1) / √n.
    pub sigma: Option<f64>,
    /// λ ≥ xmin.
    pub num_pl_spikes: Option<usize>,
    /// Eigenvalues clipped from the end of the tail; WeightWatcher reports one fewer.
    pub num_fingers: Option<usize>,
    /// α without clipping.
    pub raw_alpha: Option<f64>,
    /// An interval of α, where the options ask for one. WeightWatcher has none.
    pub interval: Option<Interval>,
    /// Whether a power law fits.
    pub status: Status,
    /// What α says of the training.
    pub warning: Option<Warning>,
    /// Eigenvalues above the bulk; `None` with all of the bulk where none fits.
    pub num_spikes: Option<usize>,
    /// σ of the bulk of the rescaled weight.
    pub sigma_mp: Option<f64>,
    /// Upper edge of the bulk over λ_max.
    pub mp_softrank: Option<f64>,
    /// √(num_evals / Σλ).
    pub w_scale: Option<f64>,
    /// Upper edge of the bulk.
    pub bulk_max: Option<f64>,
    /// Lower edge of the bulk.
    pub bulk_min: Option<f64>,
    /// Σλ of the longest tail whose product is below 1 after rescaling to a mean of 1: its length.
    pub det_x_num: Option<usize>,
    /// Its smallest eigenvalue.
    pub det_x_val: Option<f64>,
    /// What shuffling the elements changes, where the options ask for it.
    pub random: Option<Randomised>,
    /// Σλ, the squared Frobenius norm.
    pub norm: f64,
    /// log₁₀ of `norm`.
    pub log_norm: f64,
    /// λ_max.
    pub spectral_norm: f64,
    /// log₁₀ of `spectral_norm`.
    pub log_spectral_norm: f64,
    /// α̂ = α log₁₀ λ_max.
    pub alpha_weighted: Option<f64>,
    /// log₁₀ Σ λ^α.
    pub log_alpha_norm: Option<f64>,
    /// Σλ / λ_max.
    pub stable_rank: f64,
    /// Singular values above σ_max · N · 2.2e-16.
    pub matrix_rank: usize,
    /// Entropy of λ / Σλ over ln(rank).
    pub entropy: f64,
}

/// The spectrum of a weight against that of its shuffled elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Randomised {
    /// Largest eigenvalue of the shuffled weight, of five shuffles for fewer than 100 eigenvalues.
    pub max_rand_eval: f64,
    /// Jensen–Shannon distance of the two spectra.
    pub rand_distance: f64,
    /// λ_max of the shuffled weight over λ_max.
    pub ww_softrank: f64,
    /// λ_max − λ_max of the shuffled weight.
    pub ww_maxdist: f64,
    /// Eigenvalues of the shuffled weight above its bulk: large elements that shuffling leaves
    /// (`num_traps`).
    pub rand_num_spikes: Option<usize>,
    /// σ of the bulk of the shuffled weight.
    pub rand_sigma_mp: Option<f64>,
    /// Upper edge of that bulk over its largest eigenvalue.
    pub rand_mp_softrank: Option<f64>,
    /// √(count / Σλ) of the shuffled weight.
    pub rand_w_scale: Option<f64>,
    /// Upper edge of that bulk.
    pub rand_bulk_max: Option<f64>,
    /// Lower edge of that bulk.
    pub rand_bulk_min: Option<f64>,
}

/// Whether a power law fits the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It does.
    Success,
    /// Too few eigenvalues, or all equal.
    Failed,
}

/// What an exponent says of the training of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Warning {
    /// α < 2: the tail is heavier than that of any well-trained layer.
    OverTrained,
    /// α > 6: hardly a tail.
    UnderTrained,
}

impl Warning {
    /// The warning for an exponent; `None` from 2 to 6.
    ///
    /// ```
    /// use prune_spectral::Warning;
    /// assert_eq!(Warning::of(1.7), Some(Warning::OverTrained));
    /// assert_eq!(Warning::of(3.0), None);
    /// assert_eq!(Warning::of(8.0).map(|w| w.to_string()).as_deref(), Some("under-trained"));
    /// ```
    pub fn of(alpha: f64) -> Option<Self> {
        match alpha {
            a if a < 2.0 => Some(Self::OverTrained),
            a if a > 6.0 => Some(Self::UnderTrained),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Warning {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::OverTrained => "over-trained",
            Self::UnderTrained => "under-trained",
        }
    }
}
