use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};

use crate::Result;
use crate::config::{LlamaConfig, RopeScaling};

/// The rotary tables of one model, of the longest sequence so far.
pub(crate) struct Rotary {
    config: LlamaConfig,
    tables: Mutex<(Tensor, Tensor)>,
}

impl Rotary {
    pub(crate) fn new(config: &LlamaConfig) -> Result<Self> {
        Ok(Self { config: config.clone(), tables: Mutex::new(rotary_tables(config, 1)?) })
    }

    /// Cosines and sines, each `(tokens, head_dim / 2)`, of the positions from `first` on.
    pub(crate) fn tables(&self, first: usize, tokens: usize) -> Result<(Tensor, Tensor)> {
        // A poisoned lock only means that another thread failed while it held whole tables.
        let mut shared = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let (end, held) = (first + tokens, shared.0.dim(0)?);
        if held < end {
            // Twice as long, so that a text that grows by a token seldom needs new ones.
            *shared = rotary_tables(&self.config, end.max(2 * held))?;
        }
        Ok((shared.0.narrow(0, first, tokens)?, shared.1.narrow(0, first, tokens)?))
    }
}

/// Cosines and sines, each `(tokens, head_dim / 2)`, of the rotary position embedding (Su et al.
/// 2021), with the frequencies scaled as the configuration says.
///
/// Angles are computed in f32 from f32 frequencies, as the reference implementation does.
fn rotary_tables(config: &LlamaConfig, tokens: usize) -> Result<(Tensor, Tensor)> {
    let inverse = inverse_frequencies(config);
    let half = inverse.len();
    let (mut cos, mut sin) = (Vec::with_capacity(tokens * half), Vec::with_capacity(tokens * half));
    for position in 0..tokens {
        for frequency in &inverse {
            // The product is rounded to f32 first; the functions are taken in f64 so that the last
            // bit does not depend on the platform's single-precision library.
            let angle = f64::from(position as f32 * frequency);
            cos.push(angle.cos() as f32);
            sin.push(angle.sin() as f32);
        }
    }
    let shape = (tokens, half);
    Ok((Tensor::from_vec(cos, shape, &Device::Cpu)?, Tensor::from_vec(sin, shape, &Device::Cpu)?))
}

fn inverse_frequencies(config: &LlamaConfig) -> Vec<f32> {
    let dim = config.head_dim as f64;
    (0..config.head_dim / 2)
        .map(|i| {
            let frequency = 1.0 / config.rope_theta.powf(2.0 * i as f64 / dim);
            scaled(frequency, config.rope_scaling) as f32
        })
        .collect()
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < original / high {
                frequency
            } else if wavelength > original / low {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn llama3_scaling_matches_transformers() {
        // Llama-3.2 parameters: theta 500000, head_dim 64, factor 32, low 1, high 4, original 8192;
        // values from transformers' `_compute_llama3_parameters`.
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let inv = |i: f64| scaled(1.0 / 500_000f64.powf(2.0 * i / 64.0), scaling);
        assert_relative_eq!(inv(0.0), 1.0, max_relative = 1e-6);
        assert_relative_eq!(inv(31.0), 3.0138e-6 / 32.0, max_relative = 1e-3);
    }
}
