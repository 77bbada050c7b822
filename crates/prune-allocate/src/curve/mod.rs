mod error_curve;
mod sensitivity;

pub use error_curve::ErrorCurve;
pub(crate) use error_curve::lower_hull;
pub use sensitivity::Sensitivity;
