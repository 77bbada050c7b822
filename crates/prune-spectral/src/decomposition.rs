use ndarray::ArrayView2;
use prune_linalg::{Real, Workspace};

use crate::Result;

/// How the squared singular values of a matrix are computed, always in f64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decomposition {
    /// Through the Gram matrix, and again through singular values where the smallest eigenvalue
    /// is too close to the rounding errors of the largest.
    #[default]
    Auto,
    /// Through the Gram matrix: the eigenvalues of the smaller of `W Wᵀ` and `Wᵀ W`. Errors are up
    /// to M · 2e-16 of the *largest* eigenvalue. One to three times as fast as singular values.
    Gram,
    /// Through singular values: errors of σ are up to M · 2e-16 of the largest σ, so that small
    /// eigenvalues keep their digits.
    SingularValues,
}

/// The relative error of the smallest eigenvalue that [`Decomposition::Auto`] accepts.
const ACCEPTED: f64 = 1e-6;

/// The bound of the absolute errors of eigenvalues from a Gram matrix whose smaller side is `n`.
pub(crate) fn gram_error(n: usize, largest: f64) -> f64 {
    n as f64 * f64::EPSILON * largest
}

/// Ascending squared singular values of a matrix, none negative.
pub(crate) fn squared_singular_values<T: Real>(
    matrix: ArrayView2<'_, T>,
    decomposition: Decomposition,
    workspace: &mut Workspace,
) -> Result<Vec<f64>> {
    if decomposition != Decomposition::SingularValues {
        let values = prune_linalg::gram_eigenvalues(matrix, workspace)?;
        let (smallest, largest) =
            (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0));
        if decomposition == Decomposition::Gram
            || smallest * ACCEPTED >= gram_error(values.len(), largest)
        {
            return Ok(values.into_iter().map(|v| v.max(0.0)).collect());
        }
    }
    Ok(prune_linalg::squared_singular_values(matrix, workspace)?)
}
