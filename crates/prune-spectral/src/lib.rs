//! Spectral densities of weights: heavy-tail exponents, WeightWatcher metrics and FARMS.
//!
//! Everything here reads a weight matrix and nothing else: no data, no gradients, no files. Views
//! of `f32` or `f64` go in; decompositions and fits are in f64.
//!
//! ```
//! use ndarray::Array2;
//! use prune_spectral::{DiagnoseOptions, Farms, diagnose};
//!
//! let weight = Array2::from_shape_fn((96, 64), |(i, j)| ((i * i + 7 * j * j + i * j) as f32).sin());
//! let diagnosis = diagnose("mlp.up_proj", weight.view(), &DiagnoseOptions::default())?;
//! let farms = Farms::new(32, 1.0)?.measure(weight.view())?;
//! println!("alpha {:?}, in windows {:.2}", diagnosis.alpha, farms.alpha);
//! # Ok::<(), prune_spectral::Error>(())
//! ```
//!
//! | what | where |
//! |---|---|
//! | every metric of a layer, in WeightWatcher's columns | [`diagnose`], [`Diagnosis`] |
//! | eigenvalues of linear and convolutional weights; norms, ranks, entropy | [`Spectrum`] |
//! | power laws: median, goodness of fit, peak, clipped | [`TailFit`], [`PowerLaw`] |
//! | exponents of equally shaped windows | [`Farms`], [`FarmsMeasure`] |
//! | how stable an exponent is | [`Bootstrap`], [`Interval`] |
//! | random bulk and spikes | [`BulkFit`], [`Bulk`] |
//! | the same elements without correlations | [`shuffled_spectrum`], [`jensen_shannon_distance`] |
//! | learning rates from exponents | [`TempBalance`] |
#![cfg_attr(feature = "plot", doc = "| figures, as SVG and PNG | [`plot`] |")]

mod bulk;
mod decomposition;
mod diagnose;
mod distance;
mod error;
mod farms;
mod fit;
mod metrics;
#[cfg(feature = "plot")]
pub mod plot;
mod shuffled;
mod spectrum;
mod temp_balance;
mod weight;

pub use bulk::{Bulk, BulkFit, SquareLaw};
pub use decomposition::Decomposition;
pub use diagnose::{Column, DiagnoseOptions, Diagnosis, Randomised, Status, Warning, diagnose};
pub use distance::jensen_shannon_distance;
pub use error::{Error, Result};
pub use farms::{
    Bootstrap, ConvAverage, Farms, FarmsMeasure, Interval, Placement, Spacing, Window, WindowPlan,
    WindowSpectra,
};
pub use fit::{Cutoff, Hill, KsSteps, PeakBand, PowerLaw, SmallSample, TailFit, TailStart};
pub use shuffled::shuffled_spectrum;
pub use spectrum::Spectrum;
pub use temp_balance::TempBalance;
pub use weight::Weight;
