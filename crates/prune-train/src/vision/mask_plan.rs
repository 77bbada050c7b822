use candle_core::Tensor;
use ndarray::{Array2, ArrayD, ArrayViewD, IxDyn};
use prune_allocate::{Er, Erk, ErkPlus, Saliency, Survivors, Uniform, UniformPlus, survivors};
use prune_core::{
    Allocator, Budget, LayerId, LayerInfo, LayerStats, Mask, Pattern, Pruner, Scope, ScorePruner,
    ScoredLayer, Seed, Target, select,
};
use prune_importance::{SynFlow, grasp, hessian_gradient, snip, synflow};
use prune_unstructured::Random;

use super::{ImageBatch, VisionModel};
use crate::masks::matrix;
use crate::{Error, Gradients, Masks, Model, Parameters, Result, cross_entropy};

/// How many weights each layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ratios {
    /// The same share everywhere.
    Uniform,
    /// The same, but the first convolution dense and the last layer at least a fifth.
    UniformPlus,
    /// By the input and output channels.
    Er,
    /// By all dimensions.
    Erk,
    /// By all dimensions, the last layer dense.
    ErkPlus,
    /// As many as are among the most salient of the whole network.
    Of(Saliency),
}

/// Which weights of a layer those are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Positions {
    /// Any, by the seed; the counts are exact.
    Random,
    /// Every weight by the toss of a coin, as in the released code of Random Pruning: the counts
    /// are right on average.
    Bernoulli,
    /// The most salient.
    Of(Saliency),
}

/// A mask at initialisation: how many weights every layer keeps, and which.
///
/// Random Pruning is any [`Ratios`] with [`Positions::Random`]; SNIP, GraSP and SynFlow are the
/// ratios and the positions of one saliency. SNIP and GraSP read one batch; SynFlow reads none and
/// takes a hundred rounds.
///
/// Source: Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022.
///
/// ```
/// use prune_core::Seed;
/// use prune_train::Model;
/// use prune_train::vision::{MaskPlan, Network, Positions, Ratios};
///
/// let model = Network::mlp(&[1, 8, 8], &[32], 10)?.build(Seed::new(0))?;
/// let plan = MaskPlan { density: 0.25, seed: Seed::new(0), ..MaskPlan::default() };
/// let masks = plan.masks(&model, None)?;
/// assert_eq!((masks.kept(), masks.weights()), (592, 2368));
/// # Ok::<(), prune_train::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskPlan {
    /// The share of all weights that is kept, above 0 and at most 1.
    pub density: f64,
    /// How many of each layer.
    pub ratios: Ratios,
    /// Which.
    pub positions: Positions,
    /// Where random positions come from, with the name of the layer.
    pub seed: Seed,
}

impl Default for MaskPlan {
    /// The setting of the paper: ERK at 5 %, at random.
    fn default() -> Self {
        Self {
            density: 0.05,
            ratios: Ratios::Erk,
            positions: Positions::Random,
            seed: Seed::new(0),
        }
    }
}

/// What GraSP divides logits by.
const GRASP_TEMPERATURE: f32 = 200.0;

