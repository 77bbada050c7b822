use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2, Axis};
use prune_core::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    AttentionSample, KvBits, KvPair, KvQuantizer, KvScheme, LastGroup, out_of_range, simulate,
};

/// What a relative error of an element divides by where the element is 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ZeroPolicy {
    /// Elements that are exactly 0 do not count.
    #[default]
    Skip,
    /// Every element counts, divided by `|x|` plus this.
    Add(f64),
}

/// How the error of a matrix is put in relation to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ErrorMeasure {
    /// The paper's: the mean of `|x − x̂| / |x|` over elements. Elements near 0 decide it, so that
    /// on few samples it may rank pairs by chance.
    MeanRelative(ZeroPolicy),
    /// `‖x − x̂‖ / ‖x‖`.
    NormRatio,
}

impl Default for ErrorMeasure {
    fn default() -> Self {
        ErrorMeasure::MeanRelative(ZeroPolicy::Skip)
    }
}

/// How much attention suffers from each width of keys and values, by simulation: KVTuner's `e_k`,
/// `e_v`, `e_a` and `e_o`.
///
/// For a head with queries Q, keys K and values V: `a = softmax(Q Kᵀ/√d)`, `o = a V`, and the same
/// with quantised K̂, V̂:
///
/// ```text
/// e_k = mean |K − K̂| / |K|     e_a = mean |a − â|      over the keys that a query sees
/// e_v = mean |V − V̂| / |V|     e_o = mean |o − ô| / |o|,   ô = â V̂
/// ```
///
/// Everything is quantised, without a residual window, and errors of earlier layers are not
/// carried along, as in the paper. Samples are pooled: every element of every head and prompt
/// weighs the same. O(queries · tokens · head_dim) times key widths and pairs, in f64; heads run in
/// parallel and are summed in order.
///
/// Source: Li et al., "KVTuner", ICML 2025, section 3.
///
/// ```
/// use ndarray::Array3;
/// use prune_quant::kv::{AttentionSample, ErrorProfiler, KvBits, KvScheme};
///
/// let wave = |f: f64| Array3::from_shape_fn((1, 64, 32), |(_, t, c)| (f * (t * 32 + c) as f64).sin());
/// let (q, k, v) = (wave(0.3), wave(0.7), wave(1.1));
/// let sample = AttentionSample::unmasked(q.view(), k.view(), v.view())?;
/// let mut profiler = ErrorProfiler::new(1, KvScheme::kivi())?;
/// profiler.add(0, &sample)?;
/// let errors = &profiler.errors()?[0];
/// assert!(errors.key[&KvBits::Eight] < errors.key[&KvBits::Two]);
/// assert!(errors.output_of("KV8".parse()?)? < errors.output_of("KV2".parse()?)?);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ErrorProfiler {
    scheme: KvScheme,
    pairs: Vec<KvPair>,
    measure: ErrorMeasure,
    quantizer: KvQuantizer,
    layers: Vec<Sums>,
}

/// The errors of one layer, as [`ErrorProfiler`] measured them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvErrors {
    /// `e_k` by key width.
    pub key: BTreeMap<KvBits, f64>,
    /// `e_v` by value width.
    pub value: BTreeMap<KvBits, f64>,
    /// `e_a` by key width.
    pub score: BTreeMap<KvBits, f64>,
    /// `e_o` of each pair, in the order in which the profiler was given them.
    pub output: Vec<(KvPair, f64)>,
}

impl KvErrors {
    /// `e_o` of a pair.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a pair that was not measured.
    pub fn output_of(&self, pair: KvPair) -> Result<f64> {
        let found = self.output.iter().find(|(p, _)| *p == pair);
        found
            .map(|(_, e)| *e)
            .ok_or_else(|| out_of_range("KV pair", pair, "one of the pairs that were measured"))
    }
}

impl ErrorProfiler {
    /// A profiler of `layers` layers over the nine pairs of 8, 4 and 2 bits, with the paper's
    /// measure and the quantizer that a cache of this scheme has.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without layers.
    pub fn new(layers: usize, scheme: KvScheme) -> Result<Self> {
        if layers == 0 {
            return Err(out_of_range("layers to profile", layers, "at least 1"));
        }
        Ok(Self {
            scheme,
            pairs: KvPair::NINE.to_vec(),
            measure: ErrorMeasure::default(),
            quantizer: scheme.numbers.into(),
            layers: vec![Sums::default(); layers],
        })
    }

