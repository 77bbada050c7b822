use ndarray::ArrayView2;

use crate::Real;

/// Memory that outlives one decomposition.
///
/// Give the same workspace to the decompositions that one thread does one after the other, so that
/// their large blocks are allocated once. Empty at first; what it grows to is what the function
/// that takes it says.
///
/// ```
/// use ndarray::Array2;
/// use prune_linalg::{Workspace, gram_eigenvalues};
/// let mut workspace = Workspace::default();
/// for n in [30, 20] {
///     let squares = gram_eigenvalues(Array2::<f32>::eye(n).view(), &mut workspace)?;
///     assert_eq!(squares.len(), n);
/// }
/// # Ok::<(), prune_linalg::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    matrix: Vec<f64>,
    rows: Vec<f64>,
}

impl Workspace {
    /// A copy of a matrix in f64, row by row.
    pub(crate) fn copy<T: Real>(&mut self, matrix: ArrayView2<'_, T>) -> &mut [f64] {
        self.matrix.clear();
        self.matrix.extend(matrix.iter().map(|v| v.to_f64().unwrap_or(f64::NAN)));
        &mut self.matrix
    }

    /// `matrix` zeros, and memory for `rows` values of any content.
    pub(crate) fn split(&mut self, matrix: usize, rows: usize) -> (&mut [f64], &mut [f64]) {
        self.matrix.clear();
        self.matrix.resize(matrix, 0.0);
        self.rows.resize(rows.max(self.rows.len()), 0.0);
        (&mut self.matrix, &mut self.rows[..rows])
    }
}
