use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor};
use ndarray::{Array2, ArrayView2};
use prune_core::{LayerId, LayerInfo, LayerKind, Seed, TensorSource};
use prune_train::{ParameterKind, Parameters};

use super::VitConfig;
use super::names::Role;
use crate::{Error, Result};

/// A vision transformer that runs, whose gradients can be had, and that a
/// [`Trainer`](prune_train::Trainer) trains.
///
/// ViT and DeiT (with or without a distillation token) under timm's or transformers' names, in f32
/// on the CPU. Norms before attention and before the multilayer perceptron, learned positions, the
/// exact GELU, and a linear head on the class token. Its [`Parameters`](prune_train::Parameters) have
/// the names of the checkpoint.
///
/// ```no_run
/// use prune_candle::Vit;
/// use prune_checkpoint::Checkpoint;
///
/// let checkpoint = Checkpoint::open("deit_small_patch16_224".as_ref())?;
/// let vit = Vit::load(&checkpoint.config()?, &checkpoint)?;
/// # let images = candle_core::Tensor::zeros((1, 3, 224, 224), candle_core::DType::F32, &candle_core::Device::Cpu)?;
/// let logits = vit.forward(&images)?;
/// let gradients = vit.energy_gradients(&images)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Vit {
    config: VitConfig,
    layers: Vec<LayerInfo>,
    pub(super) parameters: Parameters,
    /// The heads that there are: on the class token and on the distillation token.
    heads: (&'static str, Option<&'static str>),
    pub(super) label_smoothing: f64,
}

/// Deviation of the initial weights.
const INIT_STD: f64 = 0.02;

impl Vit {
    /// The model of a checkpoint.
    ///
    /// # Errors
    /// As [`VitConfig::read`]; [`Error::Core`] naming the first tensor that is missing, of another
    /// shape than the others imply, or not finite.
    pub fn load(config: &serde_json::Value, weights: &dyn TensorSource) -> Result<Self> {
        let config = VitConfig::read(config, weights)?;
        let [both, one] = config.naming.heads();
        let dist = both.1.is_some_and(|head| weights.info(&format!("{head}.weight")).is_ok());
        let heads = if dist { both } else { one };
        Self::build(config, heads, |name, shape| {
            let found = &weights.info(name)?.shape;
            if found != shape {
                return Err(Error::Core(prune_core::Error::Shape {
                    what: name.to_string(),
                    found: found.clone(),
                    expected: shape.to_vec(),
                }));
            }
            Ok(weights.read_f32(name)?)
        })
    }

    /// An untrained model: normal weights of deviation 0.02 cut at two deviations, biases 0, norms
    /// 1, every tensor from its own random stream. One head, on the class token.
    ///
    /// # Errors
    /// [`Error::Config`] naming a size that is 0 or does not divide.
    pub fn init(config: VitConfig, seed: Seed) -> Result<Self> {
        let [_, one] = config.naming.heads();
        Self::build(config, one, |name, shape| {
            let count = shape.iter().product();
            if shape.len() == 1 {
                let norm = name.ends_with(".weight");
                return Ok(vec![if norm { 1.0 } else { 0.0 }; count]);
            }
            let mut stream = seed.stream(name);
            let mut normal = || loop {
                let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
                let x = radius * (std::f64::consts::TAU * stream.uniform()).cos();
                if x.abs() <= 2.0 {
                    return (INIT_STD * x) as f32;
                }
            };
            Ok((0..count).map(|_| normal()).collect())
        })
    }

    fn build(
        config: VitConfig,
        heads: (&'static str, Option<&'static str>),
        mut values: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        config.check()?;
        let layers = layers(&config, heads);
        let mut parameters = Parameters::default();
        for (name, shape) in shapes(&config, heads) {
            let kind = match shape.len() {
                1 => ParameterKind::Vector,
                _ if layers.iter().any(|l| l.id.weight_name() == name) => ParameterKind::Weight,
                _ => ParameterKind::Embedding,
            };
            parameters.push(&name, kind, &shape, values(&name, &shape)?)?;
        }
        Ok(Self { config, layers, parameters, heads, label_smoothing: 0.0 })
    }

