/// A power law `p(λ) ∝ λ^-α` for λ ≥ `xmin`, fitted to the tail of a spectrum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerLaw {
    /// The exponent α, above 1.
    pub alpha: f64,
    /// Where the tail starts.
    pub xmin: f64,
    /// Kolmogorov–Smirnov distance D between the tail and the law, within [0, 1].
    pub distance: f64,
    /// Standard error of α: (α − 1) / √tail.
    pub sigma: f64,
    /// The number of eigenvalues in the tail.
    pub tail: usize,
    /// Index of the first eigenvalue of the tail in the whole ascending spectrum.
    pub start: usize,
    /// How many of the largest eigenvalues were left out, by [`TailStart::Clipped`] only.
    ///
    /// [`TailStart::Clipped`]: crate::TailStart::Clipped
    pub clipped: usize,
    /// α without clipping.
    pub raw_alpha: f64,
}
