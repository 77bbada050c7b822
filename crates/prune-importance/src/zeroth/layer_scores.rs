use std::collections::BTreeMap;

use prune_core::{Error, LayerInfo, Objective, Result, Seed, TensorSource};

use super::noise::{Distribution, Noise, SeededNoise};
use super::perturbed::Perturbed;
use crate::Weighing;

/// What is perturbed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Together {
    /// Every layer by itself: two forward passes a layer and draw.
    #[default]
    Layer,
    /// All layers of a transformer block: two forward passes a block and draw. The score of the
    /// block is shared evenly by its layers, so that their sum is the block's.
    Block,
}

/// ECoFLaP's zeroth-order score: how much a loss moves when the weights of a layer do, by forward
/// passes alone.
///
/// For every layer and draw the layer's weight W is moved along a random direction z, both ways:
///
/// ```text
/// score = mean over draws of |L(W + εz) − L(W − εz)| / 2ε
/// ```
///
/// For small ε this is the mean of |⟨g, z⟩|, and that is √(2/π) times the norm of the gradient: it
/// estimates the length of the gradient of each layer without computing it. Exact for linear and
/// quadratic losses at any ε; the error is O(ε²) otherwise. The released code returns the sum over
/// draws, which the allocation does not tell apart.
///
/// It costs two forward passes a draw and layer (or block, [`Together`]), and the memory of a
/// forward pass: directions are computed while a weight is read ([`Perturbed`]). With d draws the
/// relative spread of a layer's score is about 0.76 / √d; the sum over the layers of a block is
/// steadier.
///
/// Source: Sung, Yoon, Bansal, "ECoFLaP", 2024, section 3.2; Malladi et al., "Fine-Tuning Language
/// Models with Just Forward Passes" (MeZO), 2023.
///
/// ```
/// use prune_core::{LayerInfo, Objective, Result, TensorSource};
/// use prune_importance::ZerothOrder;
/// # use prune_core::{DType, TensorInfo};
/// # struct Zeros(Vec<TensorInfo>);
/// # impl TensorSource for Zeros {
/// #     fn tensors(&self) -> &[TensorInfo] { &self.0 }
/// #     fn read_at(&self, _: &str, _: usize, buf: &mut [u8]) -> Result<()> { buf.fill(0); Ok(()) }
/// # }
/// # let info = |name: &str| TensorInfo { name: name.into(), dtype: DType::F32, shape: vec![4, 4] };
/// # let weights = Zeros(vec![info("a.weight"), info("b.weight")]);
///
/// /// The sum of `a`, and a tenth of the sum of `b`.
/// struct Loss;
/// impl Objective for Loss {
///     fn loss(&mut self, weights: &dyn TensorSource) -> Result<f64> {
///         let sum = |name| Ok::<f64, prune_core::Error>(
///             weights.read_f32(name)?.iter().map(|w| f64::from(*w)).sum());
///         Ok(sum("a.weight")? + 0.1 * sum("b.weight")?)
///     }
/// }
/// let layers = [LayerInfo::linear("a", 4, 4), LayerInfo::linear("b", 4, 4)];
/// let scores = ZerothOrder::default().with_draws(2000)?.scores(
///     &layers, &weights, &mut [&mut Loss], &mut |_, _| ())?;
/// // The gradients have norms 4 and 0.4.
/// assert!((scores[0] / scores[1] - 10.0).abs() < 0.5);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZerothOrder {
    epsilon: f64,
    first_draw: usize,
    draws: usize,
    together: Together,
    weighing: Weighing,
    seed: Seed,
    distribution: Distribution,
}

/// Draws with a loss that is no number, in a row, after which a layer is given up.
const REJECTED: usize = 3;

impl Default for ZerothOrder {
    /// ε = 1e-3, 4 draws, every layer by itself, the plain score, seed 0, normal directions: what
    /// most of the released scripts do.
    fn default() -> Self {
        Self {
            epsilon: 1e-3,
            first_draw: 0,
            draws: 4,
            together: Together::Layer,
            weighing: Weighing::Gradient,
            seed: Seed::new(0),
            distribution: Distribution::Gaussian,
        }
    }
}