    /// The same model, trained on labels of which a part is spread over all classes.
    ///
    /// # Errors
    /// [`Error::Core`]: `OutOfRange` unless 0 ≤ smoothing < 1.
    pub fn with_label_smoothing(self, smoothing: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&smoothing) {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "label smoothing".to_string(),
                found: smoothing.to_string(),
                expected: "0 <= smoothing < 1".to_string(),
            }));
        }
        Ok(Self { label_smoothing: smoothing, ..self })
    }

    /// The configuration.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The layers that can be pruned, in the order in which they run: the convolution that embeds
    /// patches, the linear layers of every block, the head or heads.
    pub fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    /// How often each weight of a layer is used for one image: the patches for the embedding, the
    /// tokens for layers of blocks, 1 for a head. Times the layer's weights, that is its number of
    /// multiplications.
    pub fn positions(&self, layer: &LayerInfo) -> usize {
        match (layer.kind, layer.block) {
            (LayerKind::Conv2d, _) => self.config.patches(),
            (_, Some(_)) => self.config.tokens(),
            _ => 1,
        }
    }

    /// The weight of a layer as a matrix: a convolution is `out_channels x (in_channels · kernel_h ·
    /// kernel_w)`.
    ///
    /// # Errors
    /// [`Error::Core`] for a layer that the model does not have.
    pub fn weight(&self, layer: &LayerId) -> Result<Array2<f32>> {
        matrix(layer, &self.tensor(&layer.weight_name())?)
    }

    /// Replaces the weight of a layer by a matrix as [`Vit::weight`] gives it.
    ///
    /// # Errors
    /// [`Error::Core`] for a layer that the model does not have, or another shape.
    pub fn set_weight(&self, layer: &LayerId, weight: ArrayView2<'_, f32>) -> Result<()> {
        let name = layer.weight_name();
        let shape = self.tensor(&name)?.dims().to_vec();
        let expected = [shape[0], shape[1..].iter().product()];
        if weight.shape() != expected {
            return Err(Error::Core(prune_core::Error::Shape {
                what: name,
                found: weight.shape().to_vec(),
                expected: expected.to_vec(),
            }));
        }
        let values: Vec<f32> = weight.iter().copied().collect();
        Ok(self.parameters.set(&name, &Tensor::from_vec(values, shape, &Device::Cpu)?)?)
    }

    /// Logits `(batch, classes)` of images `(batch, channels, height, width)`, normalised as the
    /// model was trained; with two heads, the mean of theirs. Records what gradients need: call
    /// `detach` on the result and drop it where none are wanted.
    ///
    /// # Errors
    /// [`Error::Candle`] for images of another shape.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let (batch, channels, height, width) = images.dims4()?;
        if (channels, height, width) != (config.channels, config.image_size, config.image_size) {
            return Err(Error::Core(prune_core::Error::Shape {
                what: "images".to_string(),
                found: vec![channels, height, width],
                expected: vec![config.channels, config.image_size, config.image_size],
            }));
        }
        let naming = config.naming;
        let mut x = self.embed(images, batch)?;
        for index in 0..config.layers {
            let [before, after] = naming.norms(index);
            let mixed = self.attention(&self.norm(&x, &before)?, index, batch)?;
            x = (x + mixed)?;
            let inner = self.norm(&x, &after)?;
            let inner = self.linear(&inner, &naming.layer(index, Role::Expand))?.gelu_erf()?;
            x = (x + self.linear(&inner, &naming.layer(index, Role::Contract))?)?;
        }
        let x = self.norm(&x, naming.last_norm())?.reshape((batch, config.tokens(), ()))?;
        let token = |i: usize| Ok::<Tensor, Error>(x.narrow(1, i, 1)?.squeeze(1)?.contiguous()?);
        let logits = self.linear(&token(0)?, self.heads.0)?;
        match self.heads.1 {
            Some(head) => Ok(((logits + self.linear(&token(1)?, head)?)? * 0.5)?),
            None => Ok(logits),
        }
    }

    /// The gradient of the mean square of the logits in every layer's weight, as matrices: what
    /// LPViT ranks blocks by. No labels are needed.
    ///
    /// # Errors
    /// As [`Vit::forward`].
    pub fn energy_gradients(&self, images: &Tensor) -> Result<HashMap<LayerId, Array2<f32>>> {
        let energy = self.forward(images)?.sqr()?.mean_all()?;
        self.layer_gradients(&energy.backward()?)
    }

    /// The gradients of all layers' weights, as matrices, of a loss that was computed by
    /// [`Vit::forward`].
    ///
    /// # Errors
    /// [`Error::Core`] for a layer that the loss does not depend on.
    pub fn layer_gradients(&self, gradients: &GradStore) -> Result<HashMap<LayerId, Array2<f32>>> {
        let mut found = HashMap::with_capacity(self.layers.len());
        for layer in &self.layers {
            let name = layer.id.weight_name();
            let gradient = gradients.get(&self.tensor(&name)?).ok_or_else(|| {
                Error::Core(prune_core::Error::UnknownTensor(format!("gradient of {name}")))
            })?;
            found.insert(layer.id.clone(), matrix(&layer.id, gradient)?);
        }
        Ok(found)
    }

    /// A tensor as the forward pass uses it: no gradient reaches a frozen one.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let unknown = |_| Error::Core(prune_core::Error::UnknownTensor(name.to_string()));
        Ok(self.parameters.get(name).map_err(unknown)?.tensor())
    }

    /// Hidden states `(batch · tokens, width)`: class token, distillation token, patches.
    fn embed(&self, images: &Tensor, batch: usize) -> Result<Tensor> {
        let config = &self.config;
        let (naming, patch, side) =
            (config.naming, config.patch_size, config.image_size / config.patch_size);
        // Patches do not overlap: the convolution is a product with their pixels.
        let pixels = images
            .reshape((batch, config.channels, side, patch, side, patch))?
            .permute((0, 2, 4, 1, 3, 5))?
            .reshape((batch * config.patches(), config.channels * patch * patch))?;
        let weight = self.tensor(&format!("{}.weight", naming.patches()))?;
        let weight = weight.reshape((config.hidden_size, ()))?;
        let bias = self.tensor(&format!("{}.bias", naming.patches()))?;
        let patches = pixels.matmul(&weight.t()?)?.broadcast_add(&bias)?;
        let patches = patches.reshape((batch, config.patches(), config.hidden_size))?;
        let token = |name: &str| -> Result<Tensor> {
            let token = self.tensor(name)?;
            Ok(token.broadcast_as((batch, 1, config.hidden_size))?.contiguous()?)
        };
        let mut parts = vec![token(naming.class_token())?];
        if config.distilled {
            parts.push(token(naming.distillation_token())?);
        }
        parts.push(patches);
        let x = Tensor::cat(&parts, 1)?;
        let x = x.broadcast_add(&self.tensor(naming.positions())?)?;
        Ok(x.reshape((batch * config.tokens(), config.hidden_size))?)
    }

    fn attention(&self, x: &Tensor, index: usize, batch: usize) -> Result<Tensor> {
        let config = &self.config;
        let (naming, width) = (config.naming, config.hidden_size);
        let roles = naming.roles();
        let split = |x: Tensor| -> Result<Tensor> {
            let x = x.reshape((batch, config.tokens(), config.heads, width / config.heads))?;
            Ok(x.transpose(1, 2)?.contiguous()?)
        };
        let [q, k, v] = if roles[0] == Role::Qkv {
            let all = self.linear(x, &naming.layer(index, Role::Qkv))?;
            let part = |i: usize| split(all.narrow(1, i * width, width)?.contiguous()?);
            [part(0)?, part(1)?, part(2)?]
        } else {
            let part = |role| split(self.linear(x, &naming.layer(index, role))?);
            [part(Role::Query)?, part(Role::Key)?, part(Role::Value)?]
        };
        let scale = (width as f64 / config.heads as f64).powf(-0.5);
        let scores = (q.matmul(&k.t()?)? * scale)?;
        let mixed = softmax(&scores)?.matmul(&v)?;
        let mixed = mixed.transpose(1, 2)?.reshape((batch * config.tokens(), width))?;
        self.linear(&mixed, &naming.layer(index, Role::Mix))
    }

    /// `x Wᵀ + b` of `(tokens, in_features)`.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let y = x.matmul(&self.tensor(&format!("{name}.weight"))?.t()?)?;
        Ok(match self.parameters.get(&format!("{name}.bias")) {
            Ok(bias) => y.broadcast_add(&bias.tensor())?,
            Err(_) => y,
        })
    }

    // candle's own norm has no gradient.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normal = centred.broadcast_div(&(variance + self.config.norm_eps)?.sqrt()?)?;
        let scaled = normal.broadcast_mul(&self.tensor(&format!("{name}.weight"))?)?;
        Ok(scaled.broadcast_add(&self.tensor(&format!("{name}.bias"))?)?)
    }
}

