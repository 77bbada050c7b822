//! Every metric of a layer at once.

mod columns;
mod diagnosis;
mod options;

pub use columns::Column;
pub use diagnosis::{Diagnosis, Randomised, Status, Warning};
pub use options::{DiagnoseOptions, diagnose};
