use ndarray::NdFloat;
use prune_core::Element;

/// The number types in which ARMOR can be computed: `f32`, and `f64` where trajectories are
/// compared. Sealed.
pub trait Precision: Element + NdFloat + sealed::Sealed {
    /// The nearest number of this type.
    fn of(value: f64) -> Self;

    /// The same number in f64; exact.
    fn wide(self) -> f64;
}

impl Precision for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Precision for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn wide(self) -> f64 {
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}
