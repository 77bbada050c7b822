use crate::{Error, Result};

/// Learning rates from exponents: layers with lighter tails (higher α) learn faster.
///
/// Source: Zhou et al., "Temperature Balancing, Layer-wise Weight Analysis, and Neural Network
/// Training", 2023; the sigmoid is TB_Sigmoid of "Model Balancing", 2025.
///
/// ```
/// use prune_spectral::TempBalance;
/// let rates = TempBalance::linear(0.5, 1.5)?.learning_rates(&[2.0, 3.0, 4.0, 6.0], 0.1)?;
/// let expected = [0.05, 0.075, 0.1, 0.15];
/// assert!(rates.iter().zip(expected).all(|(r, e)| (r - e).abs() < 1e-12));
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TempBalance {
    map: Map,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Map {
    Linear { low: f64, high: f64 },
    Step { low: f64, high: f64 },
    Sqrt,
    Log2,
    Sigmoid { strength: f64, steepness: f64 },
}

impl Default for TempBalance {
    /// [`TempBalance::linear`] from 0.5 to 1.5.
    fn default() -> Self {
        Self { map: Map::Linear { low: 0.5, high: 1.5 } }
    }
}

impl TempBalance {
    /// From `low · η` for the least α to `high · η` for the greatest, linearly: `tb_linear_map`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless 0 ≤ low ≤ high, both finite.
    pub fn linear(low: f64, high: f64) -> Result<Self> {
        range(low, high)?;
        Ok(Self { map: Map::Linear { low, high } })
    }

    /// By rank: the layer of rank i of n, from 0, gets η (low + (high − low) i / n): `tb_step`. The
    /// highest rank does not reach `high`.
    ///
    /// # Errors
    /// As [`TempBalance::linear`].
    pub fn step(low: f64, high: f64) -> Result<Self> {
        range(low, high)?;
        Ok(Self { map: Map::Step { low, high } })
    }

    /// η n √α / Σ √α: `tb_sqrt`. The mean rate is η.
    pub fn sqrt() -> Self {
        Self { map: Map::Sqrt }
    }

    /// η n log₂ α / Σ log₂ α: `tb_log2`. The mean rate is η.
    pub fn log2() -> Self {
        Self { map: Map::Log2 }
    }

    /// η 10^φ with φ = s (1 / (1 + exp(−τ (α − mean α))) − 1/2), s = `strength`, τ = `steepness`
    /// (10 in the paper).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for numbers that are not finite.
    pub fn sigmoid(strength: f64, steepness: f64) -> Result<Self> {
        for (what, v) in [
            ("the strength of the sigmoid map", strength),
            ("the steepness of the sigmoid map", steepness),
        ] {
            if !v.is_finite() {
                return Err(Error::OutOfRange {
                    what,
                    found: v.to_string(),
                    expected: "a finite number",
                });
            }
        }
        Ok(Self { map: Map::Sigmoid { strength, steepness } })
    }

    /// The learning rate of each layer, for exponents `alphas` and the rate `base` that a schedule
    /// gives. Equal exponents all get `base`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for exponents that are not above 1 or not finite, or a `base` that is
    /// negative or not finite.
    pub fn learning_rates(&self, alphas: &[f64], base: f64) -> Result<Vec<f64>> {
        if !(base.is_finite() && base >= 0.0) {
            return Err(Error::OutOfRange {
                what: "the base learning rate",
                found: base.to_string(),
                expected: "a finite number, 0 or above",
            });
        }
        if let Some(alpha) = alphas.iter().find(|a| !(a.is_finite() && **a > 1.0)) {
            return Err(Error::OutOfRange {
                what: "an exponent",
                found: alpha.to_string(),
                expected: "a finite number above 1",
            });
        }
        let n = alphas.len() as f64;
        let least = alphas.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = alphas.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if greatest <= least {
            // The released code's interpolation gives the upper rate here.
            return Ok(vec![base; alphas.len()]);
        }
        let proportional = |of: fn(f64) -> f64| {
            let sum: f64 = alphas.iter().map(|a| of(*a)).sum();
            alphas.iter().map(|a| base * n * of(*a) / sum).collect()
        };
        Ok(match self.map {
            Map::Linear { low, high } => alphas
                .iter()
                .map(|a| base * (low + (high - low) * (a - least) / (greatest - least)))
                .collect(),
            Map::Step { low, high } => {
                let mut order: Vec<usize> = (0..alphas.len()).collect();
                order.sort_by(|a, b| alphas[*a].total_cmp(&alphas[*b]));
                let mut rates = vec![0.0; alphas.len()];
                for (rank, layer) in order.into_iter().enumerate() {
                    rates[layer] = base * (low + (high - low) * rank as f64 / n);
                }
                rates
            }
            Map::Sqrt => proportional(f64::sqrt),
            Map::Log2 => proportional(f64::log2),
            Map::Sigmoid { strength, steepness } => {
                let mean = alphas.iter().sum::<f64>() / n;
                alphas
                    .iter()
                    .map(|a| 1.0 / (1.0 + (-steepness * (a - mean)).exp()) - 0.5)
                    .map(|phi| base * 10f64.powf(strength * phi))
                    .collect()
            }
        })
    }
}

fn range(low: f64, high: f64) -> Result<()> {
    if low.is_finite() && high.is_finite() && 0.0 <= low && low <= high {
        return Ok(());
    }
    Err(Error::OutOfRange {
        what: "the range of learning rates",
        found: format!("{low} to {high}"),
        expected: "two finite numbers in order, 0 or above",
    })
}
