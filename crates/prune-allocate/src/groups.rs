use std::collections::HashMap;

use prune_core::{Error, Result, ScoredLayer};

/// What shares one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Granularity {
    /// All layers of a transformer block; a layer outside the blocks stands for itself.
    #[default]
    Block,
    /// Every layer by itself.
    Layer,
}

/// The groups of layers, numbered in the order of appearance.
pub(crate) struct Groups {
    /// The group of each layer.
    pub(crate) of_layer: Vec<usize>,
    /// The first layer of each group.
    pub(crate) first: Vec<usize>,
}

impl Groups {
    pub(crate) fn new(layers: &[ScoredLayer], granularity: Granularity) -> Self {
        let mut of_block: HashMap<usize, usize> = HashMap::new();
        let mut groups = Self { of_layer: Vec::with_capacity(layers.len()), first: Vec::new() };
        for (l, layer) in layers.iter().enumerate() {
            let fresh = groups.first.len();
            let group = match layer.info.block {
                Some(block) if granularity == Granularity::Block => {
                    *of_block.entry(block).or_insert(fresh)
                }
                _ => fresh,
            };
            if group == fresh {
                groups.first.push(l);
            }
            groups.of_layer.push(group);
        }
        groups
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len()
    }

    /// The sum over the layers of each group.
    pub(crate) fn sums(&self, of_layer: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.len()];
        self.of_layer.iter().zip(of_layer).for_each(|(&g, value)| sums[g] += value);
        sums
    }

    /// The mean over the layers of each group, every layer weighing the same.
    pub(crate) fn means(&self, of_layer: impl Iterator<Item = f64>) -> Vec<f64> {
        let counts = self.sums(self.of_layer.iter().map(|_| 1.0));
        self.sums(of_layer).iter().zip(&counts).map(|(sum, count)| sum / count).collect()
    }

    /// The value of its group, for each layer.
    pub(crate) fn spread(&self, of_group: &[f64]) -> Vec<f64> {
        self.of_layer.iter().map(|&g| of_group[g]).collect()
    }
}

/// Refuses scores that are NaN or infinite.
pub(crate) fn check_scores(layers: &[ScoredLayer]) -> Result<()> {
    match layers.iter().find(|l| !l.score.is_finite()) {
        None => Ok(()),
        Some(layer) => Err(Error::NotFinite {
            what: format!("score of `{}`", layer.info.id),
            index: 0,
            value: layer.score.to_string(),
        }),
    }
}

/// Finite `values` mapped linearly so that the least is 0 and the greatest 1; all 0 when they are
/// equal.
pub(crate) fn unit_range(values: &[f64]) -> Vec<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Halves, so that the range of the largest numbers does not overflow.
    let range = most / 2.0 - least / 2.0;
    if range > 0.0 {
        values.iter().map(|v| (v / 2.0 - least / 2.0) / range).collect()
    } else {
        vec![0.0; values.len()]
    }
}
