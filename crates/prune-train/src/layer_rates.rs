use ndarray::ArrayView2;
use prune_spectral::{DiagnoseOptions, TempBalance, diagnose};

use crate::masks::matrix;
use crate::values::with_values;
use crate::{Error, Hook, Result, StepContext};

/// Learning rates of layers from the tails of their spectra, measured anew every few epochs:
/// layers with lighter tails learn faster (TempBalance).
///
/// Layers whose spectrum has no power law (fewer than ten eigenvalues, say) keep the common rate.
///
/// Source: Zhou et al., "Temperature Balancing, Layer-wise Weight Analysis, and Neural Network
/// Training", 2023.
#[derive(Debug, Clone)]
pub struct LayerRates {
    balance: TempBalance,
    every: usize,
    factors: Option<Vec<f64>>,
}

impl LayerRates {
    /// This map from exponents to rates, applied every `epochs` epochs.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for 0 epochs.
    pub fn new(balance: TempBalance, epochs: usize) -> Result<Self> {
        match epochs {
            0 => Err(Error::out_of_range("epochs between two measurements", 0, "at least 1")),
            _ => Ok(Self { balance, every: epochs, factors: None }),
        }
    }
}

impl Hook for LayerRates {
    fn before_step(&mut self, context: &mut StepContext<'_>) -> Result<()> {
        let period = self.every * context.epoch_steps.max(1);
        if context.step.is_multiple_of(period) || self.factors.is_none() {
            let mut factors = vec![1.0; context.parameters.len()];
            let mut measured = Vec::new();
            for layer in context.parameters.layers() {
                let name = layer.id.weight_name();
                let Some(number) = context.parameters.number(&name) else { continue };
                let (rows, cols) = matrix(&layer.shape);
                let alpha = with_values(context.parameters.get(&name)?.var(), |values| {
                    let view = ArrayView2::from_shape((rows, cols), values)
                        .map_err(|_| Error::shape(&name, &[values.len()], &[rows, cols]))?;
                    let diagnosis = diagnose(&name, view, &DiagnoseOptions::default());
                    Ok(diagnosis.ok().and_then(|d| d.alpha).filter(|a| a.is_finite()))
                })?;
                measured.extend(alpha.map(|alpha| (number, alpha)));
            }
            let alphas: Vec<f64> = measured.iter().map(|(_, alpha)| *alpha).collect();
            if alphas.len() > 1 {
                let rates = self.balance.learning_rates(&alphas, 1.0);
                let rates = rates.map_err(|e| prune_core::Error::external("TempBalance", e))?;
                measured.iter().zip(rates).for_each(|((number, _), rate)| factors[*number] = rate);
            }
            self.factors = Some(factors);
        }
        if let Some(factors) = &self.factors {
            context.factors.copy_from_slice(factors);
        }
        Ok(())
    }
}