impl MaskPlan {
    /// The masks of a model, whose parameters stay as they are. `batch` is for SNIP and GraSP: 128
    /// images, or ten a class.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for a density; [`Error::Layer`] when a saliency needs a
    /// batch and there is none; what allocators and saliencies report.
    pub fn masks(&self, model: &VisionModel, batch: Option<&ImageBatch>) -> Result<Masks> {
        if !(self.density > 0.0 && self.density <= 1.0) {
            return Err(Error::out_of_range("density", self.density, "0 < density <= 1"));
        }
        let layers = model.parameters().layers();
        let budget = Budget::sparsity(1.0 - self.density)?.with_max_layer_sparsity(1.0)?;
        let total: usize = layers.iter().map(LayerInfo::numel).sum();
        let measure = Measure { model, batch, layers: &layers, density: self.density };
        let scores = match (self.ratios, self.positions) {
            (Ratios::Of(a), Positions::Of(b)) if a == b => Some(measure.saliency(a)?),
            _ => None,
        };
        let counted;
        let survivors_of = |scores: &[ArrayD<f32>]| -> Result<Vec<f64>> {
            let named = layers.iter().zip(scores).map(|(l, s)| (l.id.clone(), s.view()));
            let named: Vec<(LayerId, ArrayViewD<'_, f32>)> = named.collect();
            let kept = survivors(&named, budget.keep_total(total));
            Ok(kept?.into_iter().map(|k| k as f64).collect())
        };
        let allocator: &dyn Allocator<Share = usize> = match self.ratios {
            Ratios::Uniform => &Uniform,
            Ratios::UniformPlus => &UniformPlus::default(),
            Ratios::Er => &Er,
            Ratios::Erk => &Erk,
            Ratios::ErkPlus => &ErkPlus::default(),
            Ratios::Of(saliency) => &Survivors::new(saliency),
        };
        let counts: Vec<f64> = match (self.ratios, &scores) {
            (Ratios::Of(_), Some(scores)) => survivors_of(scores)?,
            (Ratios::Of(saliency), None) => {
                counted = measure.saliency(saliency)?;
                survivors_of(&counted)?
            }
            _ => vec![0.0; layers.len()],
        };
        let scored: Vec<ScoredLayer> = layers
            .iter()
            .zip(counts)
            .map(|(info, score)| ScoredLayer { info: info.clone(), score })
            .collect();
        let kept = allocator.allocate(&scored, &budget)?;
        let scores = match (scores, self.positions) {
            (Some(scores), _) => Some(scores),
            (None, Positions::Of(saliency)) => Some(measure.saliency(saliency)?),
            (None, _) => None,
        };
        let mut masks = Vec::new();
        for (l, (layer, (_, keep))) in layers.iter().zip(kept.iter()).enumerate() {
            let scores = scores.as_ref().map(|s| &s[l]);
            masks.push((layer.id.clone(), self.mask(layer, *keep, scores)?));
        }
        Ok(Masks::new(masks))
    }

    fn mask(&self, layer: &LayerInfo, keep: usize, scores: Option<&ArrayD<f32>>) -> Result<Mask> {
        let (rows, cols) = matrix(&layer.shape);
        let stream = self.seed.stream(layer.id.as_str());
        let target = Target {
            layer: &layer.id,
            pattern: Pattern::Unstructured,
            scope: Scope::PerLayer,
            remove: rows * cols - keep,
            stream: stream.clone(),
        };
        let scores = scores.and_then(|s| s.as_slice());
        match (self.positions, scores) {
            (Positions::Of(_), Some(scores)) => Ok(select(&target, (rows, cols), &|row, out| {
                out.copy_from_slice(&scores[row * cols..][..cols]);
                Ok(())
            })?),
            (Positions::Bernoulli, _) => {
                let mut stream = stream;
                let density = keep as f64 / (rows * cols).max(1) as f64;
                Ok(Mask::from_fn(rows, cols, |_, _| stream.uniform() < density))
            }
            _ => {
                let mut ones = Array2::ones((rows, cols));
                let pruner = ScorePruner(Random);
                Ok(pruner.prune(ones.view_mut(), &LayerStats::default(), &target)?.mask)
            }
        }
    }
}

/// Saliencies of a model.
struct Measure<'a> {
    model: &'a VisionModel,
    batch: Option<&'a ImageBatch>,
    layers: &'a [LayerInfo],
    density: f64,
}

