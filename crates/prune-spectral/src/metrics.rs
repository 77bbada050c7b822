use crate::{Error, Result, Spectrum};

/// What WeightWatcher adds to probabilities and ranks so that their logarithms exist.
const EPSILON: f64 = 1e-10;

/// Norms and ranks, with WeightWatcher's definitions. None depends on a fit.
impl Spectrum {
    /// Σλ / λ_max: within 1 and the rank. 0 when every eigenvalue is zero.
    ///
    /// ```
    /// use prune_spectral::Spectrum;
    /// let spectrum = Spectrum::from_eigenvalues(vec![1.0, 2.0, 4.0])?;
    /// assert_eq!(spectrum.stable_rank(), 1.75);
    /// # Ok::<(), prune_spectral::Error>(())
    /// ```
    pub fn stable_rank(&self) -> f64 {
        if self.largest() > 0.0 { self.sum() / self.largest() } else { 0.0 }
    }

    /// log₁₀ Σ λ^α, the Schatten norm that `log_alpha_norm` names.
    ///
    /// ```
    /// use prune_spectral::Spectrum;
    /// let spectrum = Spectrum::from_eigenvalues(vec![6.0, 8.0])?;
    /// assert!((spectrum.log_alpha_norm(2.0) - 2.0).abs() < 1e-12);
    /// # Ok::<(), prune_spectral::Error>(())
    /// ```
    pub fn log_alpha_norm(&self, alpha: f64) -> f64 {
        // Relative to the largest, whose power may not fit.
        let top = self.largest();
        let sum: f64 = self.eigenvalues().iter().map(|v| (v / top).powf(alpha)).sum();
        alpha * top.log10() + sum.log10()
    }

    /// α · log₁₀ λ_max: `alpha_weighted`, α̂. Not invariant to the scale of the weight.
    pub fn weighted_alpha(&self, alpha: f64) -> f64 {
        alpha * self.largest().log10()
    }

    /// The number of singular values above σ_max · N · 2.2e-16, as NumPy counts them, for N the
    /// longer side.
    ///
    /// ```
    /// use prune_spectral::Spectrum;
    /// let spectrum = Spectrum::from_eigenvalues(vec![0.0, 1e-40, 1.0, 4.0])?;
    /// assert_eq!(spectrum.rank(), 2);
    /// # Ok::<(), prune_spectral::Error>(())
    /// ```
    pub fn rank(&self) -> usize {
        let tolerance = self.largest().sqrt() * self.longer() as f64 * f64::EPSILON;
        self.len() - self.eigenvalues().partition_point(|v| v.sqrt() <= tolerance)
    }

    /// Entropy of λ / Σλ over the logarithm of the rank: 1 when all eigenvalues are equal, 0 for
    /// rank 1.
    ///
    /// ```
    /// use prune_spectral::Spectrum;
    /// assert!((Spectrum::from_eigenvalues(vec![2.0; 8])?.entropy() - 1.0).abs() < 1e-6);
    /// assert!(Spectrum::from_eigenvalues(vec![0.0, 0.0, 3.0])?.entropy().abs() < 1e-6);
    /// # Ok::<(), prune_spectral::Error>(())
    /// ```
    pub fn entropy(&self) -> f64 {
        let (sum, rank) = (self.sum(), self.rank());
        if rank < 2 {
            return 0.0;
        }
        let entropy: f64 =
            self.eigenvalues().iter().map(|v| v / sum + EPSILON).map(|p| -p * p.ln()).sum();
        entropy / (rank as f64 + EPSILON).ln()
    }

    /// The tail whose product, after rescaling to a mean of 1, is nearest to 1 from below:
    /// WeightWatcher's `detX`, the trace-log condition.
    ///
    /// The result is the number of eigenvalues in it and the smallest of them. The tail that is
    /// returned is the first, from the top, whose product is below 1; all of the spectrum where
    /// there is none.
    ///
    /// # Errors
    /// [`Error::TooFewEigenvalues`] for fewer than two, [`Error::DegenerateSpectrum`] when all are
    /// equal.
    ///
    /// ```
    /// use prune_spectral::Spectrum;
    /// let spectrum = Spectrum::from_eigenvalues(vec![0.1, 0.2, 0.7, 3.0])?;
    /// assert_eq!(spectrum.unit_determinant_tail()?, (3, 0.2));
    /// # Ok::<(), prune_spectral::Error>(())
    /// ```
    pub fn unit_determinant_tail(&self) -> Result<(usize, f64)> {
        let values = self.eigenvalues();
        if values.len() < 2 {
            return Err(Error::TooFewEigenvalues { found: values.len(), dropped: 0, needed: 2 });
        }
        if self.smallest() >= self.largest() {
            return Err(Error::DegenerateSpectrum { reason: "all eigenvalues are equal" });
        }
        let mean = self.sum() / values.len() as f64;
        // A sum of logarithms: the product of thousands does not fit.
        let mut log = 0.0;
        for start in (1..values.len()).rev() {
            log += (values[start] / mean).ln();
            if log < 0.0 {
                return Ok((values.len() - start, values[start]));
            }
        }
        Ok((values.len(), values[1]))
    }
}