/// Softmax over the last dimension; the maximum only guards the exponential, no gradient goes
/// through it.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

fn matrix(layer: &LayerId, tensor: &Tensor) -> Result<Array2<f32>> {
    let rows = tensor.dim(0)?;
    let values = tensor.detach().flatten_all()?.to_vec1::<f32>()?;
    let cols = values.len() / rows.max(1);
    Array2::from_shape_vec((rows, cols), values)
        .map_err(|e| Error::Core(prune_core::Error::external(layer.as_str(), e)))
}

/// Rows and columns of a layer of a block.
fn dims(config: &VitConfig, role: Role) -> (usize, usize) {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    match role {
        Role::Qkv => (3 * width, width),
        Role::Expand => (inner, width),
        Role::Contract => (width, inner),
        Role::Query | Role::Key | Role::Value | Role::Mix => (width, width),
    }
}

fn layers(config: &VitConfig, heads: (&str, Option<&str>)) -> Vec<LayerInfo> {
    let (naming, patch) = (config.naming, config.patch_size);
    let embedding = vec![config.hidden_size, config.channels, patch, patch];
    let mut layers = vec![LayerInfo::from_name(naming.patches(), LayerKind::Conv2d, embedding)];
    for index in 0..config.layers {
        for role in naming.roles() {
            let (rows, cols) = dims(config, *role);
            layers.push(LayerInfo::linear(naming.layer(index, *role), rows, cols));
        }
    }
    for head in std::iter::once(heads.0).chain(heads.1) {
        layers.push(LayerInfo::linear(head, config.classes, config.hidden_size));
    }
    layers
}

/// Names and shapes of all tensors.
fn shapes(config: &VitConfig, heads: (&str, Option<&str>)) -> Vec<(String, Vec<usize>)> {
    let (naming, width) = (config.naming, config.hidden_size);
    let mut all = vec![
        (naming.class_token().to_string(), vec![1, 1, width]),
        (naming.positions().to_string(), vec![1, config.tokens(), width]),
    ];
    if config.distilled {
        all.push((naming.distillation_token().to_string(), vec![1, 1, width]));
    }
    let attention =
        |role: &str| ["qkv", "query", "key", "value"].iter().any(|tail| role.ends_with(tail));
    for layer in layers(config, heads) {
        if config.qkv_bias || !attention(&layer.role) {
            all.push((format!("{}.bias", layer.id), vec![layer.shape[0]]));
        }
        all.push((layer.id.weight_name(), layer.shape));
    }
    let norms = (0..config.layers).flat_map(|i| naming.norms(i));
    for norm in norms.chain([naming.last_norm().to_string()]) {
        all.push((format!("{norm}.weight"), vec![width]));
        all.push((format!("{norm}.bias"), vec![width]));
    }
    all
}
