use ndarray::{Array, ArrayView, Dimension, Zip};
use prune_core::{Error, Result};

use crate::checks::{finite, same_shape};

/// The diagonal of the empirical Fisher information of one weight: the mean of squared gradients,
/// one sample each.
///
/// Squaring the gradient of a whole batch instead gives another, smaller number: do not mix them.
/// Sums are in f64, 8 bytes a weight.
///
/// ```
/// use ndarray::array;
/// use prune_importance::{FisherDiagonal, second_order};
///
/// let mut fisher = FisherDiagonal::new((1, 2));
/// fisher.observe("fc", array![[1.0, 2.0]].view())?;
/// fisher.observe("fc", array![[3.0, 0.0]].view())?;
/// let diagonal = fisher.diagonal("fc")?;
/// assert_eq!(diagonal, array![[5.0, 2.0]]);
/// let importance = second_order("fc", array![[2.0, -3.0]].view(), diagonal.view())?;
/// assert_eq!(importance, array![[10.0, 9.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct FisherDiagonal<D: Dimension> {
    sum: Array<f64, D>,
    samples: u64,
}

impl<D: Dimension> FisherDiagonal<D> {
    /// No samples yet, for a weight of this shape.
    pub fn new(shape: impl ndarray::ShapeBuilder<Dim = D>) -> Self {
        Self { sum: Array::zeros(shape), samples: 0 }
    }

    /// Adds the gradient of one sample.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], naming `what`; nothing is added then.
    pub fn observe(&mut self, what: &str, gradient: ArrayView<'_, f32, D>) -> Result<()> {
        same_shape(&format!("gradient of `{what}`"), self.sum.shape(), gradient.shape())?;
        finite(&format!("gradient of `{what}`"), &gradient)?;
        Zip::from(&mut self.sum).and(&gradient).for_each(|sum, g| {
            *sum += f64::from(*g) * f64::from(*g);
        });
        self.samples += 1;
        Ok(())
    }

    /// The diagonal, in the shape of the weight.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] when no sample was seen; [`Error::NotFinite`] when an entry does not
    /// fit an f32.
    pub fn diagonal(&self, what: &str) -> Result<Array<f32, D>> {
        if self.samples == 0 {
            return Err(Error::NoStatistics {
                layer: what.to_string(),
                method: "the Fisher information".to_string(),
                needed: "gradients of single samples",
            });
        }
        let diagonal = self.sum.mapv(|sum| (sum / self.samples as f64) as f32);
        finite(&format!("Fisher information of `{what}`"), &diagonal.view())?;
        Ok(diagonal)
    }
}
