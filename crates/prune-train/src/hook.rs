use crate::{Optimizer, Parameters, Result};

/// What a hook may look at and change before a step.
pub struct StepContext<'a> {
    /// The step that comes, from 0.
    pub step: usize,
    /// Batches of an epoch, in steps.
    pub epoch_steps: usize,
    /// The parameters: to be frozen or not.
    pub parameters: &'a Parameters,
    /// The optimiser: to drop state.
    pub optimizer: &'a mut dyn Optimizer,
    /// The factor of the learning rate of every parameter, 1 unless a hook changed it.
    pub factors: &'a mut [f64],
}

/// Something that is done before every step of training: layers frozen and unfrozen, learning
/// rates of layers set.
///
/// A hook decides by the step alone, or by parameters that a checkpoint brings back, or has a
/// [`Hook::state`] there, so that resumed training goes on as it would have.
pub trait Hook {
    /// Called before the gradients of step `context.step` are computed.
    ///
    /// # Errors
    /// Stops training.
    fn before_step(&mut self, context: &mut StepContext<'_>) -> Result<()>;

    /// Called when a run ends, by an error too: the place to put back what was changed for it.
    fn after_run(&mut self, parameters: &Parameters) {
        let _ = parameters;
    }

    /// What a checkpoint has to hold: a name and a value. Nothing by default.
    fn state(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }

    /// Takes up a [`Hook::state`] of this name; returns whether it was this hook's.
    ///
    /// # Errors
    /// When the value is not what the hook gave.
    fn restore(&mut self, name: &str, state: &serde_json::Value) -> Result<bool> {
        let _ = (name, state);
        Ok(false)
    }
}

impl<F: FnMut(&mut StepContext<'_>) -> Result<()>> Hook for F {
    fn before_step(&mut self, context: &mut StepContext<'_>) -> Result<()> {
        self(context)
    }
}
