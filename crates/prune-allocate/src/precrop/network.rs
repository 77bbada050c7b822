use prune_core::{Error, LayerId, LayerInfo, LayerKind, Result};

use super::densities::LayerCost;

/// A set of channels that flows between layers of a [`ChannelNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Channels(pub(super) usize);

/// The shapes of a convolutional network, and which layers share channels.
///
/// Built in the order of the data: each layer takes the channels that it reads and returns those
/// that it writes. [`ChannelNetwork::add`] joins the channels of a skip connection, which then have
/// one width. Norms and biases are left out: they follow the channels of their convolution and
/// hardly count.
///
/// ```
/// use prune_allocate::ChannelNetwork;
///
/// let mut net = ChannelNetwork::new();
/// let image = net.input(3)?;
/// let stem = net.conv("stem", image, 16, 3, 32 * 32)?;
/// let inner = net.conv("block.conv1", stem, 16, 3, 32 * 32)?;
/// let outer = net.conv("block.conv2", inner, 16, 3, 32 * 32)?;
/// let sum = net.add(stem, outer)?;
/// let logits = net.linear("fc", sum, 10, 1)?;
/// net.output(logits);
/// let cost = net.cost(&net.full_widths());
/// assert_eq!((cost.params, cost.flops), (432 + 2304 + 2304 + 160, 5040 * 1024 + 160));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct ChannelNetwork {
    sets: Vec<Set>,
    pub(super) layers: Vec<Layer>,
}

/// Channels and what they were joined to.
#[derive(Debug, Clone)]
struct Set {
    size: usize,
    parent: usize,
    pinned: bool,
    joined: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Layer {
    id: LayerId,
    kind: LayerKind,
    pub(super) input: usize,
    pub(super) output: usize,
    /// Whether every channel is filtered by itself; input and output are then one set.
    depthwise: bool,
    /// Weights for one input and one output channel.
    taps: u64,
    /// Places of the output in which each weight is used.
    positions: u64,
}

/// What a network costs at some widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkCost {
    /// Weights of convolutions and linear layers.
    pub params: u64,
    /// Their multiplications for one input.
    pub flops: u64,
}

impl ChannelNetwork {
    /// A network without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The channels of the input, which are never cropped.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0 channels or more than 2³².
    pub fn input(&mut self, channels: usize) -> Result<Channels> {
        let input = self.fresh("input", channels)?;
        self.output(input);
        Ok(input)
    }

    /// A convolution with a square kernel, which computes `positions` places (height times width of
    /// its output); returns its output channels.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for sizes of 0 or above 2³².
    pub fn conv(
        &mut self,
        name: &str,
        input: Channels,
        channels: usize,
        kernel: usize,
        positions: usize,
    ) -> Result<Channels> {
        let output = self.fresh(name, channels)?;
        let taps = square(name, kernel)?;
        self.push(name, LayerKind::Conv2d, (input, output), false, taps, positions)?;
        Ok(output)
    }

    /// A depth-wise convolution, one filter a channel; returns the same channels.
    ///
    /// # Errors
    /// As [`ChannelNetwork::conv`].
    pub fn depthwise(
        &mut self,
        name: &str,
        channels: Channels,
        kernel: usize,
        positions: usize,
    ) -> Result<Channels> {
        let taps = square(name, kernel)?;
        self.push(name, LayerKind::Conv2d, (channels, channels), true, taps, positions)?;
        Ok(channels)
    }

    /// A linear layer that reads `places` numbers of every channel: 1 after global pooling, the
    /// number of pixels after flattening.
    ///
    /// # Errors
    /// As [`ChannelNetwork::conv`].
    pub fn linear(
        &mut self,
        name: &str,
        input: Channels,
        features: usize,
        places: usize,
    ) -> Result<Channels> {
        let output = self.fresh(name, features)?;
        let taps = size(name, places)?;
        self.push(name, LayerKind::Linear, (input, output), false, taps, 1)?;
        Ok(output)
    }

    /// The sum of two sets of channels, which have one width from now on.
    ///
    /// # Errors
    /// [`Error::Shape`] when their numbers differ.
    pub fn add(&mut self, a: Channels, b: Channels) -> Result<Channels> {
        let (a, b) = (self.root(a.0), self.root(b.0));
        if self.sets[a].size != self.sets[b].size {
            return Err(Error::Shape {
                what: "channels of a skip connection".to_string(),
                found: vec![self.sets[b].size],
                expected: vec![self.sets[a].size],
            });
        }
        self.sets[b].parent = a;
        self.sets[a].pinned |= self.sets[b].pinned;
        self.sets[a].joined = true;
        Ok(Channels(a))
    }

