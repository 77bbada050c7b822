use prune_allocate::SamplingWeights;
use prune_core::{Seed, block_of};
use serde::{Deserialize, Serialize};

use crate::{Error, Hook, Parameter, ParameterKind, Parameters, Result, StepContext};

/// What becomes of the optimiser's state when a block is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum OnFreeze {
    /// It goes: memory holds the state of the blocks in training only.
    #[default]
    Drop,
    /// It stays for the next time, as in the released code: in the end all blocks have state.
    Keep,
}

/// Trains a few blocks of a transformer at a time and freezes the others (OwLore, LISA).
///
/// Every `period` steps, `active` blocks are drawn by their [`SamplingWeights`]: by outliers for
/// OwLore, alike for LISA. What stands outside the blocks, embeddings and the last norm, is always
/// trained. The block of a parameter is the number in its name. Parameters that were frozen before
/// training stay frozen, and after it the others are free again.
///
/// Source: Li et al., "OwLore", 2024; Pan et al., "LISA", 2024.
#[derive(Debug)]
pub struct BlockSampler {
    weights: SamplingWeights,
    active: usize,
    period: usize,
    seed: Seed,
    on_freeze: OnFreeze,
    drawn: Option<(usize, Vec<usize>)>,
    /// The parameters that were frozen before the first draw: they stay so.
    frozen: Option<Vec<bool>>,
}

impl BlockSampler {
    /// Draws `active` blocks every `period` steps.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] when so many blocks cannot be drawn, or for a period of 0.
    pub fn new(weights: SamplingWeights, active: usize, period: usize, seed: Seed) -> Result<Self> {
        weights.draw(active, &mut seed.stream("blocks of period 0"))?;
        for (what, value) in [("blocks in training", active), ("steps of a period", period)] {
            if value == 0 {
                return Err(Error::out_of_range(what, 0, "at least 1"));
            }
        }
        let on_freeze = OnFreeze::default();
        Ok(Self { weights, active, period, seed, on_freeze, drawn: None, frozen: None })
    }

    /// The same with another rule for the state of frozen blocks.
    pub fn with_state(self, on_freeze: OnFreeze) -> Self {
        Self { on_freeze, ..self }
    }

    /// The blocks that train at a step, in rising order.
    ///
    /// # Errors
    /// As [`BlockSampler::new`].
    pub fn blocks(&self, step: usize) -> Result<Vec<usize>> {
        let mut stream = self.seed.stream(&format!("blocks of period {}", step / self.period));
        Ok(self.weights.draw(self.active, &mut stream)?)
    }
}

impl Hook for BlockSampler {
    fn before_step(&mut self, context: &mut StepContext<'_>) -> Result<()> {
        let period = context.step / self.period;
        if self.drawn.as_ref().is_some_and(|(p, _)| *p == period) {
            return Ok(());
        }
        let blocks = self.blocks(context.step)?;
        let known = self.weights.probabilities().len();
        let parameters = context.parameters;
        let before = self.frozen.get_or_insert_with(|| is_frozen(parameters));
        for (number, parameter) in context.parameters.iter().enumerate() {
            let Some((block, _)) = block_of(parameter.name()) else { continue };
            if block >= known {
                return Err(Error::out_of_range(
                    format!("block of `{}`", parameter.name()),
                    block,
                    format!("below {known}, the number of scores"),
                ));
            }
            if before.get(number).copied().unwrap_or(false) {
                continue;
            }
            let frozen = blocks.binary_search(&block).is_err();
            parameter.freeze(frozen);
            if frozen && self.on_freeze == OnFreeze::Drop {
                context.optimizer.forget(number);
            }
        }
        self.drawn = Some((period, blocks));
        Ok(())
    }

    fn after_run(&mut self, parameters: &Parameters) {
        if let Some(before) = self.frozen.take() {
            parameters.iter().zip(before).for_each(|(p, frozen)| p.freeze(frozen));
        }
        self.drawn = None;
    }

    fn state(&self) -> Option<(&'static str, serde_json::Value)> {
        let weights: Vec<u64> = self.weights.probabilities().iter().map(|p| p.to_bits()).collect();
        let drawn = (self.seed.value(), self.active, self.period, self.on_freeze, weights);
        Some((NAME, serde_json::to_value(drawn).unwrap_or_default()))
    }

    fn restore(&mut self, name: &str, state: &serde_json::Value) -> Result<bool> {
        if name != NAME {
            return Ok(false);
        }
        match self.state() {
            Some((_, own)) if own == *state => Ok(true),
            _ => Err(Error::out_of_range(
                "seed, blocks, period or scores of the block sampler",
                "others than in the checkpoint",
                "the same",
            )),
        }
    }
}

/// The name of the state in checkpoints.
const NAME: &str = "block sampler";

fn is_frozen(parameters: &Parameters) -> Vec<bool> {
    let frozen = |p: &Parameter| p.kind() != ParameterKind::Buffer && !p.is_trained();
    parameters.iter().map(frozen).collect()
}