    /// The same over other pairs. Forgets what was added.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without pairs, or with one twice.
    pub fn pairs(self, pairs: &[KvPair]) -> Result<Self> {
        let twice = pairs.iter().enumerate().any(|(i, p)| pairs[..i].contains(p));
        if pairs.is_empty() || twice {
            let found = format!("{pairs:?}");
            return Err(out_of_range("KV pairs to measure", found, "one or more, each once"));
        }
        Ok(Self { pairs: pairs.to_vec(), ..self.emptied() })
    }

    /// The same with another measure. Forgets what was added.
    pub fn measure(self, measure: ErrorMeasure) -> Self {
        Self { measure, ..self.emptied() }
    }

    /// The same with another quantizer. Forgets what was added.
    pub fn quantizer(self, quantizer: KvQuantizer) -> Self {
        Self { quantizer, ..self.emptied() }
    }

    fn emptied(self) -> Self {
        Self { layers: vec![Sums::default(); self.layers.len()], ..self }
    }

    /// Adds a sample of a layer.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a layer that does not exist or a value that cannot be cached.
    pub fn add(&mut self, layer: usize, sample: &AttentionSample) -> Result<()> {
        if layer >= self.layers.len() {
            let expected = format!("below {}", self.layers.len());
            return Err(out_of_range("layer to profile", layer, expected));
        }
        let heads: Vec<Sums> = (0..sample.keys().dim().0)
            .into_par_iter()
            .map(|head| self.head(layer, sample, head))
            .collect::<Result<_>>()?;
        let sums = &mut self.layers[layer];
        heads.iter().for_each(|head| sums.merge(head));
        Ok(())
    }

    /// The errors of every layer.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] naming the first layer without a sample.
    pub fn errors(&self) -> Result<Vec<KvErrors>> {
        let layer = |(index, sums): (usize, &Sums)| {
            if sums.output.is_empty() {
                return Err(Error::NoStatistics {
                    layer: format!("layer {index}"),
                    method: "the KV error profile".to_string(),
                    needed: "queries, keys and values",
                });
            }
            let all = |sums: &BTreeMap<KvBits, Ratio>| {
                sums.iter().map(|(bits, r)| (*bits, self.value(r))).collect()
            };
            Ok(KvErrors {
                key: all(&sums.key),
                value: all(&sums.value),
                score: sums.score.iter().map(|(bits, r)| (*bits, r.mean())).collect(),
                output: self.pairs.iter().map(|p| (*p, self.value(&sums.output[p]))).collect(),
            })
        };
        self.layers.iter().enumerate().map(layer).collect()
    }

    fn value(&self, ratio: &Ratio) -> f64 {
        match self.measure {
            ErrorMeasure::MeanRelative(_) => ratio.mean(),
            ErrorMeasure::NormRatio => ratio.mean().sqrt(),
        }
    }

    fn head(&self, layer: usize, sample: &AttentionSample, head: usize) -> Result<Sums> {
        let (keys, values) = (sample.keys(), sample.values());
        let (keys, values) = (keys.index_axis(Axis(0), head), values.index_axis(Axis(0), head));
        let quantized = |what: &str, numbers, grouping, bits| {
            let what = format!("layer {layer}, {what} of head {head}");
            simulate(&what, numbers, bits, grouping, self.quantizer, LastGroup::Short)
        };
        let mut sums = Sums::default();
        let mut all_keys = BTreeMap::new();
        let mut all_values = BTreeMap::new();
        for KvPair { key, value } in &self.pairs {
            if !all_keys.contains_key(key) {
                let restored = quantized("keys", keys, self.scheme.key, *key)?;
                sums.key.insert(*key, self.ratio(keys, restored.view()));
                all_keys.insert(*key, restored);
            }
            if !all_values.contains_key(value) {
                let restored = quantized("values", values, self.scheme.value, *value)?;
                sums.value.insert(*value, self.ratio(values, restored.view()));
                all_values.insert(*value, restored);
            }
        }
        let queries = sample.queries();
        let group = queries.dim().0 / sample.keys().dim().0;
        for head in head * group..(head + 1) * group {
            let queries = queries.index_axis(Axis(0), head);
            let scores = attention(queries, keys, sample.visible());
            let output = scores.dot(&values);
            for (key, restored) in &all_keys {
                let hat = attention(queries, restored.view(), sample.visible());
                let score = sums.score.entry(*key).or_default();
                for ((a, b), seen) in
                    scores.outer_iter().zip(hat.outer_iter()).zip(sample.visible())
                {
                    score.above += a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>();
                    score.below += *seen as f64;
                }
                for pair in self.pairs.iter().filter(|p| p.key == *key) {
                    let hat = hat.dot(&all_values[&pair.value]);
                    let ratio = self.ratio(output.view(), hat.view());
                    sums.output.entry(*pair).or_default().merge(&ratio);
                }
            }
        }
        Ok(sums)
    }

