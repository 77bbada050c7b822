use prune_allocate::{ChannelNetwork, Channels};
use prune_core::Seed;

use super::VisionModel;
use crate::{Error, Init, ParameterKind, Parameters, Result};

/// What follows a norm, a sum or a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// Nothing.
    #[default]
    Linear,
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
}

impl Activation {
    #[inline(always)]
    pub(super) fn of(self, x: f32) -> f32 {
        match self {
            Activation::Linear => x,
            Activation::Relu => relu(x),
            Activation::Relu6 => x.clamp(0.0, 6.0),
        }
    }

    /// Whether the gradient passes where the output is `y`.
    #[inline(always)]
    pub(super) fn passes(self, y: f32) -> bool {
        match self {
            Activation::Linear => true,
            Activation::Relu => y > 0.0,
            Activation::Relu6 => y > 0.0 && y < 6.0,
        }
    }
}

/// Channels, height and width of a value for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Channels, or features after a linear layer.
    pub channels: usize,
    /// Height.
    pub height: usize,
    /// Width.
    pub width: usize,
}

impl Size {
    /// Places of a channel.
    pub fn places(self) -> usize {
        self.height * self.width
    }

    /// Numbers in all.
    pub fn len(self) -> usize {
        self.channels * self.places()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A value that flows through a [`Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value(pub(super) usize);

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) op: Op,
    pub(super) input: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    Conv { name: String, kernel: usize, stride: usize, depthwise: bool },
    Norm { name: String, activation: Activation },
    Add { other: usize, activation: Activation },
    MaxPool,
    MeanPool,
    Linear { name: String, activation: Activation },
}

/// What one layer costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCount {
    /// The layer.
    pub name: String,
    /// Numbers in its weight.
    pub weights: usize,
    /// Numbers in its bias, or in scale and shift of a norm.
    pub vectors: usize,
    /// Multiplications for one image; none are counted for norms and activations.
    pub multiplications: usize,
}

/// The layers of an image classifier and how values flow between them.
///
/// Built in the order of the data; the last value is the logits. One description serves the forward
/// and backward pass ([`Network::build`]), counts ([`Network::counts`]), the widths that PreCrop
/// chooses ([`Network::channels`], [`Network::with_widths`]).
///
/// ```
/// use prune_core::Seed;
/// use prune_train::vision::{Activation, Network};
///
/// let mut net = Network::new([1, 8, 8])?;
/// let x = net.conv("conv", net.input(), 4, 3, 1)?;
/// let x = net.norm("norm", x, Activation::Relu)?;
/// let x = net.mean_pool(x)?;
/// net.linear("fc", x, 10, Activation::Linear)?;
/// assert_eq!(net.parameters(), 36 + 8 + 40 + 10);
/// let model = net.build(Seed::new(0))?;
/// assert_eq!(model.logits(&[0.5; 64])?.len(), 10);
/// # Ok::<(), prune_train::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Network {
    pub(super) nodes: Vec<Node>,
    pub(super) sizes: Vec<Size>,
}

impl Network {
    /// A network without layers, for images of these channels, height and width.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for a size of 0.
    pub fn new([channels, height, width]: [usize; 3]) -> Result<Self> {
        let size = Size { channels, height, width };
        if size.is_empty() {
            return Err(Error::out_of_range("size of an image", 0, "at least 1"));
        }
        Ok(Self { nodes: Vec::new(), sizes: vec![size] })
    }

    /// The images.
    pub fn input(&self) -> Value {
        Value(0)
    }

    /// The value that was made last: the logits of a finished network.
    pub fn last(&self) -> Value {
        Value(self.nodes.len())
    }

    /// The size of a value; `None` for one of another network.
    pub fn size(&self, value: Value) -> Option<Size> {
        self.sizes.get(value.0).copied()
    }

    /// A convolution with a square kernel, padded so that stride 1 keeps the size; no bias.
    ///
    /// # Errors
    /// [`Error::Layer`] for sizes of 0, an even kernel or a name that is taken.
    pub fn conv(
        &mut self,
        name: &str,
        input: Value,
        channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<Value> {
        self.any_conv(name, input, Some(channels), kernel, stride)
    }

    /// A convolution that filters every channel by itself.
    ///
    /// # Errors
    /// As [`Network::conv`].
    pub fn depthwise(
        &mut self,
        name: &str,
        input: Value,
        kernel: usize,
        stride: usize,
    ) -> Result<Value> {
        self.any_conv(name, input, None, kernel, stride)
    }

    fn any_conv(
        &mut self,
        name: &str,
        input: Value,
        channels: Option<usize>,
        kernel: usize,
        stride: usize,
    ) -> Result<Value> {
        let from = self.at(name, input)?;
        if kernel.is_multiple_of(2) || stride == 0 {
            return Err(bad(name, format!("kernel {kernel} is even or stride {stride} is 0")));
        }
        let size = Size {
            channels: channels.unwrap_or(from.channels),
            height: from.height.div_ceil(stride),
            width: from.width.div_ceil(stride),
        };
        let depthwise = channels.is_none();
        let name = self.fresh(name)?;
        self.push(Op::Conv { name, kernel, stride, depthwise }, input, size)
    }

    /// A batch norm, and what follows it.
    ///
    /// # Errors
    /// [`Error::Layer`] for a name that is taken.
    pub fn norm(&mut self, name: &str, input: Value, activation: Activation) -> Result<Value> {
        let size = self.at(name, input)?;
        let name = self.fresh(name)?;
        self.push(Op::Norm { name, activation }, input, size)
    }

    /// The sum of two values, and what follows it.
    ///
    /// # Errors
    /// [`Error::Layer`] for values of different sizes.
    pub fn add(&mut self, a: Value, b: Value, activation: Activation) -> Result<Value> {
        let (left, right) = (self.at("sum", a)?, self.at("sum", b)?);
        if left != right {
            return Err(bad("sum", format!("{left:?} and {right:?} differ")));
        }
        self.push(Op::Add { other: b.0, activation }, a, left)
    }

    /// The largest of every 2 x 2 places.
    ///
    /// # Errors
    /// [`Error::Layer`] for a value of less than 2 x 2.
    pub fn max_pool(&mut self, input: Value) -> Result<Value> {
        let from = self.at("max pool", input)?;
        let size = Size { height: from.height / 2, width: from.width / 2, ..from };
        self.push(Op::MaxPool, input, size)
    }

    /// The mean of all places of each channel.
    ///
    /// # Errors
    /// [`Error::Layer`] for a value of another network.
    pub fn mean_pool(&mut self, input: Value) -> Result<Value> {
        let from = self.at("mean pool", input)?;
        self.push(Op::MeanPool, input, Size { height: 1, width: 1, ..from })
    }

    /// A linear layer with bias over all channels and places, and what follows it.
    ///
    /// # Errors
    /// [`Error::Layer`] for 0 features or a name that is taken.
    pub fn linear(
        &mut self,
        name: &str,
        input: Value,
        features: usize,
        activation: Activation,
    ) -> Result<Value> {
        self.at(name, input)?;
        let name = self.fresh(name)?;
        let size = Size { channels: features, height: 1, width: 1 };
        self.push(Op::Linear { name, activation }, input, size)
    }

    fn at(&self, name: &str, value: Value) -> Result<Size> {
        self.size(value).ok_or_else(|| bad(name, format!("value {} does not exist", value.0)))
    }

    fn fresh(&self, name: &str) -> Result<String> {
        let taken = self.nodes.iter().any(|n| n.op.name() == Some(name));
        if taken {
            return Err(bad(name, "another layer has this name".to_string()));
        }
        Ok(name.to_string())
    }

    fn push(&mut self, op: Op, input: Value, size: Size) -> Result<Value> {
        if size.is_empty() {
            let name = op.name().unwrap_or("pool").to_string();
            return Err(bad(&name, format!("its output would be {size:?}")));
        }
        self.nodes.push(Node { op, input: input.0 });
        self.sizes.push(size);
        Ok(self.last())
    }

    /// What each layer costs, in the order of the data.
    pub fn counts(&self) -> Vec<LayerCount> {
        let count = |(i, node): (usize, &Node)| {
            let (from, to) = (self.sizes[node.input], self.sizes[i + 1]);
            let (weights, vectors, places) = match &node.op {
                Op::Conv { kernel, depthwise, .. } => {
                    let inputs = if *depthwise { 1 } else { from.channels };
                    (to.channels * inputs * kernel * kernel, 0, to.places())
                }
                Op::Norm { .. } => (0, 2 * to.channels, 0),
                Op::Linear { .. } => (to.channels * from.len(), to.channels, 1),
                Op::Add { .. } | Op::MaxPool | Op::MeanPool => return None,
            };
            let name = node.op.name()?.to_string();
            Some(LayerCount { name, weights, vectors, multiplications: weights * places })
        };
        self.nodes.iter().enumerate().filter_map(count).collect()
    }

    /// The number of parameters, biases and norms among them.
    pub fn parameters(&self) -> usize {
        self.counts().iter().map(|c| c.weights + c.vectors).sum()
    }

    /// Multiplications for one image.
    pub fn multiplications(&self) -> usize {
        self.counts().iter().map(|c| c.multiplications).sum()
    }

    /// The channels of the network and which layers share them, for `prune_allocate::Widths`.
    ///
    /// # Errors
    /// What [`ChannelNetwork`] reports.
    pub fn channels(&self) -> Result<ChannelNetwork> {
        let mut net = ChannelNetwork::new();
        let mut values: Vec<Channels> = vec![net.input(self.sizes[0].channels)?];
        for (i, node) in self.nodes.iter().enumerate() {
            let (x, from, to) = (values[node.input], self.sizes[node.input], self.sizes[i + 1]);
            values.push(match &node.op {
                Op::Conv { name, kernel, depthwise: true, .. } => {
                    net.depthwise(name, x, *kernel, to.places())?
                }
                Op::Conv { name, kernel, .. } => {
                    net.conv(name, x, to.channels, *kernel, to.places())?
                }
                Op::Linear { name, .. } => net.linear(name, x, to.channels, from.places())?,
                Op::Add { other, .. } => net.add(x, values[*other])?,
                Op::Norm { .. } | Op::MaxPool | Op::MeanPool => x,
            });
        }
        if let Some(logits) = values.last() {
            net.output(*logits);
        }
        Ok(net)
    }

    /// The same network with the widths of [`Network::channels`] that `prune_allocate::Widths`
    /// chose, thinner or wider.
    ///
    /// # Errors
    /// [`Error::Layer`] when the widths are of another network.
    ///
    /// ```
    /// use prune_allocate::{Limits, Widths};
    /// use prune_train::vision::Network;
    ///
    /// let net = Network::resnet(20, 1.0, 10)?;
    /// let channels = net.channels()?;
    /// let half = 0.5 * channels.cost(&channels.full_widths()).params as f64;
    /// let limits = Limits { params: Some(half), flops: None };
    /// let cropped = net.with_widths(&Widths::default().of(&channels, &limits)?)?;
    /// let weights: usize = cropped.counts().iter().map(|c| c.weights).sum();
    /// assert!(weights as f64 <= half && weights as f64 > 0.98 * half);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_widths(&self, widths: &[usize]) -> Result<Self> {
        let channels = self.channels()?;
        if widths.len() != channels.full_widths().len() {
            let expected = channels.full_widths().len();
            return Err(bad("widths", format!("found {}, expected {expected}", widths.len())));
        }
        let layers = channels.layers(widths);
        let width = |name: &str| {
            let layer = layers.iter().find(|l| l.id.as_str() == name);
            layer.and_then(|l| l.shape.first().copied())
        };
        self.rebuilt(|name, full| width(name).unwrap_or(full))
    }

    /// The same network with the output of every layer, but the last, multiplied by `factor` and
    /// rounded, at least 1.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for a factor that is not above 0.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        positive("factor of the widths", factor)?;
        let last = self.nodes.iter().rev().find_map(|n| n.op.name()).map(str::to_string);
        self.rebuilt(|name, full| match last.as_deref() == Some(name) {
            true => full,
            false => ((full as f64 * factor).round() as usize).max(1),
        })
    }

    /// The same layers for images of another height and width.
    ///
    /// ```
    /// use prune_train::vision::Network;
    /// let net = Network::resnet(20, 1.0, 10)?;
    /// let small = net.for_images(16, 16)?;
    /// assert_eq!(small.parameters(), net.parameters());
    /// assert!(small.multiplications() < net.multiplications() / 3);
    /// assert!(Network::vgg(11, 1.0, 10)?.for_images(16, 16).is_err());
    /// # Ok::<(), prune_train::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Layer`] where a pool or a convolution would be left without a place.
    pub fn for_images(&self, height: usize, width: usize) -> Result<Self> {
        self.built([self.sizes[0].channels, height, width], |_, full| full)
    }

    fn rebuilt(&self, width: impl Fn(&str, usize) -> usize) -> Result<Self> {
        let first = self.sizes[0];
        self.built([first.channels, first.height, first.width], width)
    }

    fn built(&self, input: [usize; 3], width: impl Fn(&str, usize) -> usize) -> Result<Self> {
        let mut net = Network::new(input)?;
        for (i, node) in self.nodes.iter().enumerate() {
            let (x, full) = (Value(node.input), self.sizes[i + 1].channels);
            match &node.op {
                Op::Conv { name, kernel, stride, depthwise: true } => {
                    net.depthwise(name, x, *kernel, *stride)?
                }
                Op::Conv { name, kernel, stride, .. } => {
                    net.conv(name, x, width(name, full), *kernel, *stride)?
                }
                Op::Norm { name, activation } => net.norm(name, x, *activation)?,
                Op::Add { other, activation } => net.add(x, Value(*other), *activation)?,
                Op::MaxPool => net.max_pool(x)?,
                Op::MeanPool => net.mean_pool(x)?,
                Op::Linear { name, activation } => {
                    net.linear(name, x, width(name, full), *activation)?
                }
            };
        }
        Ok(net)
    }

    /// The network with initial parameters: Kaiming normal weights, PyTorch's uniform biases,
    /// norms that do nothing. Each tensor's values depend on the seed and its name.
    ///
    /// # Errors
    /// [`Error::Layer`] for a network without layers.
    pub fn build(&self, seed: Seed) -> Result<VisionModel> {
        let mut parameters = Parameters::default();
        for (i, node) in self.nodes.iter().enumerate() {
            let (from, to) = (self.sizes[node.input], self.sizes[i + 1]);
            match &node.op {
                Op::Conv { name, kernel, depthwise, .. } => {
                    let inputs = if *depthwise { 1 } else { from.channels };
                    let shape = [to.channels, inputs, *kernel, *kernel];
                    let (name, kind) = (format!("{name}.weight"), ParameterKind::Weight);
                    parameters.init(&name, kind, &shape, Init::KaimingNormal, seed)?;
                }
                Op::Linear { name, .. } => {
                    let shape = [to.channels, from.len()];
                    let (weight, kind) = (format!("{name}.weight"), ParameterKind::Weight);
                    parameters.init(&weight, kind, &shape, Init::KaimingNormal, seed)?;
                    let bound = Init::Uniform(1.0 / (from.len() as f64).sqrt());
                    let (bias, kind) = (format!("{name}.bias"), ParameterKind::Vector);
                    parameters.init(&bias, kind, &[to.channels], bound, seed)?;
                }
                Op::Norm { name, .. } => {
                    let (vector, buffer) = (ParameterKind::Vector, ParameterKind::Buffer);
                    for (part, kind, value) in [
                        ("weight", vector, 1.0),
                        ("bias", vector, 0.0),
                        ("running_mean", buffer, 0.0),
                        ("running_var", buffer, 1.0),
                    ] {
                        let (name, init) = (format!("{name}.{part}"), Init::Constant(value));
                        parameters.init(&name, kind, &[to.channels], init, seed)?;
                    }
                }
                Op::Add { .. } | Op::MaxPool | Op::MeanPool => {}
            }
        }
        VisionModel::new(self.clone(), parameters)
    }
}

impl Op {
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Op::Conv { name, .. } | Op::Norm { name, .. } | Op::Linear { name, .. } => Some(name),
            Op::Add { .. } | Op::MaxPool | Op::MeanPool => None,
        }
    }
}

fn bad(layer: &str, reason: String) -> Error {
    Error::Layer { layer: layer.to_string(), reason }
}

/// max(x, 0); what is no number stays so.
#[inline(always)]
pub(super) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// An error unless `value` is finite and above 0.
pub(super) fn positive(what: &str, value: f64) -> Result<()> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::out_of_range(what, value, "finite and above 0")),
    }
}
