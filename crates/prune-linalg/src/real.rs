use ndarray::NdFloat;

/// The element types of this crate: `f32` and `f64`. Sealed.
///
/// With feature `ndarray-linalg` the same types are those of LAPACK.
pub trait Real: NdFloat + sealed::Kernel {}

impl Real for f32 {}
impl Real for f64 {}

pub(crate) mod sealed {
    #[cfg(not(feature = "ndarray-linalg"))]
    pub trait Kernel: faer::traits::RealField {}
    #[cfg(feature = "ndarray-linalg")]
    pub trait Kernel: faer::traits::RealField + ndarray_linalg::Lapack<Real = Self> {}
    impl Kernel for f32 {}
    impl Kernel for f64 {}
}
