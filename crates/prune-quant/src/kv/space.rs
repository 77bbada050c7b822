use prune_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{KvConfig, KvErrors, KvPair, KvScheme, dbscan, out_of_range, pareto_front};

/// How layers with the same candidates are grouped by their errors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clustering {
    /// Layers within this distance of one another are neighbours; the distance is Euclidean,
    /// between the output errors of the candidate pairs.
    pub eps: f64,
    /// Neighbours, itself included, that make a layer the core of a group.
    pub min_points: usize,
}

impl Default for Clustering {
    /// `eps` 0.05 and 2 points. The paper does not state its parameters; these are those that a
    /// third party reports.
    fn default() -> Self {
        Self { eps: 0.05, min_points: 2 }
    }
}

/// Layers that share one choice of pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerGroup {
    /// The layers, ascending.
    pub layers: Vec<usize>,
    /// The pairs to choose from, by falling bits.
    pub candidates: Vec<KvPair>,
}

/// What a search chooses from: groups of layers with the pairs that are worth trying.
///
/// KVTuner's two reductions of `9^L` configurations. First, each layer keeps the pairs on its
/// Pareto front of equivalent bits and output error `e_o`. Then layers with the same pairs left are
/// clustered by their errors ([`dbscan`]), and a cluster shares one choice; a layer that is noise
/// to the clustering stands alone.
///
/// ```
/// use std::collections::BTreeMap;
/// use prune_quant::kv::{Clustering, KvErrors, KvPair, KvScheme, SearchSpace};
///
/// let layer = |errors: [f64; 3]| -> prune_core::Result<KvErrors> {
///     let pairs = ["KV8", "K4V8", "KV4"].map(|p| p.parse::<KvPair>());
///     let mut output = Vec::new();
///     for (pair, error) in pairs.into_iter().zip(errors) {
///         output.push((pair?, error));
///     }
///     let (key, value, score) = Default::default();
///     Ok(KvErrors { key, value, score, output })
/// };
/// // K4V8 is no better than KV4, and takes more bits.
/// let errors = [layer([0.1, 0.3, 0.3])?, layer([0.9, 1.5, 1.2])?, layer([0.11, 0.4, 0.31])?];
/// let space = SearchSpace::new(&errors, KvScheme::kivi(), &Clustering::default())?;
/// let layers: Vec<_> = space.groups().iter().map(|g| g.layers.clone()).collect();
/// assert_eq!(layers, [vec![0, 2], vec![1]]);
/// assert_eq!(space.size(), 4.0);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchSpace {
    scheme: KvScheme,
    layers: usize,
    groups: Vec<LayerGroup>,
}

impl SearchSpace {
    /// The space after pruning and clustering. Groups are in the order of their first layer.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without layers or pairs, or for pairs that differ between layers;
    /// those of [`pareto_front`] and [`dbscan`].
    pub fn new(errors: &[KvErrors], scheme: KvScheme, clustering: &Clustering) -> Result<Self> {
        let pairs: Vec<KvPair> =
            errors.first().map(|e| e.output.iter().map(|(p, _)| *p).collect()).unwrap_or_default();
        let costs: Vec<f64> = pairs.iter().map(|p| p.mean_bits()).collect();
        // Layers by the pairs that they keep, in the order in which the sets appear.
        let mut parts: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for (layer, errors) in errors.iter().enumerate() {
            if errors.output.iter().map(|(p, _)| *p).ne(pairs.iter().copied()) {
                let what = format!("KV pairs of layer {layer}");
                return Err(out_of_range(what, format!("{:?}", errors.output), "those of layer 0"));
            }
            let outputs: Vec<f64> = errors.output.iter().map(|(_, e)| *e).collect();
            let kept = pareto_front(&costs, &outputs)?;
            match parts.iter_mut().find(|(pairs, _)| *pairs == kept) {
                Some((_, layers)) => layers.push(layer),
                None => parts.push((kept, vec![layer])),
            }
        }
        let mut groups: Vec<LayerGroup> = Vec::new();
        for (kept, layers) in parts {
            let points: Vec<Vec<f64>> = layers
                .iter()
                .map(|layer| kept.iter().map(|pair| errors[*layer].output[*pair].1).collect())
                .collect();
            let labels = dbscan(&points, clustering.eps, clustering.min_points)?;
            let candidates: Vec<KvPair> = kept.iter().map(|i| pairs[*i]).collect();
            let clusters = labels.iter().flatten().max().map_or(0, |c| c + 1);
            let mut members = vec![Vec::new(); clusters];
            for (layer, label) in layers.iter().zip(labels) {
                match label {
                    Some(cluster) => members[cluster].push(*layer),
                    None => members.push(vec![*layer]),
                }
            }
            let group = |layers| LayerGroup { layers, candidates: candidates.clone() };
            groups.extend(members.into_iter().map(group));
        }
        groups.sort_by_key(|g| g.layers.first().copied());
        Self::from_groups(groups, scheme)
    }

    /// The space of given groups, as from a file or of another clustering.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without groups, for a group without layers or candidates, or when the
    /// groups do not hold every layer once.
    pub fn from_groups(groups: Vec<LayerGroup>, scheme: KvScheme) -> Result<Self> {
        let mut all: Vec<usize> = groups.iter().flat_map(|g| g.layers.iter().copied()).collect();
        all.sort_unstable();
        let whole = !all.is_empty() && all.iter().enumerate().all(|(i, layer)| i == *layer);
        if !whole || groups.iter().any(|g| g.layers.is_empty()) {
            let expected = "every layer from 0 on in exactly one group, no group empty";
            return Err(out_of_range("layers of the KV groups", format!("{all:?}"), expected));
        }
        if let Some(g) = groups.iter().find(|g| g.candidates.is_empty()) {
            let what = format!("candidates of the layers {:?}", g.layers);
            return Err(out_of_range(what, 0, "at least 1"));
        }
        Ok(Self { scheme, layers: all.len(), groups })
    }

    /// How the caches quantise.
    pub fn scheme(&self) -> &KvScheme {
        &self.scheme
    }

    /// The groups.
    pub fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Configurations; infinite beyond the range of f64.
    pub fn size(&self) -> f64 {
        self.groups.iter().map(|g| g.candidates.len() as f64).product()
    }

    /// The configuration where each group takes the candidate of its index.
    ///
    /// # Errors
    /// [`Error::Shape`] for a wrong number of indices, [`Error::OutOfRange`] for one too large.
    pub fn config(&self, choice: &[usize]) -> Result<KvConfig> {
        if choice.len() != self.groups.len() {
            return Err(Error::Shape {
                what: "choice of KV candidates".to_string(),
                found: vec![choice.len()],
                expected: vec![self.groups.len()],
            });
        }
        let mut layers = vec![self.groups[0].candidates[0]; self.layers];
        for (group, index) in self.groups.iter().zip(choice) {
            let pair = group.candidates.get(*index).copied().ok_or_else(|| {
                let what = format!("candidate of the layers {:?}", group.layers);
                out_of_range(what, index, format!("below {}", group.candidates.len()))
            })?;
            group.layers.iter().for_each(|layer| layers[*layer] = pair);
        }
        KvConfig::new(layers, self.scheme)
    }

    /// The choice whose groups all take `pair`, if all have it.
    pub(crate) fn uniform(&self, pair: KvPair) -> Option<Vec<usize>> {
        self.groups.iter().map(|g| g.candidates.iter().position(|p| *p == pair)).collect()
    }
}
