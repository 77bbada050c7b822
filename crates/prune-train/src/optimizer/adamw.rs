use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::state::{self, ParameterState, States, Take};
use super::{Decay, Optimizer, check, each};
use crate::gradients::CHUNK;
use crate::values::update;
use crate::{Gradients, Parameters, Result};

/// Options of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWOptions {
    /// The peak learning rate.
    pub rate: f64,
    /// What is kept of the mean gradient, below 1.
    pub beta1: f64,
    /// What is kept of the mean squared gradient, below 1.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// What a parameter loses each step, times the learning rate.
    pub weight_decay: f64,
    /// What decays.
    pub decay: Decay,
}

impl Default for AdamWOptions {
    /// PyTorch's numbers; biases and norms do not decay.
    fn default() -> Self {
        Self {
            rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            decay: Decay::Matrices,
        }
    }
}

impl AdamWOptions {
    pub(super) fn check(&self) -> Result<()> {
        check("learning rate", self.rate, 0.0, f64::MAX)?;
        check("beta1", self.beta1, 0.0, 1.0 - f64::EPSILON)?;
        check("beta2", self.beta2, 0.0, 1.0 - f64::EPSILON)?;
        check("eps", self.eps, 0.0, f64::MAX)?;
        check("weight decay", self.weight_decay, 0.0, f64::MAX)
    }
}

/// Adam with decoupled weight decay, by PyTorch's formulas.
///
/// ```text
/// w ← w (1 − η λ);   m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²
/// w ← w − η / (1 − β₁ᵏ) · m / (√v / √(1 − β₂ᵏ) + ε)
/// ```
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    states: States<Moments>,
}

/// The two moments of a parameter and how many gradients they saw.
#[derive(Debug)]
pub(super) struct Moments {
    pub(super) steps: u64,
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
}

impl Moments {
    pub(super) fn new(len: usize) -> Self {
        Self { steps: 0, first: vec![0.0; len], second: vec![0.0; len] }
    }

    /// Takes a gradient up and calls `apply` with values, moments and their factors: the value is
    /// to move by `−step · m / (√v · root + ε)`.
    pub(super) fn update(
        &mut self,
        values: &mut [f32],
        gradient: &[f32],
        options: &AdamWOptions,
        keep: f32,
        step: impl Fn(u64) -> Adam,
    ) {
        self.steps += 1;
        let Adam { size, root } = step(self.steps);
        let (b1, b2) = (options.beta1 as f32, options.beta2 as f32);
        let (a1, a2) = ((1.0 - options.beta1) as f32, (1.0 - options.beta2) as f32);
        let eps = options.eps as f32;
        let chunks = values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        let moments = self.first.par_chunks_mut(CHUNK).zip(self.second.par_chunks_mut(CHUNK));
        chunks.zip(moments).for_each(|((w, g), (m, v))| {
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                *m = b1 * *m + a1 * g;
                *v = b2 * *v + a2 * g * g;
                *w = keep * *w - size * (*m / (v.sqrt() * root + eps));
            }
        });
    }
}

/// The size of a step and what the root of the second moment is multiplied by.
pub(super) struct Adam {
    pub(super) size: f32,
    pub(super) root: f32,
}

impl ParameterState for Moments {
    fn parts(&self) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![
            ("steps", vec![2], state::count_values(self.steps)),
            ("first", vec![self.first.len()], self.first.clone()),
            ("second", vec![self.second.len()], self.second.clone()),
        ]
    }

    fn from_parts(take: &mut Take<'_>) -> Option<Self> {
        let steps = state::count_of(&take("steps")?.1)?;
        Some(Self { steps, first: take("first")?.1, second: take("second")?.1 })
    }
}

impl AdamW {
    /// With these options.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`].
    pub fn new(options: AdamWOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { options, states: States::new() })
    }
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
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
        let options = self.options;
        each(parameters, gradients, options.rate, factors, |i, parameter, gradient, rate| {
            let decay = options.decay.of(parameter, options.weight_decay);
            let states = &mut self.states;
            update(parameter.name(), parameter.var(), gradient, |w, g| {
                let moments = states.entry(i).or_insert_with(|| Moments::new(w.len()));
                state::same_len(parameter.name(), moments.first.len(), w.len())?;
                moments.update(w, g, &options, (1.0 - rate * decay) as f32, |k| {
                    let correction = |beta: f64| 1.0 - beta.powi(k.min(i32::MAX as u64) as i32);
                    Adam {
                        size: (rate / correction(options.beta1)) as f32,
                        root: (1.0 / correction(options.beta2).sqrt()) as f32,
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
        self.states.values().map(|s| 2 * s.first.len()).sum()
    }

    fn save(&self, parameters: &Parameters) -> Result<Vec<(String, Tensor)>> {
        state::save(self.name(), &self.states, parameters)
    }

    fn load(&mut self, parameters: &Parameters, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        self.states = state::load(self.name(), parameters, saved)?;
        Ok(())
    }
}