    /// Keeps these channels at their width: those of the classifier's output.
    pub fn output(&mut self, channels: Channels) {
        let root = self.root(channels.0);
        self.sets[root].pinned = true;
    }

    /// The layers at the given widths, with the shapes of their weights.
    pub fn layers(&self, widths: &[usize]) -> Vec<LayerInfo> {
        let taps = |layer: &Layer| (layer.taps as f64).sqrt().round() as usize;
        self.layers
            .iter()
            .map(|layer| {
                let (input, output) = self.sides(layer, widths);
                let shape = match layer.kind {
                    LayerKind::Linear => vec![output, input * layer.taps as usize],
                    _ => vec![
                        output,
                        if layer.depthwise { 1 } else { input },
                        taps(layer),
                        taps(layer),
                    ],
                };
                LayerInfo::from_name(layer.id.as_str(), layer.kind, shape)
            })
            .collect()
    }

    /// The width of every set of channels as built, by number; joined sets repeat the width of the
    /// one they are joined to.
    pub fn full_widths(&self) -> Vec<usize> {
        self.sets.iter().map(|s| s.size).collect()
    }

    /// What the network costs at the given widths.
    pub fn cost(&self, widths: &[usize]) -> NetworkCost {
        let mut sum = NetworkCost::default();
        for layer in &self.layers {
            let cost = self.layer_cost(layer, widths);
            sum.params = sum.params.saturating_add(cost.params);
            sum.flops = sum.flops.saturating_add(cost.flops);
        }
        sum
    }

    /// What each layer costs at full width.
    pub fn layer_costs(&self) -> Vec<LayerCost> {
        let widths = self.full_widths();
        self.layers.iter().map(|l| self.layer_cost(l, &widths)).collect()
    }

    fn layer_cost(&self, layer: &Layer, widths: &[usize]) -> LayerCost {
        let (input, output) = self.sides(layer, widths);
        let input = if layer.depthwise { 1 } else { input as u64 };
        let params = input.saturating_mul(output as u64).saturating_mul(layer.taps);
        LayerCost { params, flops: params.saturating_mul(layer.positions) }
    }

    /// Input and output channels of a layer.
    fn sides(&self, layer: &Layer, widths: &[usize]) -> (usize, usize) {
        let width = |set: usize| widths.get(self.root(set)).copied().unwrap_or(0);
        (width(layer.input), width(layer.output))
    }

    /// The sets that stand for all that were joined to them.
    pub(super) fn roots(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|&s| self.sets[s].parent == s).collect()
    }

    /// Whether the channels keep their width.
    pub(super) fn pinned(&self, root: usize) -> bool {
        self.sets[root].pinned
    }

    /// Whether the channels pass a skip connection.
    pub(super) fn joined(&self, root: usize) -> bool {
        self.sets[root].joined
    }

    pub(super) fn root(&self, mut set: usize) -> usize {
        while self.sets[set].parent != set {
            set = self.sets[set].parent;
        }
        set
    }

    fn fresh(&mut self, name: &str, channels: usize) -> Result<Channels> {
        size(name, channels)?;
        let set = self.sets.len();
        self.sets.push(Set { size: channels, parent: set, pinned: false, joined: false });
        Ok(Channels(set))
    }

    fn push(
        &mut self,
        name: &str,
        kind: LayerKind,
        (input, output): (Channels, Channels),
        depthwise: bool,
        taps: u64,
        positions: usize,
    ) -> Result<()> {
        let positions = size(name, positions)?;
        let (input, output) = (input.0, output.0);
        let id = LayerId::new(name);
        self.layers.push(Layer { id, kind, input, output, depthwise, taps, positions });
        Ok(())
    }
}

fn size(name: &str, value: usize) -> Result<u64> {
    if (1..=1 << 32).contains(&(value as u64)) {
        return Ok(value as u64);
    }
    Err(super::densities::out_of_range(&format!("a size of `{name}`"), value, "1 to 2^32"))
}

fn square(name: &str, kernel: usize) -> Result<u64> {
    let kernel = size(name, kernel)?;
    size(name, kernel.saturating_mul(kernel) as usize)
}
