//! Power laws fitted to the tail of a spectrum.

mod clip;
mod options;
mod peak;
mod power_law;
mod search;
mod small;
mod tail;

pub use options::{Cutoff, Hill, KsSteps, PeakBand, SmallSample, TailFit, TailStart};
pub use power_law::PowerLaw;
