use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::state::{self, ParameterState, States, Take};
use super::{Decay, Optimizer, check, each};
use crate::gradients::CHUNK;
use crate::values::update;
use crate::{Gradients, Parameters, Result};

/// Where the momentum is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Momentum {
    /// Before the step.
    #[default]
    Classical,
    /// One step ahead (Nesterov).
    Nesterov,
}

/// Options of [`Sgd`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SgdOptions {
    /// The peak learning rate.
    pub rate: f64,
    /// What is kept of the last direction, below 1; 0 for none.
    pub momentum: f64,
    /// Classical or Nesterov.
    pub kind: Momentum,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// What decays.
    pub decay: Decay,
}

impl Default for SgdOptions {
    /// The CIFAR experiments of Liu et al. 2022: 0.1, Nesterov momentum 0.9, decay 5e-4 of all
    /// parameters.
    fn default() -> Self {
        Self {
            rate: 0.1,
            momentum: 0.9,
            kind: Momentum::Nesterov,
            weight_decay: 5e-4,
            decay: Decay::All,
        }
    }
}

/// Stochastic gradient descent with momentum and weight decay, by PyTorch's formulas.
///
/// ```text
/// g ← g + λ w;   b ← μ b + g (g at first);   w ← w − η b,  or  w ← w − η (g + μ b) with Nesterov
/// ```
#[derive(Debug)]
pub struct Sgd {
    options: SgdOptions,
    states: States<Buffer>,
}

#[derive(Debug)]
struct Buffer(Vec<f32>);

impl ParameterState for Buffer {
    fn parts(&self) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![("momentum", vec![self.0.len()], self.0.clone())]
    }

    fn from_parts(take: &mut Take<'_>) -> Option<Self> {
        Some(Self(take("momentum")?.1))
    }
}

impl Sgd {
    /// With these options.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`].
    pub fn new(options: SgdOptions) -> Result<Self> {
        check("learning rate", options.rate, 0.0, f64::MAX)?;
        check("momentum", options.momentum, 0.0, 1.0 - f64::EPSILON)?;
        check("weight decay", options.weight_decay, 0.0, f64::MAX)?;
        Ok(Self { options, states: States::new() })
    }
}

impl Optimizer for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn rate(&self) -> f64 {
        self.options.rate
    }

    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: Gradients,
        factors: &[f64],
    ) -> Result<()> {
        let SgdOptions { rate, momentum, kind, weight_decay, decay } = self.options;
        each(parameters, gradients, rate, factors, |i, parameter, gradient, rate| {
            let decay = decay.of(parameter, weight_decay) as f32;
            let (rate, mu) = (rate as f32, momentum as f32);
            let states = &mut self.states;
            update(parameter.name(), parameter.var(), gradient, |w, g| {
                if momentum == 0.0 {
                    w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(w, g)| {
                        w.iter_mut().zip(g).for_each(|(w, g)| *w -= rate * (g + decay * *w));
                    });
                    return Ok(());
                }
                // A buffer of zeros makes the first direction the gradient.
                let buffer = &mut states.entry(i).or_insert_with(|| Buffer(vec![0.0; w.len()])).0;
                state::same_len(parameter.name(), buffer.len(), w.len())?;
                let chunks = w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK));
                chunks.zip(buffer.par_chunks_mut(CHUNK)).for_each(|((w, g), b)| {
                    for ((w, g), b) in w.iter_mut().zip(g).zip(b) {
                        let g = g + decay * *w;
                        *b = mu * *b + g;
                        *w -= rate
                            * match kind {
                                Momentum::Classical => *b,
                                Momentum::Nesterov => g + mu * *b,
                            };
                    }
                });
                Ok(())
            })
        })
    }

    fn forget(&mut self, parameter: usize) {
        self.states.remove(&parameter);
    }

    fn state_len(&self) -> usize {
        self.states.values().map(|s| s.0.len()).sum()
    }

    fn save(&self, parameters: &Parameters) -> Result<Vec<(String, Tensor)>> {
        state::save(self.name(), &self.states, parameters)
    }

    fn load(&mut self, parameters: &Parameters, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        self.states = state::load(self.name(), parameters, saved)?;
        Ok(())
    }
}
