use std::iter::Sum;
use std::ops::Add;

use crate::{Gradients, Parameters, Result};

/// A network that can be trained.
///
/// Its parameters change in place between calls; a forward pass reads them through
/// [`Parameter::tensor`](crate::Parameter::tensor), which keeps gradients away from those that are
/// frozen. With candle's graph, [`Model::gradients`] is the loss and [`Gradients::of`] it.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use prune_core::Seed;
/// use prune_train::{Gradients, Init, Model, ParameterKind, Parameters, Result, Tally};
///
/// /// y = w x, with a squared error.
/// struct Line(Parameters);
///
/// impl Line {
///     fn loss(&self, batch: &[(f32, f32)]) -> Result<Tensor> {
///         let (x, y): (Vec<f32>, Vec<f32>) = batch.iter().copied().unzip();
///         let x = Tensor::new(x, &Device::Cpu)?;
///         let y = Tensor::new(y, &Device::Cpu)?;
///         let w = self.0.get("w")?.tensor();
///         Ok((x.broadcast_mul(&w)? - y)?.sqr()?.mean_all()?)
///     }
/// }
///
/// impl Model for Line {
///     type Batch = Vec<(f32, f32)>;
///     fn parameters(&self) -> &Parameters {
///         &self.0
///     }
///     fn gradients(&self, batch: &Self::Batch) -> Result<(Tally, Gradients)> {
///         let loss = self.loss(batch)?;
///         let gradients = Gradients::of(&loss, &self.0)?;
///         Ok((Tally::of_mean(f64::from(loss.to_scalar::<f32>()?), batch.len()), gradients))
///     }
///     fn evaluate(&self, batch: &Self::Batch) -> Result<Tally> {
///         let loss = self.loss(batch)?.to_scalar::<f32>()?;
///         Ok(Tally::of_mean(f64::from(loss), batch.len()))
///     }
/// }
///
/// let mut parameters = Parameters::default();
/// parameters.init("w", ParameterKind::Weight, &[1], Init::Constant(1.0), Seed::new(0))?;
/// let (tally, gradients) = Line(parameters).gradients(&vec![(1.0, 3.0)])?;
/// assert_eq!(tally.loss(), 4.0);
/// assert_eq!(gradients.norm()?, 4.0);
/// # Ok::<(), prune_train::Error>(())
/// ```
pub trait Model {
    /// What one forward pass takes.
    type Batch;

    /// The parameters and buffers.
    fn parameters(&self) -> &Parameters;

    /// The loss of a batch in training mode, and the gradients of its mean. Buffers take the batch
    /// up.
    ///
    /// # Errors
    /// What the forward and backward pass report.
    fn gradients(&self, batch: &Self::Batch) -> Result<(Tally, Gradients)>;

    /// The loss of a batch in evaluation mode.
    ///
    /// # Errors
    /// What the forward pass reports.
    fn evaluate(&self, batch: &Self::Batch) -> Result<Tally>;
}

/// What predictions cost and how many were right, summed over samples (or tokens).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    /// The sum of the losses.
    pub sum: f64,
    /// How many predictions there were.
    pub count: usize,
    /// How many were right, where that has a meaning.
    pub correct: usize,
}

impl Tally {
    /// `count` predictions of this mean loss.
    pub fn of_mean(loss: f64, count: usize) -> Self {
        Self { sum: loss * count as f64, count, correct: 0 }
    }

    /// The mean loss; 0 of nothing.
    pub fn loss(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// The share of right predictions; 0 of nothing.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count.max(1) as f64
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
            correct: self.correct + other.correct,
        }
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}