    fn ratio(&self, exact: ArrayView2<'_, f64>, hat: ArrayView2<'_, f64>) -> Ratio {
        let mut ratio = Ratio::default();
        for (x, y) in exact.iter().zip(hat) {
            let (above, below) = match self.measure {
                ErrorMeasure::MeanRelative(ZeroPolicy::Skip) if *x == 0.0 => continue,
                ErrorMeasure::MeanRelative(ZeroPolicy::Skip) => ((x - y).abs() / x.abs(), 1.0),
                ErrorMeasure::MeanRelative(ZeroPolicy::Add(eps)) => {
                    ((x - y).abs() / (x.abs() + eps), 1.0)
                }
                ErrorMeasure::NormRatio => ((x - y) * (x - y), x * x),
            };
            ratio.above += above;
            ratio.below += below;
        }
        ratio
    }
}

/// Softmax of `Q Kᵀ/√d` over the keys that each query sees; 0 elsewhere.
fn attention(
    queries: ArrayView2<'_, f64>,
    keys: ArrayView2<'_, f64>,
    visible: &[usize],
) -> Array2<f64> {
    let scale = 1.0 / (keys.ncols() as f64).sqrt();
    let mut scores = queries.dot(&keys.t());
    for (mut row, seen) in scores.outer_iter_mut().zip(visible) {
        let max = row.iter().take(*seen).fold(f64::NEG_INFINITY, |m, x| m.max(*x));
        let mut sum = 0.0;
        for (i, x) in row.iter_mut().enumerate() {
            *x = if i < *seen { ((*x - max) * scale).exp() } else { 0.0 };
            sum += *x;
        }
        row.iter_mut().for_each(|x| *x /= sum);
    }
    scores
}

/// A fraction whose two sums grow.
#[derive(Debug, Clone, Copy, Default)]
struct Ratio {
    above: f64,
    below: f64,
}

impl Ratio {
    fn merge(&mut self, other: &Ratio) {
        self.above += other.above;
        self.below += other.below;
    }

    /// 0 where nothing counted: what is all zeros comes back exactly.
    fn mean(&self) -> f64 {
        if self.below > 0.0 { self.above / self.below } else { 0.0 }
    }
}

#[derive(Debug, Clone, Default)]
struct Sums {
    key: BTreeMap<KvBits, Ratio>,
    value: BTreeMap<KvBits, Ratio>,
    score: BTreeMap<KvBits, Ratio>,
    output: BTreeMap<KvPair, Ratio>,
}

impl Sums {
    fn merge(&mut self, other: &Sums) {
        fn all<K: Ord + Copy>(into: &mut BTreeMap<K, Ratio>, from: &BTreeMap<K, Ratio>) {
            from.iter().for_each(|(k, r)| into.entry(*k).or_default().merge(r));
        }
        all(&mut self.key, &other.key);
        all(&mut self.value, &other.value);
        all(&mut self.score, &other.score);
        all(&mut self.output, &other.output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with numpy 2.4.6 in f64.
    #[test]
    fn scores_and_outputs_are_those_of_numpy() {
        let wave = |tokens: usize, f: &dyn Fn(f64, f64) -> f64| {
            Array2::from_shape_fn((tokens, 4), |(t, d)| f(t as f64, d as f64))
        };
        let keys =
            wave(8, &|t, d| (1.1 * t + 0.9 * d + 0.2).sin() + if d == 2.0 { 4.0 } else { 0.0 });
        let values = wave(8, &|t, d| (0.7 * t + 1.7 * d).cos() + 1.5);
        let queries = wave(2, &|t, d| (0.4 * t - 0.3 * d + 0.1).sin());
        let scores = attention(queries.view(), keys.view(), &[8, 8]);
        let first =
            [0.078748, 0.145172, 0.208312, 0.156801, 0.084450, 0.063997, 0.092394, 0.170126];
        let outputs =
            [[1.492959, 1.310184, 1.555954, 1.675397], [1.553881, 1.439331, 1.461753, 1.570525]];
        for (a, want) in scores.row(0).iter().zip(first) {
            assert!((a - want).abs() < 6e-7, "{a} {want}");
        }
        for (o, want) in scores.dot(&values).iter().zip(outputs.as_flattened()) {
            assert!((o - want).abs() < 6e-7, "{o} {want}");
        }
        // Of the keys that a query does not see it takes nothing.
        let fewer = attention(queries.view(), keys.view(), &[3, 8]);
        assert!(fewer.row(0).iter().skip(3).all(|a| *a == 0.0));
        assert!((fewer.row(0).sum() - 1.0).abs() < 1e-12);
    }
}
