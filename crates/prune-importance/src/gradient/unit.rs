use ndarray::{ArrayView2, Zip};
use prune_core::{Error, Result};

use crate::checks::{finite, same_shape};

/// How the weights of one unit (a row: an output neuron) make one importance. Units whose weights
/// lie in several matrices add theirs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum UnitScore {
    /// `Σ |w g|`: LLM-Pruner's `param_first`.
    #[default]
    Magnitude,
    /// `|Σ w g|`: what the loss changes by, to first order, when the unit goes (`vectorize`).
    Change,
    /// `(Σ w g)²`: Molchanov's gate importance, to be averaged over batches.
    SquaredChange,
    /// `Σ (w g)²`.
    Squares,
    /// `Σ w² F`: `param_second`, with the diagonal of the Fisher information.
    Fisher,
    /// `Σ |w g − ½ w² F|`: `param_mix`.
    Mixed,
}

impl UnitScore {
    /// The importance of every row of `weight`; `fisher` is read by [`UnitScore::Fisher`] and
    /// [`UnitScore::Mixed`] alone.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], naming `what`; [`Error::NoStatistics`] without a
    /// Fisher diagonal where it is needed.
    ///
    /// Source: Ma, Fang, Wang, "LLM-Pruner", 2023; Molchanov et al., 2019.
    ///
    /// ```
    /// use ndarray::array;
    /// use prune_importance::UnitScore;
    /// let (weight, gradient) = (array![[1.0, -2.0], [3.0, 0.0]], array![[0.5, 0.5], [1.0, 9.0]]);
    /// let rows = |s: UnitScore| s.rows("fc", weight.view(), gradient.view(), None);
    /// assert_eq!(rows(UnitScore::Magnitude)?, [1.5, 3.0]);
    /// assert_eq!(rows(UnitScore::Change)?, [0.5, 3.0]);
    /// assert_eq!(rows(UnitScore::Squares)?, [1.25, 9.0]);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn rows(
        self,
        what: &str,
        weight: ArrayView2<'_, f32>,
        gradient: ArrayView2<'_, f32>,
        fisher: Option<ArrayView2<'_, f32>>,
    ) -> Result<Vec<f64>> {
        let second = matches!(self, UnitScore::Fisher | UnitScore::Mixed);
        let fisher = match (fisher, second) {
            (Some(fisher), true) => fisher,
            (None, true) => {
                return Err(Error::NoStatistics {
                    layer: what.to_string(),
                    method: "a second-order importance".to_string(),
                    needed: "the Fisher information",
                });
            }
            // Not read.
            (_, false) => gradient,
        };
        for (name, values) in
            [("weight", &weight), ("gradient", &gradient), ("Fisher information", &fisher)]
        {
            same_shape(&format!("{name} of `{what}`"), weight.shape(), values.shape())?;
            finite(&format!("{name} of `{what}`"), values)?;
        }
        let term = |w: f64, g: f64, f: f64| match self {
            UnitScore::Magnitude => (w * g).abs(),
            UnitScore::Change | UnitScore::SquaredChange => w * g,
            UnitScore::Squares => w * g * w * g,
            UnitScore::Fisher => w * w * f,
            UnitScore::Mixed => (w * g - 0.5 * w * w * f).abs(),
        };
        let rows = weight.outer_iter().zip(gradient.outer_iter()).zip(fisher.outer_iter());
        let sums = rows.map(|((w, g), f)| {
            Zip::from(&w)
                .and(&g)
                .and(&f)
                .fold(0.0, |sum, w, g, f| sum + term(f64::from(*w), f64::from(*g), f64::from(*f)))
        });
        Ok(match self {
            UnitScore::Change => sums.map(f64::abs).collect(),
            UnitScore::SquaredChange => sums.map(|s| s * s).collect(),
            _ => sums.collect(),
        })
    }
}
