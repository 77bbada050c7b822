use ndarray::{ArrayView2, ArrayView4, Axis};
use prune_linalg::Real;

use crate::{Error, Result};

/// The weight of a layer, as PyTorch stores it.
///
/// ```
/// use ndarray::{Array2, Array4};
/// use prune_spectral::Weight;
/// let (linear, conv) = (Array2::<f32>::ones((4, 6)), Array4::<f32>::ones((8, 4, 3, 3)));
/// let (linear, conv) = (Weight::from(linear.view()), Weight::from(conv.view()));
/// assert_eq!((linear.longer(), linear.shorter(), linear.receptive_field()), (6, 4, 1));
/// assert_eq!((conv.longer(), conv.shorter(), conv.receptive_field()), (8, 4, 9));
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a, T = f32> {
    /// `(out_features, in_features)`.
    Linear(ArrayView2<'a, T>),
    /// `(out_channels, in_channels, kernel_h, kernel_w)`.
    Conv2d(ArrayView4<'a, T>),
}

impl<'a, T> From<ArrayView2<'a, T>> for Weight<'a, T> {
    fn from(weight: ArrayView2<'a, T>) -> Self {
        Self::Linear(weight)
    }
}

impl<'a, T> From<ArrayView4<'a, T>> for Weight<'a, T> {
    fn from(weight: ArrayView4<'a, T>) -> Self {
        Self::Conv2d(weight)
    }
}

impl<'a, T: Real> Weight<'a, T> {
    /// The longer side of each matrix: N.
    pub fn longer(&self) -> usize {
        let (rows, cols) = self.sides();
        rows.max(cols)
    }

    /// The shorter side of each matrix: M.
    pub fn shorter(&self) -> usize {
        let (rows, cols) = self.sides();
        rows.min(cols)
    }

    /// The number of matrices: kernel height times width, 1 for a linear layer.
    pub fn receptive_field(&self) -> usize {
        match self {
            Self::Linear(_) => 1,
            Self::Conv2d(w) => w.len_of(Axis(2)) * w.len_of(Axis(3)),
        }
    }

    /// Rows and columns of each matrix.
    pub(crate) fn sides(&self) -> (usize, usize) {
        match self {
            Self::Linear(w) => w.dim(),
            Self::Conv2d(w) => (w.len_of(Axis(0)), w.len_of(Axis(1))),
        }
    }

    /// The matrix of a linear layer, or the slices `W[:, :, h, w]` of a convolution, row by row of
    /// the kernel.
    pub(crate) fn matrices(self) -> Vec<ArrayView2<'a, T>> {
        match self {
            Self::Linear(w) => vec![w],
            Self::Conv2d(w) => (0..w.len_of(Axis(2)))
                .flat_map(|h| (0..w.len_of(Axis(3))).map(move |v| (h, v)))
                .map(|(h, v)| w.index_axis_move(Axis(3), v).index_axis_move(Axis(2), h))
                .collect(),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let shape = match self {
            Self::Linear(w) => w.shape(),
            Self::Conv2d(w) => w.shape(),
        };
        if shape.contains(&0) { Err(Error::Empty { shape: shape.to_vec() }) } else { Ok(()) }
    }
}
