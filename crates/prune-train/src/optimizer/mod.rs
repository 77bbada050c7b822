mod adamw;
mod galore;
mod sgd;
mod state;

pub use adamw::{AdamW, AdamWOptions};
pub use galore::{GaLore, GaLoreOptions, Refresh};
pub use sgd::{Momentum, Sgd, SgdOptions};

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Gradients, Parameter, ParameterKind, Parameters, Result};

/// Changes parameters by their gradients.
///
/// State belongs to a parameter and appears with its first gradient; parameters without a gradient
/// are left alone, weight decay included.
pub trait Optimizer {
    /// A short name, the prefix of its state in checkpoints.
    fn name(&self) -> &'static str;

    /// The peak learning rate.
    fn rate(&self) -> f64;

    /// One step: parameter i moves with the learning rate times `factors[i]`. Each gradient is
    /// dropped as soon as it is used.
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`] for gradients of another model; what decompositions report.
    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: Gradients,
        factors: &[f64],
    ) -> Result<()>;

    /// Drops the state of a parameter.
    fn forget(&mut self, parameter: usize);

    /// How many numbers the state holds.
    fn state_len(&self) -> usize;

    /// The state as named tensors.
    ///
    /// # Errors
    /// What candle reports.
    fn save(&self, parameters: &Parameters) -> Result<Vec<(String, Tensor)>>;

    /// Takes up what [`Optimizer::save`] gave; the state before is dropped. Parameters of which
    /// nothing was saved start anew, and state of another shape is refused at the next step.
    ///
    /// # Errors
    /// What candle reports.
    fn load(&mut self, parameters: &Parameters, state: &BTreeMap<String, Tensor>) -> Result<()>;
}

impl<O: Optimizer + ?Sized> Optimizer for Box<O> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn rate(&self) -> f64 {
        (**self).rate()
    }

    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: Gradients,
        factors: &[f64],
    ) -> Result<()> {
        (**self).step(parameters, gradients, factors)
    }

    fn forget(&mut self, parameter: usize) {
        (**self).forget(parameter);
    }

    fn state_len(&self) -> usize {
        (**self).state_len()
    }

    fn save(&self, parameters: &Parameters) -> Result<Vec<(String, Tensor)>> {
        (**self).save(parameters)
    }

    fn load(&mut self, parameters: &Parameters, state: &BTreeMap<String, Tensor>) -> Result<()> {
        (**self).load(parameters, state)
    }
}

/// Which parameters decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Decay {
    /// Weights, embeddings and adapters; biases and norms do not.
    #[default]
    Matrices,
    /// All, as PyTorch's optimisers do by default.
    All,
}

impl Decay {
    /// The weight decay of a parameter.
    fn of(self, parameter: &Parameter, strength: f64) -> f64 {
        let vector = parameter.kind() == ParameterKind::Vector;
        if vector && self == Decay::Matrices { 0.0 } else { strength }
    }
}

/// Calls `update` with every parameter that has a gradient: its number, itself, the gradient, its
/// learning rate.
fn each(
    parameters: &Parameters,
    mut gradients: Gradients,
    rate: f64,
    factors: &[f64],
    mut update: impl FnMut(usize, &Parameter, &Tensor, f64) -> Result<()>,
) -> Result<()> {
    if factors.len() != parameters.len() {
        return Err(Error::shape(
            "factors of the learning rate",
            &[factors.len()],
            &[parameters.len()],
        ));
    }
    for (i, (parameter, factor)) in parameters.iter().zip(factors).enumerate() {
        if let Some(gradient) = gradients.remove(i) {
            update(i, parameter, &gradient, rate * factor)?;
        }
    }
    Ok(())
}

/// An error unless `value` is finite and within `low..=high`.
fn check(what: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if value.is_finite() && (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Error::out_of_range(what, value, format!("{low} to {high}")))
}
