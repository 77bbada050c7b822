use prune_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::dbscan::{dbscan, distance};
use super::{KvConfig, KvErrors, KvPair, KvScheme, out_of_range, pareto_front};

/// How layers with the same candidates are grouped by their errors.
///
/// ```
/// use prune_quant::kv::Clustering;
/// // What a third party reports of the paper's experiments.
/// let reported = Clustering { eps: Some(0.05), ..Clustering::default() };
/// assert_eq!(reported.min_points, 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clustering {
    /// Layers within this distance of one another are neighbours; the distance is Euclidean,
    /// between the output errors of the candidate pairs.
    ///
    /// `None` takes it from the errors: three quarters of the layers have their nearest neighbour
    /// among those with the same candidates no farther away, whatever the size of the errors.
    pub eps: Option<f64>,
    /// Neighbours, itself included, that make a layer the core of a group.
    pub min_points: usize,
}

impl Default for Clustering {
    /// `eps` from the errors and 2 points. The paper states neither.
    fn default() -> Self {
        Self { eps: None, min_points: 2 }
    }
}

/// The distance that three quarters of the points do not exceed to the nearest other one of their
/// list: the upper quartile of the 1-dist graph of Ester et al. 1996. 0 where every point is alone.
fn usual_distance(lists: &[Vec<Vec<f64>>]) -> f64 {
    let mut nearest = Vec::new();
    for points in lists.iter().filter(|points| points.len() > 1) {
        for (i, a) in points.iter().enumerate() {
            let others = points.iter().enumerate().filter(|(j, _)| *j != i);
            let distances = others.map(|(_, b)| distance(a, b));
            nearest.push(distances.fold(f64::INFINITY, f64::min));
        }
    }
    nearest.sort_by(f64::total_cmp);
    nearest.get(3 * nearest.len().saturating_sub(1) / 4).copied().unwrap_or(0.0)
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
        let points: Vec<Vec<Vec<f64>>> = parts
            .iter()
            .map(|(kept, layers)| {
                let of = |layer: &usize| {
                    kept.iter().map(|pair| errors[*layer].output[*pair].1).collect()
                };
                layers.iter().map(of).collect()
            })
            .collect();
        let eps = clustering.eps.unwrap_or_else(|| usual_distance(&points));
        let mut groups: Vec<LayerGroup> = Vec::new();
        for ((kept, layers), points) in parts.into_iter().zip(points) {
            let labels = dbscan(&points, eps, clustering.min_points)?;
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

    /// The same with these pairs among the candidates of every group, so that a search measures the
    /// configurations that give every layer the same of them. Pruning may have taken them out of
    /// some group: it goes by the error of one layer's attention, which need not rank pairs as the
    /// whole model does.
    ///
    /// ```
    /// use prune_quant::kv::{KvPair, KvScheme, LayerGroup, SearchSpace};
    ///
    /// let candidates = vec!["KV8".parse()?, "K2V4".parse()?];
    /// let group = LayerGroup { layers: vec![0, 1], candidates };
    /// let kv4: KvPair = "KV4".parse()?;
    /// let space = SearchSpace::from_groups(vec![group], KvScheme::kivi())?.with_candidates(&[kv4]);
    /// assert_eq!(space.config(&[1])?.layers(), [kv4, kv4]);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn with_candidates(mut self, pairs: &[KvPair]) -> Self {
        for group in &mut self.groups {
            for pair in pairs {
                if !group.candidates.contains(pair) {
                    group.candidates.push(*pair);
                }
            }
            // By falling bits; of equal bits the first stays first.
            group.candidates.sort_by(|a, b| b.mean_bits().total_cmp(&a.mean_bits()));
        }
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers whose pairs have these errors, times `scale`.
    fn layers(scale: f64, errors: &[[f64; 3]]) -> Vec<KvErrors> {
        let pairs = ["KV8", "K4V8", "KV4"].map(|pair| pair.parse::<KvPair>().unwrap());
        let layer = |errors: &[f64; 3]| {
            let output = pairs.into_iter().zip(errors.map(|e| scale * e)).collect();
            let (key, value, score) = Default::default();
            KvErrors { key, value, score, output }
        };
        errors.iter().map(layer).collect()
    }

    #[test]
    fn groups_do_not_depend_on_the_size_of_the_errors() {
        let errors = [
            [0.1, 0.3, 0.5],
            [0.1, 0.31, 0.5],
            [0.2, 0.6, 0.9],
            [0.1, 0.32, 0.5],
            [0.2, 0.613, 0.9],
            [0.5, 0.8, 2.0],
            [0.7, 1.1, 3.0],
            [0.1, 0.334, 0.5],
        ];
        for scale in [0.01, 1.0, 100.0] {
            let errors = layers(scale, &errors);
            let space =
                SearchSpace::new(&errors, KvScheme::kivi(), &Clustering::default()).unwrap();
            let found: Vec<_> = space.groups().iter().map(|g| g.layers.clone()).collect();
            assert_eq!(found, [vec![0, 1, 3, 7], vec![2, 4], vec![5], vec![6]], "{scale}");
        }
        let fixed = Clustering { eps: Some(0.05), ..Clustering::default() };
        let groups = |scale| {
            let errors = layers(scale, &errors);
            SearchSpace::new(&errors, KvScheme::kivi(), &fixed).unwrap().groups().len()
        };
        assert_eq!((groups(1.0), groups(100.0)), (4, 8));
    }

    #[test]
    fn layers_alone_with_their_candidates_stand_alone() {
        let alone = layers(1.0, &[[0.1, 0.3, 0.5], [0.1, 0.5, 0.5]]);
        let space = SearchSpace::new(&alone, KvScheme::kivi(), &Clustering::default()).unwrap();
        assert_eq!(space.groups().len(), 2);
        let equal = layers(1.0, &[[0.1, 0.3, 0.5]; 3]);
        let space = SearchSpace::new(&equal, KvScheme::kivi(), &Clustering::default()).unwrap();
        assert_eq!(space.groups().len(), 1);
    }
}
