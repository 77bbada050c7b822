use ndarray::{ArrayView2, ArrayView4};
use prune_core::LayerInfo;
use prune_spectral::{Farms, Spectrum, TailFit, TempBalance, Weight};

use crate::values::with_values;
use crate::{Error, Hook, Parameters, Result, StepContext};

/// Learning rates of layers from the tails of their spectra, measured anew every few epochs:
/// layers with lighter tails learn faster (TempBalance).
///
/// The exponent of a layer is that of the upper half of its spectrum (of the slices of a
/// convolution), or of FARMS' windows. A bias and the norm after a layer (`bn1` after `conv1`,
/// `features.0.norm` after `features.0`) learn at its rate; layers whose spectrum has no power law, and
/// whatever belongs to none, keep the common rate.
///
/// Source: Zhou et al., "Temperature Balancing, Layer-wise Weight Analysis, and Neural Network
/// Training", 2023; with windows Hu et al., "Eigenspectrum Analysis of Neural Networks without
/// Aspect Ratio Bias", 2025.
///
/// ```
/// use prune_core::Seed;
/// use prune_spectral::{Farms, TailFit, TempBalance};
/// use prune_train::vision::{Images, Network};
/// use prune_train::{LayerRates, Sgd, SgdOptions, TrainOptions, Trainer};
///
/// let images = Images::digits(include_bytes!("../../../assets/digits/pixels.u8"),
///     include_bytes!("../../../assets/digits/labels.u8"))?;
/// let model = Network::small_cnn(&[1, 8, 8], 8, 10)?.build(Seed::new(0))?;
/// let farms = Farms::new(8, 1.0)?.fit(TailFit::median());
/// let rates = LayerRates::new(TempBalance::linear(0.5, 1.5)?, 1)?.with_farms(farms);
/// let options = TrainOptions { steps: 10, batch: 64, ..TrainOptions::default() };
/// let trainer = Trainer::new(&model, Sgd::new(SgdOptions::default())?, options)?;
/// trainer.with_hook(rates).run(&images, None::<&Images>)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct LayerRates {
    balance: TempBalance,
    every: usize,
    farms: Option<Farms>,
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
            _ => Ok(Self { balance, every: epochs, farms: None, factors: None }),
        }
    }

    /// Exponents of windows instead of whole spectra.
    pub fn with_farms(self, farms: Farms) -> Self {
        Self { farms: Some(farms), ..self }
    }

    /// The exponent of a weight, where a power law fits.
    fn exponent(&self, values: &[f32], layer: &LayerInfo) -> Result<Option<f64>> {
        let wrong = |_| Error::shape(layer.id.weight_name(), &[values.len()], &layer.shape);
        let weight: Weight<'_> = match layer.shape[..] {
            [outputs, inputs, height, width] => {
                let shape = (outputs, inputs, height, width);
                ArrayView4::from_shape(shape, values).map_err(wrong)?.into()
            }
            _ => {
                let rows = layer.shape.first().copied().unwrap_or(1).max(1);
                let shape = (rows, values.len() / rows);
                ArrayView2::from_shape(shape, values).map_err(wrong)?.into()
            }
        };
        let alpha = match &self.farms {
            Some(farms) => farms.measure(weight).map(|m| m.alpha),
            None => Spectrum::of(weight).and_then(|s| Ok(TailFit::median().fit(&s)?.alpha)),
        };
        Ok(alpha.ok().filter(|a| a.is_finite()))
    }

    /// The factor of every parameter's rate.
    fn measure(&self, parameters: &Parameters) -> Result<Vec<f64>> {
        let mut measured = Vec::new();
        for layer in parameters.layers() {
            let parameter = parameters.get(&layer.id.weight_name())?;
            let alpha = with_values(parameter.var(), |values| self.exponent(values, &layer))?;
            measured.extend(alpha.map(|alpha| (layer.id, alpha)));
        }
        let mut factors = vec![1.0; parameters.len()];
        if measured.len() < 2 {
            return Ok(factors);
        }
        let alphas: Vec<f64> = measured.iter().map(|(_, alpha)| *alpha).collect();
        let rates = self.balance.learning_rates(&alphas, 1.0);
        let rates = rates.map_err(|e| prune_core::Error::external("TempBalance", e))?;
        for (factor, parameter) in factors.iter_mut().zip(parameters.iter()) {
            let owner = owner(parameter.name());
            let layer = measured.iter().position(|(id, _)| id.as_str() == owner);
            if let Some(layer) = layer {
                *factor = rates[layer];
            }
        }
        Ok(factors)
    }
}

/// The layer whose rate a parameter has.
fn owner(parameter: &str) -> String {
    let module = parameter.rsplit_once('.').map_or(parameter, |(module, _)| module);
    if let Some(layer) = module.strip_suffix(".norm").or_else(|| module.strip_suffix("_bn")) {
        return layer.to_string();
    }
    let (path, last) = module.rfind('.').map_or(("", module), |dot| module.split_at(dot + 1));
    match last.strip_prefix("bn") {
        Some(number) => format!("{path}conv{number}"),
        None => module.to_string(),
    }
}

/// The name of the state in checkpoints.
const NAME: &str = "layer rates";

impl Hook for LayerRates {
    fn before_step(&mut self, context: &mut StepContext<'_>) -> Result<()> {
        let period = self.every * context.epoch_steps.max(1);
        let known = self.factors.take().filter(|f| f.len() == context.factors.len());
        let factors = match known {
            Some(factors) if !context.step.is_multiple_of(period) => factors,
            _ => self.measure(context.parameters)?,
        };
        context.factors.iter_mut().zip(&factors).for_each(|(all, own)| *all *= own);
        self.factors = Some(factors);
        Ok(())
    }

    fn state(&self) -> Option<(&'static str, serde_json::Value)> {
        // As bits: what comes back has to be the same to the last one.
        let bits = |factors: &Vec<f64>| factors.iter().map(|f| f.to_bits()).collect::<Vec<u64>>();
        Some((NAME, self.factors.as_ref().map(bits).into()))
    }

    fn restore(&mut self, name: &str, state: &serde_json::Value) -> Result<bool> {
        if name != NAME {
            return Ok(false);
        }
        let bits: Option<Vec<u64>> = serde_json::from_value(state.clone())
            .map_err(|e| prune_core::Error::external("state of the layer rates", e))?;
        self.factors = bits.map(|bits| bits.into_iter().map(f64::from_bits).collect());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_biases_belong_to_their_layers() {
        for (parameter, layer) in [
            ("layer1.0.conv2.weight", "layer1.0.conv2"),
            ("layer1.0.bn2.bias", "layer1.0.conv2"),
            ("layer2.0.shortcut_bn.weight", "layer2.0.shortcut"),
            ("features.3.norm.running_mean", "features.3"),
            ("bn1.weight", "conv1"),
            ("subnet.fc.bias", "subnet.fc"),
            ("fc.bias", "fc"),
        ] {
            assert_eq!(owner(parameter), layer);
        }
    }
}
