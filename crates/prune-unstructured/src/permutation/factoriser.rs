use ndarray::{Array2, ArrayD, ArrayView2, Axis, Ix1, Ix2, IxDyn};
use prune_core::{
    Error, Factor, FactorInfo, FactorKind, Factored, Factoriser, LayerStats, Mask, Needs, Pattern,
    Result, Scope, Target, WeightScorer,
};

use super::channels::PermuteOptions;
use super::prune::prune_permuted;

/// A score with channels in an order of their own, as a [`Factoriser`]: the weight is an N:M matrix
/// over permuted input channels. See [`prune_permuted`].
///
/// Two factors: `permuted_core`, `(out_features, in_features)`, is N:M; `permuted_order`,
/// `(in_features)`, is the channel that stands at each of its columns. The weight in stored order
/// is `W[:, order] = core`, and `W x = core x[order]`: no arithmetic beside the N:M product.
///
/// ```
/// use ndarray::array;
/// use prune_core::{Factoriser, LayerId, LayerStats, Pattern, Scope, Seed, Target};
/// use prune_unstructured::{Magnitude, PermuteOptions, Permuted};
///
/// let weight = array![[9.0f32, 8.0, 1.0, 2.0], [7.0, 9.0, 2.0, 1.0]];
/// let layer = LayerId::new("fc");
/// let (pattern, scope) = (Pattern::NM { n: 1, m: 2 }, Scope::PerRow);
/// let target = Target { layer: &layer, pattern, scope, remove: 4, stream: Seed::new(0).stream("fc") };
/// let method = Permuted::new(Magnitude, PermuteOptions::default());
/// let found = method.factorise(weight.view(), &LayerStats::default(), &target)?;
/// assert_eq!(found.weight, array![[9.0, 8.0, 0.0, 0.0], [7.0, 9.0, 0.0, 0.0]]);
/// found.mask.check(pattern)?;
/// assert_eq!(method.product(&found.factors, pattern)?, found.weight);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Permuted<S> {
    scorer: S,
    name: String,
    options: PermuteOptions,
}

const CORE: &str = "permuted_core";
const ORDER: &str = "permuted_order";

impl<S: WeightScorer> Permuted<S> {
    /// `scorer`, on channels in the order that `options` find.
    pub fn new(scorer: S, options: PermuteOptions) -> Self {
        let name = format!("{}-permuted", scorer.name());
        Self { scorer, name, options }
    }
}

impl<S: WeightScorer> Factoriser for Permuted<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn needs(&self) -> Needs {
        self.scorer.needs()
    }

    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        let reason = match (pattern, scope) {
            (Pattern::NM { .. }, Scope::PerRow | Scope::PerLayer) => return Ok(()),
            (Pattern::NM { .. }, _) => "every group removes the same number; use scope `row`",
            _ => "the order of channels changes nothing there; use a pattern such as `2:4`",
        };
        let reason = reason.to_string();
        Err(Error::Unsupported { method: self.name.clone(), pattern, scope, reason })
    }

    fn factors(&self, rows: usize, cols: usize) -> Vec<FactorInfo> {
        let core = FactorInfo { role: CORE, kind: FactorKind::Sparse, shape: vec![rows, cols] };
        let order = FactorInfo { role: ORDER, kind: FactorKind::Indices, shape: vec![cols] };
        vec![core, order]
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        // Weight, scores and their transpose, the core; two masks; the matrix of an assignment.
        17 * rows * cols + cols * cols + 64 * cols + (8 << 20)
    }

    fn product(&self, factors: &[Factor], pattern: Pattern) -> Result<Array2<f32>> {
        let shape = |found: Vec<usize>, expected: Vec<usize>| Error::Shape {
            what: format!("{} factors", self.name),
            found,
            expected,
        };
        let [core, order] = factors else { return Err(shape(vec![factors.len()], vec![2])) };
        let found = core.values.shape().to_vec();
        let Ok(core) = core.values.view().into_dimensionality::<Ix2>() else {
            return Err(shape(vec![found.len()], vec![2]));
        };
        let (rows, cols) = core.dim();
        let order = match order.values.view().into_dimensionality::<Ix1>() {
            Ok(order) if order.len() == cols => order,
            _ => return Err(shape(order.values.shape().to_vec(), vec![cols])),
        };
        Mask::of_nonzeros(core).check(pattern)?;
        let mut weight = Array2::zeros((rows, cols));
        let mut seen = vec![false; cols];
        for (place, channel) in order.iter().enumerate() {
            let at = *channel as usize;
            if at as f32 != *channel || seen.get(at) != Some(&false) {
                return Err(Error::OutOfRange {
                    what: format!("{ORDER}, element {place}"),
                    found: channel.to_string(),
                    expected: format!("each of 0..{cols} once"),
                });
            }
            seen[at] = true;
            weight.column_mut(at).assign(&core.column(place));
        }
        Ok(weight)
    }

    fn factorise(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Factored> {
        self.supports(target.pattern, target.scope)?;
        let mut pruned = weight.to_owned();
        let found = prune_permuted(&self.scorer, pruned.view_mut(), stats, target, &self.options)?;
        let order = found.permutation.order();
        let core = pruned.select(Axis(1), order);
        let kept = &found.pruned.mask;
        let (rows, cols) = pruned.dim();
        let mask = Mask::from_fn(rows, cols, |r, c| kept.is_kept(r, order[c]));
        let indices = ArrayD::from_shape_fn(IxDyn(&[cols]), |i| order[i[0]] as f32);
        Ok(Factored {
            weight: pruned,
            parameters: rows * cols - target.remove + cols,
            factors: vec![
                Factor { role: CORE, kind: FactorKind::Sparse, values: core.into_dyn() },
                Factor { role: ORDER, kind: FactorKind::Indices, values: indices },
            ],
            mask,
            loss: None,
            report: found.pruned.report,
        })
    }
}