impl Measure<'_> {
    /// The saliency of every weight, by layer. Running statistics and weights are put back.
    fn saliency(&self, saliency: Saliency) -> Result<Vec<ArrayD<f32>>> {
        let parameters = self.model.parameters();
        let before = parameters.snapshot()?;
        let scores = match saliency {
            Saliency::Magnitude => self.each(|_, w| Ok(w.mapv(f32::abs))),
            Saliency::Snip => self.snip(),
            Saliency::GraSp => self.grasp(&before),
            Saliency::SynFlow => self.synflow(),
            other => Err(Error::Layer {
                layer: format!("{other:?}"),
                reason: "this saliency cannot be measured here".to_string(),
            }),
        };
        parameters.restore(&before)?;
        scores
    }

    fn batch(&self) -> Result<&ImageBatch> {
        self.batch.ok_or_else(|| Error::Layer {
            layer: "all layers".to_string(),
            reason: "the saliency reads a batch of images, and none was given".to_string(),
        })
    }

    fn each(
        &self,
        score: impl Fn(&LayerId, ArrayD<f32>) -> Result<ArrayD<f32>>,
    ) -> Result<Vec<ArrayD<f32>>> {
        let weight = |layer: &LayerInfo| {
            let weight = self.model.parameters().get(&layer.id.weight_name())?;
            score(&layer.id, array(weight.var())?)
        };
        self.layers.iter().map(weight).collect()
    }

    fn snip(&self) -> Result<Vec<ArrayD<f32>>> {
        let gradients = self.model.gradients(self.batch()?)?.1;
        self.each(|layer, w| {
            let gradient = of(&gradients, self.model.parameters(), layer)?;
            Ok(snip(layer.as_str(), w.view(), gradient.view())?)
        })
    }

    fn grasp(&self, before: &[Tensor]) -> Result<Vec<ArrayD<f32>>> {
        let parameters = self.model.parameters();
        let gradients = || -> Result<Gradients> {
            let batch = self.batch()?;
            let pass = self.model.gradients_of(&batch.pixels, |logits| {
                let cool: Vec<f32> = logits.iter().map(|l| l / GRASP_TEMPERATURE).collect();
                let (tally, mut gradient) =
                    cross_entropy(&cool, self.model.classes(), &batch.labels, 0.0)?;
                gradient.iter_mut().for_each(|g| *g /= GRASP_TEMPERATURE);
                Ok((tally, gradient))
            });
            Ok(pass?.1)
        };
        let direction = gradients()?;
        // A step of a thousandth of the weights' norm.
        let weights = self.layers.iter().map(|l| {
            let weight = parameters.get(&l.id.weight_name())?.var().as_tensor().sqr()?;
            Ok(f64::from(weight.sum_all()?.to_scalar::<f32>()?))
        });
        let weights = weights.sum::<Result<f64>>()?.sqrt();
        let epsilon = 1e-3 * weights / direction.norm()?.max(f64::MIN_POSITIVE);
        let at = |sign: f64| -> Result<Gradients> {
            for layer in self.layers {
                let name = layer.id.weight_name();
                let number = parameters.number(&name);
                let Some((number, g)) = number.and_then(|n| Some((n, direction.get(n)?))) else {
                    continue;
                };
                let moved = (&before[number] + (g * (sign * epsilon))?)?;
                parameters.set(&name, &moved)?;
            }
            gradients()
        };
        let (above, below) = (at(1.0)?, at(-1.0)?);
        parameters.restore(before)?;
        self.each(|layer, w| {
            let (a, b) = (of(&above, parameters, layer)?, of(&below, parameters, layer)?);
            let hg = hessian_gradient(layer.as_str(), a.view(), b.view(), epsilon)?;
            Ok(grasp(layer.as_str(), w.view(), hg.view())?)
        })
    }

    /// The last saliency of the weights that SynFlow's rounds keep, −1 for the others.
    fn synflow(&self) -> Result<Vec<ArrayD<f32>>> {
        let parameters = self.model.parameters();
        let mut rounds = SynFlow::new(self.layers, self.density)?;
        loop {
            let named = self.layers.iter().zip(rounds.masks());
            let masks = Masks::new(named.map(|(l, m)| (l.id.clone(), m.clone())));
            masks.apply(parameters)?;
            let gradients = self.model.synaptic_flow()?;
            let saliency = self.each(|layer, w| {
                Ok(synflow(layer.as_str(), w.view(), of(&gradients, parameters, layer)?.view())?)
            })?;
            if rounds.is_done() {
                let kept = |(mut s, mask): (ArrayD<f32>, &Mask)| {
                    let cols = mask.cols().max(1);
                    for (i, s) in s.iter_mut().enumerate() {
                        if !mask.is_kept(i / cols, i % cols) {
                            *s = -1.0;
                        }
                    }
                    s
                };
                return Ok(saliency.into_iter().zip(rounds.masks()).map(kept).collect());
            }
            let views: Vec<ArrayViewD<'_, f32>> = saliency.iter().map(|s| s.view()).collect();
            rounds.step(&views)?;
        }
    }
}

/// The gradient of a layer's weight.
fn of(gradients: &Gradients, parameters: &Parameters, layer: &LayerId) -> Result<ArrayD<f32>> {
    let name = layer.weight_name();
    let gradient = parameters.number(&name).and_then(|n| gradients.get(n));
    array(gradient.ok_or_else(|| Error::Layer {
        layer: layer.to_string(),
        reason: "its weight has no gradient: is it frozen?".to_string(),
    })?)
}

fn array(tensor: &Tensor) -> Result<ArrayD<f32>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    ArrayD::from_shape_vec(IxDyn(tensor.dims()), values)
        .map_err(|e| Error::Core(prune_core::Error::external("weight", e)))
}
