use ndarray::ArrayViewD;
use prune_core::{
    Error, GlobalSelector, LayerId, LayerInfo, Mask, Pattern, Result, Scope, Seed, Target, select,
};

use crate::checks::same_shape;

/// SynFlow's rounds: masks that get sparser step by step, each chosen from saliencies that the
/// caller computes with the mask before.
///
/// Round t of T keeps a fraction `ρ^(t/T)` of all weights, those of highest saliency in the whole
/// network; of equal ones, later layers and higher indices stay. A weight that is gone does not
/// come back. With T = 100 no layer is emptied at any density that leaves it a weight, where a
/// single round may.
///
/// Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving
/// synaptic flow", 2020, algorithm 1.
///
/// ```
/// use ndarray::{Array2, array};
/// use prune_core::LayerInfo;
/// use prune_importance::{SynFlow, synflow};
///
/// // y = b (a x): R is the sum over i of |b_i| |a_i|, for an input of 1.
/// let (a, b) = (array![[1.0], [-4.0], [2.0], [3.0]], array![[2.0, 1.0, -0.1, 1.0]]);
/// let layers = [LayerInfo::linear("a", 4, 1), LayerInfo::linear("b", 1, 4)];
/// let mut rounds = SynFlow::new(&layers, 0.5)?;
/// while !rounds.is_done() {
///     let masked = |w: &Array2<f32>, l: usize| {
///         let mut w = w.mapv(f32::abs);
///         rounds.masks()[l].apply(w.view_mut()).map(|()| w)
///     };
///     // Each weight's gradient is the other layer's weight.
///     let (a, b) = (masked(&a, 0)?, masked(&b, 1)?);
///     let saliency = [synflow("a", a.view(), b.t())?, synflow("b", b.view(), a.t())?];
///     rounds.step(&[saliency[0].view().into_dyn(), saliency[1].view().into_dyn()])?;
/// }
/// // The strongest paths stay, whole.
/// assert_eq!(rounds.kept(), [2, 2]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SynFlow {
    layers: Vec<LayerInfo>,
    masks: Vec<Mask>,
    density: f64,
    rounds: usize,
    round: usize,
}

impl SynFlow {
    /// The rounds of the paper.
    pub const ROUNDS: usize = 100;

    /// A hundred rounds down to `density`, `0 < density <= 1`, with all weights kept so far. A
    /// weight of any shape is seen as a matrix of its first dimension by the others.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a density, and for a weight without dimensions.
    pub fn new(layers: &[LayerInfo], density: f64) -> Result<Self> {
        if !(density > 0.0 && density <= 1.0) {
            return Err(out_of_range("density", density, "0 < density <= 1"));
        }
        let masks = layers.iter().map(|layer| {
            let rows = *layer.shape.first().ok_or_else(|| {
                out_of_range(&format!("shape of `{}`", layer.id), "none", "one dimension or more")
            })?;
            Ok(Mask::all_kept(rows, layer.shape[1..].iter().product()))
        });
        Ok(Self {
            masks: masks.collect::<Result<_>>()?,
            layers: layers.to_vec(),
            density,
            rounds: Self::ROUNDS,
            round: 0,
        })
    }

    /// The same in another number of rounds, at least 1.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn with_rounds(self, rounds: usize) -> Result<Self> {
        match rounds {
            0 => Err(out_of_range("SynFlow rounds", 0, "at least 1")),
            _ => Ok(Self { rounds, ..self }),
        }
    }

    /// Whether all rounds are done.
    pub fn is_done(&self) -> bool {
        self.round == self.rounds
    }

    /// How many rounds are done.
    pub fn round(&self) -> usize {
        self.round
    }

    /// The mask of every layer so far.
    pub fn masks(&self) -> &[Mask] {
        &self.masks
    }

    /// How many weights every layer keeps so far: what
    /// `prune_allocate::Survivors` reads.
    pub fn kept(&self) -> Vec<usize> {
        self.masks.iter().map(Mask::kept).collect()
    }

    /// Does one round with the saliencies of all layers ([`synflow`](crate::synflow)), computed
    /// with the weights that are gone set to 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when a saliency has another shape than its weight, or there are more or
    /// fewer; [`Error::NotFinite`] naming the layer (scale the gradients down);
    /// [`Error::OutOfRange`] for a negative saliency or when all rounds are done.
    pub fn step(&mut self, saliencies: &[ArrayViewD<'_, f32>]) -> Result<()> {
        if self.is_done() {
            return Err(out_of_range(
                "SynFlow round",
                self.round + 1,
                "no more than were asked for",
            ));
        }
        same_shape("saliencies of the layers", &[self.layers.len()], &[saliencies.len()])?;
        let mut scores: Vec<Vec<f32>> = Vec::with_capacity(saliencies.len());
        for ((layer, mask), saliency) in self.layers.iter().zip(&self.masks).zip(saliencies) {
            same_shape(&format!("saliency of `{}`", layer.id), &layer.shape, saliency.shape())?;
            let mut values: Vec<f32> = saliency.iter().copied().collect();
            if let Some(v) = values.iter().find(|v| **v < 0.0) {
                return Err(out_of_range(&format!("saliency of `{}`", layer.id), v, "at least 0"));
            }
            // Below every saliency: what is gone goes first.
            let cols = mask.cols().max(1);
            for (i, value) in values.iter_mut().enumerate() {
                if !mask.is_kept(i / cols, i % cols) {
                    *value = -1.0;
                }
            }
            scores.push(values);
        }
        let sizes: Vec<(LayerId, usize)> =
            self.layers.iter().zip(&scores).map(|(l, s)| (l.id.clone(), s.len())).collect();
        let total: usize = scores.iter().map(Vec::len).sum();
        let keep = self.density.powf((self.round + 1) as f64 / self.rounds as f64);
        let remove = ((1.0 - keep) * total as f64 + 1e-9) as usize;
        let mut selector = GlobalSelector::new(sizes, remove)?;
        while !selector.is_done() {
            for (l, scores) in scores.iter().enumerate() {
                selector.feed(l, scores)?;
            }
            selector.end_pass()?;
        }
        let removed = selector.finish()?.removed;
        for (((layer, mask), scores), remove) in
            self.layers.iter().zip(&mut self.masks).zip(&scores).zip(removed)
        {
            let cols = mask.cols();
            let target = Target {
                layer: &layer.id,
                pattern: Pattern::Unstructured,
                scope: Scope::PerLayer,
                remove,
                stream: Seed::new(0).stream(layer.id.as_str()),
            };
            *mask = select(&target, (mask.rows(), cols), &|row, out| {
                out.copy_from_slice(&scores[row * cols..(row + 1) * cols]);
                Ok(())
            })?;
        }
        self.round += 1;
        Ok(())
    }
}

fn out_of_range(what: &str, found: impl std::fmt::Display, expected: &str) -> Error {
    Error::OutOfRange {
        what: what.to_string(),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}