impl ZerothOrder {
    /// The same score with another step ε, finite and above 0.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn with_epsilon(self, epsilon: f64) -> Result<Self> {
        check_epsilon(epsilon)?;
        Ok(Self { epsilon, ..self })
    }

    /// The same score with `draws` directions a layer, at least 1.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn with_draws(self, draws: usize) -> Result<Self> {
        check_draws(draws)?;
        Ok(Self { draws, ..self })
    }

    /// The same score with directions numbered from `first` on, 0 by default: draws that are made by
    /// several calls, one a batch of data that is then dropped, are those of one call.
    #[must_use]
    pub fn with_first_draw(self, first: usize) -> Self {
        Self { first_draw: first, ..self }
    }

    /// The same score with other things perturbed at once.
    #[must_use]
    pub fn with_together(self, together: Together) -> Self {
        Self { together, ..self }
    }

    /// The same score weighed by the weights.
    #[must_use]
    pub fn with_weighing(self, weighing: Weighing) -> Self {
        Self { weighing, ..self }
    }

    /// The same score with directions of another seed.
    #[must_use]
    pub fn with_seed(self, seed: Seed) -> Self {
        Self { seed, ..self }
    }

    /// The same score with directions of another distribution.
    #[must_use]
    pub fn with_distribution(self, distribution: Distribution) -> Self {
        Self { distribution, ..self }
    }

    /// The score of every layer, in their order.
    ///
    /// Draw d uses objective d modulo their number, one a batch of calibration data; the two passes
    /// of a draw use the same one. `progress` is told how many of how many passes are done. A draw
    /// whose loss is NaN or infinite is replaced by another. Layers that share their weight
    /// ([`LayerInfo::tie`]) move with it.
    ///
    /// # Errors
    /// [`Error::Infeasible`] without objectives; [`Error::NotFinite`] naming the layers when three
    /// draws in a row gave no number; [`Error::UnknownTensor`]; [`Error::DType`]; what an objective
    /// gives.
    pub fn scores(
        &self,
        layers: &[LayerInfo],
        weights: &dyn TensorSource,
        objectives: &mut [&mut dyn Objective],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<f64>> {
        let noise = SeededNoise::new(self.seed, self.distribution);
        self.scores_along(&noise, layers, weights, objectives, progress)
    }

    /// As [`ZerothOrder::scores`] with directions of the caller's own.
    ///
    /// # Errors
    /// As [`ZerothOrder::scores`].
    pub fn scores_along(
        &self,
        noise: &dyn Noise,
        layers: &[LayerInfo],
        weights: &dyn TensorSource,
        objectives: &mut [&mut dyn Objective],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<f64>> {
        let groups = self.groups(layers);
        let passes = 2 * self.draws * groups.len();
        let mut done = 0;
        let mut scores = vec![0.0; layers.len()];
        for group in &groups {
            let targets: Vec<(String, String)> =
                group.iter().flat_map(|&l| tensors(&layers[l], weights)).collect();
            let mut sum = 0.0;
            for draw in self.first_draw..self.first_draw + self.draws {
                let pair = Pair { weights, targets: &targets, noise, epsilon: self.epsilon };
                let (_, slope) = pair.slope(draw, objectives)?;
                sum += slope.abs();
                done += 2;
                progress(done, passes);
            }
            let mean = sum / self.draws as f64 / group.len() as f64;
            for &l in group {
                scores[l] = self.weighing.of_scalar(mean, &layers[l], weights)?;
            }
        }
        Ok(scores)
    }

    /// Layers that are perturbed at once.
    fn groups(&self, layers: &[LayerInfo]) -> Vec<Vec<usize>> {
        let mut of_block: BTreeMap<usize, usize> = BTreeMap::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (l, layer) in layers.iter().enumerate() {
            let group = match layer.block {
                Some(block) if self.together == Together::Block => {
                    *of_block.entry(block).or_insert(groups.len())
                }
                _ => groups.len(),
            };
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(l);
        }
        groups
    }
}

pub(super) fn check_epsilon(epsilon: f64) -> Result<()> {
    if epsilon.is_finite() && epsilon > 0.0 {
        return Ok(());
    }
    Err(Error::OutOfRange {
        what: "perturbation epsilon".to_string(),
        found: epsilon.to_string(),
        expected: "finite and above 0".to_string(),
    })
}

pub(super) fn check_draws(draws: usize) -> Result<()> {
    if draws > 0 {
        return Ok(());
    }
    Err(Error::OutOfRange {
        what: "perturbation draws".to_string(),
        found: "0".to_string(),
        expected: "at least 1".to_string(),
    })
}

/// The stored tensors of a layer's weight, each with the name under which it draws.
pub(super) fn tensors(layer: &LayerInfo, weights: &dyn TensorSource) -> Vec<(String, String)> {
    let own = layer.id.weight_name();
    let Some(owner) = layer.tie.as_ref().map(|t| t.weight_name()) else {
        return vec![(own.clone(), own)];
    };
    let mut targets = vec![(owner.clone(), owner.clone())];
    if weights.info(&own).is_ok() {
        targets.push((own, owner));
    }
    targets
}

/// Two passes with the targets moved both ways.
pub(super) struct Pair<'a> {
    pub(super) weights: &'a dyn TensorSource,
    pub(super) targets: &'a [(String, String)],
    pub(super) noise: &'a dyn Noise,
    pub(super) epsilon: f64,
}

impl Pair<'_> {
    /// `(L(W + εz) − L(W − εz)) / 2ε` of a draw, and the number of its direction.
    pub(super) fn slope(
        &self,
        draw: usize,
        objectives: &mut [&mut dyn Objective],
    ) -> Result<(u64, f64)> {
        let count = objectives.len();
        if count == 0 {
            return Err(Error::Infeasible("there is no objective to score by".to_string()));
        }
        let objective = &mut objectives[draw % count];
        for attempt in 0..REJECTED {
            // Another attempt has a number that no first attempt has.
            let number = (draw as u64).wrapping_add((attempt as u64) << 48);
            let targets = self.targets.to_vec();
            let up = Perturbed::along(self.weights, targets, self.noise, number, self.epsilon)?;
            let above = objective.loss(&up)?;
            let below = objective.loss(&up.reversed())?;
            let slope = (above - below) / (2.0 * self.epsilon);
            if slope.is_finite() {
                return Ok((number, slope));
            }
        }
        let names: Vec<&str> = self.targets.iter().map(|t| t.0.as_str()).collect();
        Err(Error::NotFinite {
            what: format!("loss with {} perturbed ({REJECTED} draws)", names.join(", ")),
            index: draw,
            value: "NaN or infinite".to_string(),
        })
    }
}
