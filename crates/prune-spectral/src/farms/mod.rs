//! Exponents of equally shaped windows: FARMS.

mod bootstrap;
mod measure;
mod options;
mod spectra;
mod windows;
mod workspaces;

pub use bootstrap::{Bootstrap, Interval};
pub use measure::FarmsMeasure;
pub use options::{ConvAverage, Farms, Spacing};
pub use spectra::WindowSpectra;
pub use windows::{Placement, Window, WindowPlan};
