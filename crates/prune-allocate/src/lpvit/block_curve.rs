use prune_core::{Error, LayerId, Result};

/// What one layer loses, and what it still costs, when the first `k` of its blocks go, for every
/// `k`.
///
/// Losses are those of `prune_importance::BlockRanking::losses` or any other; costs are in the unit
/// of the limit: multiplications, or what a table of the caller's hardware says of the layer with
/// so many blocks left.
///
/// ```
/// use prune_allocate::BlockCurve;
/// use prune_core::LayerId;
///
/// let curve = BlockCurve::new(LayerId::new("fc1"), vec![0.0, 0.1, 0.4], vec![200, 100, 0])?;
/// assert_eq!(curve.blocks(), 2);
/// // One unit of power for each block that stays, at β = 0.3: the first block is better removed.
/// let curve = curve.with_power(&[2.0, 1.0, 0.0], 0.3)?;
/// assert!(curve.losses()[1] < curve.losses()[0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockCurve {
    layer: LayerId,
    losses: Vec<f64>,
    costs: Vec<u64>,
}

impl BlockCurve {
    /// A curve of `n + 1` losses and costs for a layer of `n` blocks.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ or are 0; [`Error::NotFinite`] for a loss;
    /// [`Error::OutOfRange`] for a cost that rises as blocks go.
    pub fn new(layer: LayerId, losses: Vec<f64>, costs: Vec<u64>) -> Result<Self> {
        if costs.len() != losses.len() || losses.is_empty() {
            return Err(Error::Shape {
                what: format!("{layer} (costs by removed blocks)"),
                found: vec![costs.len()],
                expected: vec![losses.len().max(1)],
            });
        }
        finite(&format!("{layer} (losses by removed blocks)"), &losses)?;
        if let Some(k) = (1..costs.len()).find(|&k| costs[k] > costs[k - 1]) {
            return Err(Error::OutOfRange {
                what: format!("{layer} (cost with {k} blocks removed)"),
                found: costs[k].to_string(),
                expected: format!("at most {}, the cost with one block more", costs[k - 1]),
            });
        }
        Ok(Self { layer, losses, costs })
    }

    /// The same curve where each loss has `beta · power[k]` added, `power[k]` being what the layer
    /// draws with `k` blocks removed: less, the more go.
    ///
    /// So a layer that draws more loses more blocks. The released code takes the blocks that went
    /// for those that stay, and prunes such a layer less.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ; [`Error::NotFinite`]; [`Error::OutOfRange`] for a
    /// `beta` that is not finite and at least 0, or a power that rises as blocks go.
    pub fn with_power(mut self, power: &[f64], beta: f64) -> Result<Self> {
        if power.len() != self.losses.len() {
            return Err(Error::Shape {
                what: format!("{} (power by removed blocks)", self.layer),
                found: vec![power.len()],
                expected: vec![self.losses.len()],
            });
        }
        finite(&format!("{} (power by removed blocks)", self.layer), power)?;
        if !(beta.is_finite() && beta >= 0.0) {
            return Err(Error::OutOfRange {
                what: "beta, the weight of the power".to_string(),
                found: beta.to_string(),
                expected: "finite and at least 0".to_string(),
            });
        }
        if let Some(k) = (1..power.len()).find(|&k| power[k] > power[k - 1]) {
            return Err(Error::OutOfRange {
                what: format!("{} (power with {k} blocks removed)", self.layer),
                found: power[k].to_string(),
                expected: format!("at most {}, the power with one block more", power[k - 1]),
            });
        }
        self.losses.iter_mut().zip(power).for_each(|(loss, p)| *loss += beta * p);
        finite(&format!("{} (losses with power)", self.layer), &self.losses)?;
        Ok(self)
    }

    /// The layer.
    pub fn layer(&self) -> &LayerId {
        &self.layer
    }

    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.losses.len() - 1
    }

    /// The loss by removed blocks.
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// The cost by removed blocks.
    pub fn costs(&self) -> &[u64] {
        &self.costs
    }
}

/// The multiplications that a layer of `weights` weights takes when `removed[k]` of them are gone,
/// for every `k`: each kept weight is used once at each of `positions`, the tokens of an image for a
/// linear layer and the pixels of its output for a convolution.
///
/// ```
/// use prune_allocate::multiplications;
/// // Blocks of 256 weights, 17 tokens.
/// assert_eq!(multiplications(512, &[0, 256, 512], 17), [8704, 4352, 0]);
/// ```
pub fn multiplications(weights: usize, removed: &[usize], positions: u64) -> Vec<u64> {
    let cost = |gone: &usize| (weights.saturating_sub(*gone) as u64).saturating_mul(positions);
    removed.iter().map(cost).collect()
}

fn finite(what: &str, values: &[f64]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite {
            what: what.to_string(),
            index,
            value: values[index].to_string(),
        }),
    }
}
