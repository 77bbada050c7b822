use ndarray::{ArrayView, Dimension, Zip};
use prune_core::{LayerInfo, Result, TensorSource};

use crate::checks::{finite, same_shape};

/// How the gradient of a layer and its weights make one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Weighing {
    /// `Σ |g|`: the gradient alone.
    #[default]
    Gradient,
    /// `Σ |w| |g|`: what the loss changes by, to first order, when single weights go.
    Magnitude,
    /// `Σ w² g²`: the same with the empirical Fisher information, up to a factor of 2.
    Square,
}

impl Weighing {
    /// The score of a layer from its weight and the gradient of a loss, both of any one shape; the
    /// mean over batches is ECoFLaP's first-order score.
    ///
    /// # Errors
    /// `Shape` when the shapes differ, `NotFinite`, both naming `what`.
    ///
    /// ```
    /// use ndarray::array;
    /// use prune_importance::Weighing;
    /// let (weight, gradient) = (array![[1.0, -2.0]], array![[0.5, 3.0]]);
    /// let score = |w: Weighing| w.score("fc", weight.view(), gradient.view());
    /// assert_eq!(score(Weighing::Gradient)?, 3.5);
    /// assert_eq!(score(Weighing::Magnitude)?, 6.5);
    /// assert_eq!(score(Weighing::Square)?, 36.25);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn score<D: Dimension>(
        self,
        what: &str,
        weight: ArrayView<'_, f32, D>,
        gradient: ArrayView<'_, f32, D>,
    ) -> Result<f64> {
        same_shape(what, weight.shape(), gradient.shape())?;
        let term = |w: f32, g: f32| {
            let (w, g) = (f64::from(w), f64::from(g));
            match self {
                Weighing::Gradient => g.abs(),
                Weighing::Magnitude => (w * g).abs(),
                Weighing::Square => w * w * g * g,
            }
        };
        let sum = Zip::from(&weight).and(&gradient).fold(0.0, |sum, w, g| sum + term(*w, *g));
        if !sum.is_finite() {
            finite(&format!("weight of `{what}`"), &weight)?;
            finite(&format!("gradient of `{what}`"), &gradient)?;
        }
        Ok(sum)
    }

    /// The score of a layer whose weights all have the gradient `scalar`.
    pub(crate) fn of_scalar(
        self,
        scalar: f64,
        layer: &LayerInfo,
        weights: &dyn TensorSource,
    ) -> Result<f64> {
        if self == Weighing::Gradient {
            return Ok(scalar);
        }
        let owner = layer.tie.as_ref().unwrap_or(&layer.id);
        let values = weights.read_f32(&owner.weight_name())?;
        let terms = values.iter().map(|w| f64::from(w.abs()) * scalar);
        Ok(match self {
            Weighing::Square => terms.map(|t| t * t).sum(),
            _ => terms.sum(),
        })
    }
}
