use prune_linalg::{Real, Workspace};

use crate::decomposition::{Decomposition, squared_singular_values};
use crate::{Error, Result, Weight};

/// The empirical spectral density of a layer: the squared singular values of its weight.
///
/// No normalisation: λ = σ². The slices of a convolution are pooled, each scaled by the square root
/// of `conv_norm` (WeightWatcher's 1/2), so that λ is scaled by it.
///
/// ```
/// use ndarray::array;
/// use prune_spectral::Spectrum;
/// let spectrum = Spectrum::of(array![[3.0f32, 0.0], [0.0, 4.0]].view())?;
/// assert!((spectrum.largest() - 16.0).abs() < 1e-12 && (spectrum.sum() - 25.0).abs() < 1e-12);
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    values: Vec<f64>,
    longer: usize,
    shorter: usize,
    matrices: usize,
}

/// The factor of λ that WeightWatcher gives to convolutions (`conv2d_norm`).
pub(crate) const CONV_NORM: f64 = 0.5;

impl Spectrum {
    /// The spectrum of a weight, exact to 1e-6 of every eigenvalue that is not zero to working
    /// precision.
    ///
    /// Memory: one Gram matrix in f64, and a copy of the matrix where singular values are needed.
    /// Runs on one thread; costs O(N M²) for each matrix of N x M, N ≥ M.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::Linalg`] for NaN and infinity.
    pub fn of<'a, T: Real>(weight: impl Into<Weight<'a, T>>) -> Result<Self> {
        Self::with(weight.into(), Decomposition::default())
    }

    /// [`Spectrum::of`] by a given decomposition.
    ///
    /// # Errors
    /// As [`Spectrum::of`].
    pub fn with<T: Real>(weight: Weight<'_, T>, decomposition: Decomposition) -> Result<Self> {
        weight.check()?;
        let scale = match weight {
            Weight::Linear(_) => 1.0,
            Weight::Conv2d(_) => CONV_NORM,
        };
        let (longer, shorter) = (weight.longer(), weight.shorter());
        let matrices = weight.matrices();
        let mut values = Vec::with_capacity(matrices.len() * shorter);
        let mut workspace = Workspace::default();
        for matrix in &matrices {
            let squares = squared_singular_values(*matrix, decomposition, &mut workspace)?;
            values.extend(squares.iter().map(|v| v * scale));
        }
        values.sort_unstable_by(f64::total_cmp);
        Ok(Self { values, longer, shorter, matrices: matrices.len() })
    }

    /// A spectrum from eigenvalues in any order, taken to be those of one square matrix.
    ///
    /// # Errors
    /// [`Error::NotAnEigenvalue`] for negative numbers, NaN and infinity.
    pub fn from_eigenvalues(mut values: Vec<f64>) -> Result<Self> {
        if let Some(index) = values.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::NotAnEigenvalue { index, value: values[index] });
        }
        if !values.is_sorted() {
            values.sort_unstable_by(f64::total_cmp);
        }
        Ok(Self { longer: values.len(), shorter: values.len(), matrices: 1, values })
    }

    /// Of eigenvalues that are in order, of `matrices` matrices of `longer` x `shorter`.
    pub(crate) fn pooled(values: Vec<f64>, longer: usize, shorter: usize, matrices: usize) -> Self {
        Self { values, longer, shorter, matrices }
    }

    /// The eigenvalues, ascending.
    pub fn eigenvalues(&self) -> &[f64] {
        &self.values
    }

    /// The number of eigenvalues.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no eigenvalue.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The largest eigenvalue; 0 without any.
    pub fn largest(&self) -> f64 {
        self.values.last().copied().unwrap_or(0.0)
    }

    /// The smallest eigenvalue; 0 without any.
    pub fn smallest(&self) -> f64 {
        self.values.first().copied().unwrap_or(0.0)
    }

    /// The sum of the eigenvalues: the squared Frobenius norm.
    pub fn sum(&self) -> f64 {
        self.values.iter().sum()
    }

    /// The longer side of each matrix: N.
    pub fn longer(&self) -> usize {
        self.longer
    }

    /// The shorter side of each matrix: M.
    pub fn shorter(&self) -> usize {
        self.shorter
    }

    /// The number of matrices: kernel height times width, 1 for a linear layer.
    pub fn matrices(&self) -> usize {
        self.matrices
    }

    /// Aspect ratio N / M of each matrix, 1 or more.
    pub fn aspect(&self) -> f64 {
        self.longer as f64 / self.shorter.max(1) as f64
    }

    /// The largest value that counts as zero: rounding errors of M eigenvalues.
    pub(crate) fn zero(&self) -> f64 {
        self.largest() * self.shorter as f64 * f64::EPSILON
    }
}
