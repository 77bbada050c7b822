use ndarray::{ArrayD, IxDyn};
use prune_core::{Error, LayerInfo, Objective, Result, Seed, TensorSource};

use super::layer_scores::{Pair, check_draws, check_epsilon, tensors};
use super::noise::{Distribution, Noise, SeededNoise};

/// Simultaneous perturbation: an estimate of the gradient of every weight from forward passes that
/// move all layers at once.
///
/// ```text
/// g ≈ (1/K) Σ_k (L(W + εz_k) − L(W − εz_k)) / 2ε · z_k
/// ```
///
/// Two forward passes a draw, whatever the number of layers. Only the K slopes are kept: the
/// gradient of a layer is computed when it is asked for ([`SpsaGradient::layer`]), and any
/// first-order score can be taken of it. Unbiased up to O(ε²), but noisy: the error of one entry is
/// about the norm of the whole gradient over √K, so many more draws are needed than for
/// [`ZerothOrder`](crate::ZerothOrder), which asks for a single number a layer.
///
/// Source: Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
/// approximation", 1992. The score `mezo` of ECoFLaP's code is this with one draw a batch.
///
/// ```
/// use prune_core::{LayerInfo, Objective, Result, TensorSource};
/// use prune_importance::Spsa;
/// # use prune_core::{DType, TensorInfo};
/// # struct Zeros(Vec<TensorInfo>);
/// # impl TensorSource for Zeros {
/// #     fn tensors(&self) -> &[TensorInfo] { &self.0 }
/// #     fn read_at(&self, _: &str, _: usize, buf: &mut [u8]) -> Result<()> { buf.fill(0); Ok(()) }
/// # }
/// # let info = |name: &str| TensorInfo { name: name.into(), dtype: DType::F32, shape: vec![1, 2] };
/// # let weights = Zeros(vec![info("a.weight")]);
///
/// /// Three times the first weight less the second.
/// struct Loss;
/// impl Objective for Loss {
///     fn loss(&mut self, weights: &dyn TensorSource) -> Result<f64> {
///         let w = weights.read_f32("a.weight")?;
///         Ok(f64::from(3.0 * w[0] - w[1]))
///     }
/// }
/// let layers = [LayerInfo::linear("a", 1, 2)];
/// let gradient = Spsa::new(1e-2, 500)?.estimate(&layers, &weights, &mut [&mut Loss])?;
/// let g = gradient.layer(&layers[0])?;
/// assert!((g[[0, 0]] - 3.0).abs() < 0.5 && (g[[0, 1]] + 1.0).abs() < 0.5);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spsa {
    epsilon: f64,
    draws: usize,
    seed: Seed,
    distribution: Distribution,
}

impl Spsa {
    /// An estimate by `draws` directions of ±1 and seed 0, with step `epsilon`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `epsilon` is finite and above 0 and there is a draw.
    pub fn new(epsilon: f64, draws: usize) -> Result<Self> {
        check_epsilon(epsilon)?;
        check_draws(draws)?;
        Ok(Self { epsilon, draws, seed: Seed::new(0), distribution: Distribution::Rademacher })
    }

    /// The same estimate with directions of another seed.
    #[must_use]
    pub fn with_seed(self, seed: Seed) -> Self {
        Self { seed, ..self }
    }

    /// The same estimate with directions of another distribution.
    #[must_use]
    pub fn with_distribution(self, distribution: Distribution) -> Self {
        Self { distribution, ..self }
    }

    /// The gradient of the loss at `weights` by the weights of `layers`, which all move at once.
    /// Draw d uses objective d modulo their number.
    ///
    /// # Errors
    /// As [`ZerothOrder::scores`](crate::ZerothOrder::scores).
    pub fn estimate(
        &self,
        layers: &[LayerInfo],
        weights: &dyn TensorSource,
        objectives: &mut [&mut dyn Objective],
    ) -> Result<SpsaGradient> {
        let noise = Box::new(SeededNoise::new(self.seed, self.distribution));
        self.estimate_along(noise, layers, weights, objectives)
    }

    /// As [`Spsa::estimate`] with directions of the caller's own.
    ///
    /// # Errors
    /// As [`Spsa::estimate`].
    pub fn estimate_along(
        &self,
        noise: Box<dyn Noise>,
        layers: &[LayerInfo],
        weights: &dyn TensorSource,
        objectives: &mut [&mut dyn Objective],
    ) -> Result<SpsaGradient> {
        let targets: Vec<_> = layers.iter().flat_map(|l| tensors(l, weights)).collect();
        let pair = Pair { weights, targets: &targets, noise: &*noise, epsilon: self.epsilon };
        let slopes =
            (0..self.draws).map(|draw| pair.slope(draw, objectives)).collect::<Result<_>>()?;
        Ok(SpsaGradient { slopes, noise })
    }
}

/// The gradient that [`Spsa`] estimated: a slope along each direction.
pub struct SpsaGradient {
    /// Numbers of directions and the slopes along them.
    slopes: Vec<(u64, f64)>,
    noise: Box<dyn Noise>,
}

/// Elements of a gradient that are summed together.
const BLOCK: usize = 1 << 14;

impl SpsaGradient {
    /// The estimated gradient of one layer's weight, in its shape. O(draws · weights).
    ///
    /// # Errors
    /// [`Error::NotFinite`] when an entry does not fit an f32.
    pub fn layer(&self, layer: &LayerInfo) -> Result<ArrayD<f32>> {
        let tensor = layer.tie.as_ref().unwrap_or(&layer.id).weight_name();
        let mut gradient = vec![0f32; layer.numel()];
        let (mut sum, mut z) = (vec![0.0; BLOCK], vec![0.0; BLOCK]);
        for (b, part) in gradient.chunks_mut(BLOCK).enumerate() {
            let (sum, z) = (&mut sum[..part.len()], &mut z[..part.len()]);
            sum.fill(0.0);
            for (number, slope) in &self.slopes {
                self.noise.fill(&tensor, *number, b * BLOCK, z);
                sum.iter_mut().zip(&*z).for_each(|(sum, z)| *sum += slope * z);
            }
            let scale = 1.0 / self.slopes.len() as f64;
            part.iter_mut().zip(&*sum).for_each(|(g, sum)| *g = (sum * scale) as f32);
        }
        let what = || format!("estimated gradient of `{tensor}`");
        prune_core::check_finite(&what(), &gradient)?;
        ArrayD::from_shape_vec(IxDyn(&layer.shape), gradient).map_err(|_| Error::Shape {
            what: what(),
            found: vec![layer.numel()],
            expected: layer.shape.clone(),
        })
    }
}
