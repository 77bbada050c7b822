use std::f64::consts::TAU;

/// The scaling of rotary frequencies that Llama 3.1 introduced, recovered from the per-frequency
/// factors that a GGUF file stores instead of the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Llama3Scaling {
    pub(super) factor: f64,
    pub(super) low_freq_factor: f64,
    pub(super) high_freq_factor: f64,
    pub(super) original_context: u64,
}

impl Llama3Scaling {
    /// The parameters that give `factors` for rotary base `theta`.
    ///
    /// Every released model has low and high factors 1 and 4 over 8192 positions and differs in
    /// `factor` alone, which the lowest frequency shows. `None` when the factors computed from
    /// them are not the stored ones to f32 rounding.
    pub(super) fn recover(factors: &[f32], theta: f64) -> Option<Self> {
        let factor = f64::from(*factors.last()?);
        if !(factor > 1.0 && factor.is_finite()) {
            return None;
        }
        let scaling = Llama3Scaling {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let count = factors.len() as f64;
        factors
            .iter()
            .enumerate()
            .all(|(i, found)| {
                let expected = scaling.divisor(theta.powf(-(i as f64) / count));
                (f64::from(*found) / expected - 1.0).abs() < 1e-4
            })
            .then_some(scaling)
    }

    /// The divisors of all frequencies of heads of `size` rows, as a GGUF file stores them.
    pub(super) fn divisors(&self, theta: f64, size: usize) -> Vec<f32> {
        let count = size / 2;
        let frequency = |i: usize| theta.powf(-(i as f64) / count as f64);
        (0..count).map(|i| self.divisor(frequency(i)) as f32).collect()
    }

    /// By what the frequency `frequency` is divided.
    fn divisor(&self, frequency: f64) -> f64 {
        let wavelength = TAU / frequency;
        let context = self.original_context as f64;
        if wavelength < context / self.high_freq_factor {
            1.0
        } else if wavelength > context / self.low_freq_factor {
            self.factor
        } else {
            let smooth = (context / wavelength - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            1.0 / ((1.0 - smooth) / self.factor + smooth)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Llama3Scaling;

    // transformers 5.23, `_compute_llama3_parameters` with head_dim 32, rope_theta 500000, factor
    // 32: the default inverse frequencies divided by the scaled ones.
    const FACTORS: [f32; 16] = [
        1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.2922626, 32.0, 32.0, 32.0, 32.0, 32.0, 32.0, 32.0,
    ];

    #[test]
    fn the_parameters_of_llama_3_2_are_recovered_from_its_factors() {
        let scaling = Llama3Scaling::recover(&FACTORS, 500_000.0).unwrap();
        assert_eq!(scaling.factor, 32.0);
        assert_eq!(scaling.original_context, 8192);
    }

    #[test]
    fn the_factors_come_back_from_the_parameters() {
        let scaling = Llama3Scaling::recover(&FACTORS, 500_000.0).unwrap();
        for (a, b) in scaling.divisors(500_000.0, 32).iter().zip(FACTORS) {
            assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn other_factors_are_refused() {
        let mut other = FACTORS;
        other[5] *= 1.1;
        assert_eq!(Llama3Scaling::recover(&other, 500_000.0), None);
        assert_eq!(Llama3Scaling::recover(&FACTORS, 10_000.0), None);
        assert_eq!(Llama3Scaling::recover(&[], 10_000.0), None);
        assert_eq!(Llama3Scaling::recover(&[f32::NAN; 4], 10_000.0), None);
    }
}
