use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::conv::Conv;
use super::layers::{self, Moments};
use super::network::{Node, Op};
use super::{ImageBatch, Network, Size};
use crate::values::{change, with_values};
use crate::{Error, Gradients, Model, Parameters, Result, Tally, cross_entropy};

/// Added to the variance of a batch norm, and what a batch adds to its running statistics:
/// PyTorch's numbers.
const EPS: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

/// Which statistics norms use, and what is done to the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Those of the batch, which the running ones take up.
    Train,
    /// The running ones.
    Evaluate,
    /// None: absolute weights, no biases, norms that do nothing. Values are scaled wherever all
    /// paths meet, so that deep networks stay within f32.
    Flow,
}

/// A [`Network`] with its parameters: forward and backward passes on the CPU.
///
/// The passes are written out rather than recorded by candle, whose convolutions have a slow
/// backward pass and whose graph allocates every activation anew; buffers are reused from step to
/// step. Results have the same bits for any number of threads. Parameters are candle variables.
#[derive(Debug)]
pub struct VisionModel {
    network: Network,
    parameters: Parameters,
    label_smoothing: f64,
    workspace: Mutex<Workspace>,
}

/// Buffers of the last pass.
#[derive(Debug, Default)]
struct Workspace {
    /// Every value, for all images.
    values: Vec<Vec<f32>>,
    /// Statistics of the norms, by node.
    moments: Vec<Moments>,
    /// What values were multiplied by, for [`Mode::Flow`].
    scales: Vec<f32>,
    /// Copies of the parameters of the pass.
    weights: Vec<Vec<f32>>,
    /// Buffers without a use at present.
    spare: Vec<Vec<f32>>,
}

impl Workspace {
    /// A buffer of this length with any content.
    fn take(&mut self, len: usize) -> Vec<f32> {
        let fitting =
            self.spare.iter().position(|b| b.capacity() >= len && b.capacity() <= 2 * len);
        let mut buffer = fitting.map(|at| self.spare.swap_remove(at)).unwrap_or_default();
        buffer.resize(len, 0.0);
        buffer
    }
}

impl VisionModel {
    pub(super) fn new(network: Network, parameters: Parameters) -> Result<Self> {
        if network.nodes.is_empty() {
            let reason = "there are none".to_string();
            return Err(Error::Layer { layer: "layers of the network".to_string(), reason });
        }
        let workspace = Mutex::new(Workspace::default());
        Ok(Self { network, parameters, label_smoothing: 0.0, workspace })
    }

    /// The same model, trained with smoothed labels, 0 ≤ smoothing < 1.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`].
    pub fn with_label_smoothing(self, smoothing: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&smoothing) {
            return Err(Error::out_of_range("label smoothing", smoothing, "0 <= smoothing < 1"));
        }
        Ok(Self { label_smoothing: smoothing, ..self })
    }

    /// The description.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The number of logits.
    pub fn classes(&self) -> usize {
        self.network.sizes.last().map_or(0, |s| s.len())
    }

    /// Logits `(images, classes)` in evaluation mode.
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`] unless `pixels` is a whole number of images.
    pub fn logits(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let mut space = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        self.forward(&mut space, pixels, Mode::Evaluate)?;
        Ok(space.values.last().cloned().unwrap_or_default())
    }

    /// Gradients of any loss in training mode: `loss` sees the logits `(images, classes)` and
    /// returns what it comes to and its gradient by them.
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`]; what `loss` returns.
    pub fn gradients_of(
        &self,
        pixels: &[f32],
        loss: impl FnOnce(&[f32]) -> Result<(Tally, Vec<f32>)>,
    ) -> Result<(Tally, Gradients)> {
        self.differentiate(pixels, Mode::Train, Input::Constant, loss).map(|(t, g, _)| (t, g))
    }

    /// The gradient of the cross-entropy by the pixels, in evaluation mode, as the fast gradient
    /// sign method needs it.
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`].
    pub fn input_gradient(&self, batch: &ImageBatch) -> Result<Vec<f32>> {
        let loss = |logits: &[f32]| cross_entropy(logits, self.classes(), &batch.labels, 0.0);
        let pass =
            self.differentiate(&batch.pixels, Mode::Evaluate, Input::Differentiated, loss)?;
        Ok(pass.2)
    }

    /// The gradients of the sum of all outputs for an input of ones, with absolute weights, no
    /// biases and norms that do nothing: synaptic flow, by the absolute weights. All are multiplied
    /// by one number, unknown but above 0, which keeps deep networks within f32.
    ///
    /// # Errors
    /// What candle reports.
    pub fn synaptic_flow(&self) -> Result<Gradients> {
        let pixels = vec![1.0; self.network.sizes[0].len()];
        let sum = |logits: &[f32]| {
            let sum = logits.iter().map(|l| f64::from(*l)).sum();
            Ok((Tally { sum, count: 1, correct: 0 }, vec![1.0; logits.len()]))
        };
        self.differentiate(&pixels, Mode::Flow, Input::Constant, sum).map(|(_, g, _)| g)
    }

    fn differentiate(
        &self,
        pixels: &[f32],
        mode: Mode,
        input: Input,
        loss: impl FnOnce(&[f32]) -> Result<(Tally, Vec<f32>)>,
    ) -> Result<(Tally, Gradients, Vec<f32>)> {
        let mut space = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        self.forward(&mut space, pixels, mode)?;
        let logits = space.values.last().map(Vec::as_slice).unwrap_or_default();
        let (tally, gradient) = loss(logits)?;
        if gradient.len() != logits.len() {
            return Err(Error::shape("gradient of logits", &[gradient.len()], &[logits.len()]));
        }
        let (gradients, pixels) = self.backward(&mut space, gradient, mode, input)?;
        Ok((tally, gradients, pixels))
    }

    fn forward(&self, space: &mut Workspace, pixels: &[f32], mode: Mode) -> Result<()> {
        let Network { nodes, sizes } = &self.network;
        let images = pixels.len() / sizes[0].len();
        if images == 0 || images * sizes[0].len() != pixels.len() {
            let Size { channels, height, width } = sizes[0];
            let expected = [images.max(1), channels, height, width];
            return Err(Error::shape("pixels", &[pixels.len()], &expected));
        }
        self.copy_parameters(space, mode)?;
        space.values.resize_with(sizes.len(), Vec::new);
        space.moments.resize_with(nodes.len(), Moments::default);
        space.scales.clear();
        space.scales.resize(sizes.len(), 1.0);
        space.values[0].clear();
        space.values[0].extend_from_slice(pixels);
        for (i, node) in nodes.iter().enumerate() {
            let mut out = std::mem::take(&mut space.values[i + 1]);
            out.resize(images * sizes[i + 1].len(), 0.0);
            self.node_forward(space, i, node, mode, &mut out)?;
            if mode == Mode::Flow && self.all_paths_meet(i + 1) {
                let largest = out.iter().fold(0f32, |m, v| m.max(*v));
                let scale = if largest > 0.0 { 1.0 / largest } else { 1.0 };
                out.iter_mut().for_each(|v| *v *= scale);
                space.scales[i + 1] = scale;
            }
            space.values[i + 1] = out;
        }
        Ok(())
    }

    fn node_forward(
        &self,
        space: &mut Workspace,
        i: usize,
        node: &Node,
        mode: Mode,
        out: &mut [f32],
    ) -> Result<()> {
        let (from, to) = (self.network.sizes[node.input], self.network.sizes[i + 1]);
        let x = &space.values[node.input];
        match &node.op {
            Op::Conv { name, kernel, stride, depthwise } => {
                let conv = Conv { from, to, kernel: *kernel, stride: *stride };
                let weight = &space.weights[self.number(name, "weight")?];
                match depthwise {
                    true => conv.depthwise(x, weight, out),
                    false => conv.forward(x, weight, out),
                }
            }
            Op::Norm { name, activation } => {
                if mode == Mode::Flow {
                    out.copy_from_slice(x);
                    return Ok(());
                }
                let (mean, variance) =
                    (self.number(name, "running_mean")?, self.number(name, "running_var")?);
                let moments = match mode {
                    Mode::Train => Moments::measure(x, from, EPS),
                    _ => Moments::of(&space.weights[mean], &space.weights[variance], EPS),
                };
                let scale = &space.weights[self.number(name, "weight")?];
                let shift = &space.weights[self.number(name, "bias")?];
                moments.forward(x, from, (scale, shift), *activation, out);
                if mode == Mode::Train {
                    let count = (x.len() / from.channels) as f32;
                    // Without a second value there is no estimate; PyTorch refuses such batches.
                    let unbiased = count / (count - 1.0).max(1.0);
                    self.track(mean, &moments.mean, 1.0)?;
                    self.track(variance, &moments.variance, unbiased)?;
                }
                space.moments[i] = moments;
            }
            Op::Add { other, activation } => {
                layers::add(x, &space.values[*other], *activation, out);
            }
            Op::MaxPool => layers::max_pool(x, from, to, out),
            Op::MeanPool => layers::mean_pool(x, from.places(), out),
            Op::Linear { name, activation } => {
                let weight = &space.weights[self.number(name, "weight")?];
                let bias = &space.weights[self.number(name, "bias")?];
                layers::linear(x, weight, bias, *activation, out);
            }
        }
        Ok(())
    }

    fn backward(
        &self,
        space: &mut Workspace,
        last: Vec<f32>,
        mode: Mode,
        input: Input,
    ) -> Result<(Gradients, Vec<f32>)> {
        let Network { nodes, sizes } = &self.network;
        let images = space.values[0].len() / sizes[0].len();
        let mut gradients = Gradients::new(self.parameters.len());
        let mut by_value: Vec<Option<Vec<f32>>> = vec![None; sizes.len()];
        by_value[nodes.len()] = Some(last);
        for (i, node) in nodes.iter().enumerate().rev() {
            let Some(mut dy) = by_value[i + 1].take() else { continue };
            if mode == Mode::Flow {
                let scale = space.scales[i + 1];
                dy.iter_mut().for_each(|g| *g *= scale);
            }
            let (from, to) = (sizes[node.input], sizes[i + 1]);
            let wanted = node.input > 0 || input == Input::Differentiated;
            let dx_len = if wanted { images * from.len() } else { 0 };
            match &node.op {
                Op::Conv { name, kernel, stride, depthwise } => {
                    let conv = Conv { from, to, kernel: *kernel, stride: *stride };
                    // A depthwise convolution writes the gradient of its input in any case.
                    let len = if *depthwise { images * from.len() } else { dx_len };
                    let mut dx = space.take(len);
                    let number = self.number(name, "weight")?;
                    let (x, weight) = (&space.values[node.input], &space.weights[number]);
                    let dw = match depthwise {
                        true => conv.depthwise_backward(x, weight, &dy, &mut dx),
                        false => conv.backward(x, weight, &dy, &mut dx),
                    };
                    self.give(&mut gradients, number, dw)?;
                    if wanted {
                        add_to(&mut by_value[node.input], dx, &mut space.spare);
                    }
                    space.spare.push(dy);
                }
                Op::Norm { name, activation } => {
                    if mode != Mode::Flow {
                        let number = self.number(name, "weight")?;
                        let (scale, shift) = space.moments[i].backward(
                            (&space.values[node.input], &space.values[i + 1]),
                            from,
                            &space.weights[number],
                            *activation,
                            mode == Mode::Train,
                            &mut dy,
                        );
                        self.give(&mut gradients, number, scale)?;
                        self.give(&mut gradients, self.number(name, "bias")?, shift)?;
                    }
                    add_to(&mut by_value[node.input], dy, &mut space.spare);
                }
                Op::Add { other, activation } => {
                    layers::mask(*activation, &space.values[i + 1], &mut dy);
                    let mut copy = space.take(dy.len());
                    copy.copy_from_slice(&dy);
                    add_to(&mut by_value[*other], copy, &mut space.spare);
                    add_to(&mut by_value[node.input], dy, &mut space.spare);
                }
                Op::MaxPool => {
                    let mut dx = space.take(images * from.len());
                    layers::max_pool_backward(&space.values[node.input], from, to, &dy, &mut dx);
                    add_to(&mut by_value[node.input], dx, &mut space.spare);
                    space.spare.push(dy);
                }
                Op::MeanPool => {
                    let mut dx = space.take(images * from.len());
                    layers::mean_pool_backward(&dy, from.places(), &mut dx);
                    add_to(&mut by_value[node.input], dx, &mut space.spare);
                }
                Op::Linear { name, activation } => {
                    layers::mask(*activation, &space.values[i + 1], &mut dy);
                    let mut dx = space.take(dx_len);
                    let number = self.number(name, "weight")?;
                    let (dw, db) = layers::linear_backward(
                        &space.values[node.input],
                        &space.weights[number],
                        to.len(),
                        &dy,
                        &mut dx,
                    );
                    self.give(&mut gradients, number, dw)?;
                    if mode != Mode::Flow {
                        self.give(&mut gradients, self.number(name, "bias")?, db)?;
                    }
                    if wanted {
                        add_to(&mut by_value[node.input], dx, &mut space.spare);
                    }
                }
            }
        }
        let pixels = by_value[0].take().unwrap_or_default();
        Ok((gradients, pixels))
    }

    /// Whether every path from the images to the logits passes value `value`: no later layer reads
    /// an earlier one.
    fn all_paths_meet(&self, value: usize) -> bool {
        self.network.nodes[value..].iter().all(|node| {
            let other = match node.op {
                Op::Add { other, .. } => other,
                _ => node.input,
            };
            node.input >= value && other >= value
        })
    }

    fn copy_parameters(&self, space: &mut Workspace, mode: Mode) -> Result<()> {
        space.weights.resize_with(self.parameters.len(), Vec::new);
        for (parameter, copy) in self.parameters.iter().zip(&mut space.weights) {
            with_values(parameter.var(), |values| {
                copy.clear();
                match mode {
                    Mode::Flow if parameter.name().ends_with(".bias") => {
                        copy.resize(values.len(), 0.0);
                    }
                    Mode::Flow => copy.extend(values.iter().map(|v| v.abs())),
                    _ => copy.extend_from_slice(values),
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn number(&self, layer: &str, part: &str) -> Result<usize> {
        let name = format!("{layer}.{part}");
        self.parameters.number(&name).ok_or(Error::UnknownParameter(name))
    }

    fn give(&self, gradients: &mut Gradients, number: usize, values: Vec<f32>) -> Result<()> {
        match self.parameters.iter().nth(number) {
            Some(p) if p.is_trained() => gradients.set_values(number, p.var().dims(), values),
            _ => Ok(()),
        }
    }

    /// Moves a running statistic towards that of a batch.
    fn track(&self, number: usize, batch: &[f32], factor: f32) -> Result<()> {
        let Some(parameter) = self.parameters.iter().nth(number) else { return Ok(()) };
        change(parameter.var(), |running| {
            for (r, b) in running.iter_mut().zip(batch) {
                *r = (1.0 - MOMENTUM) * *r + MOMENTUM * b * factor;
            }
            Ok(())
        })
    }
}

/// Whether the gradient by the images is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Constant,
    Differentiated,
}

/// Adds a gradient to what is there; the buffer that is left over becomes spare.
fn add_to(sum: &mut Option<Vec<f32>>, gradient: Vec<f32>, spare: &mut Vec<Vec<f32>>) {
    match sum {
        None => *sum = Some(gradient),
        Some(sum) => {
            sum.par_chunks_mut(1 << 14)
                .zip(gradient.par_chunks(1 << 14))
                .for_each(|(s, g)| s.iter_mut().zip(g).for_each(|(s, g)| *s += g));
            spare.push(gradient);
        }
    }
}

impl Model for VisionModel {
    type Batch = ImageBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn gradients(&self, batch: &ImageBatch) -> Result<(Tally, Gradients)> {
        let (classes, smoothing) = (self.classes(), self.label_smoothing);
        self.gradients_of(&batch.pixels, |logits| {
            cross_entropy(logits, classes, &batch.labels, smoothing)
        })
    }

    fn evaluate(&self, batch: &ImageBatch) -> Result<Tally> {
        let logits = self.logits(&batch.pixels)?;
        Ok(cross_entropy(&logits, self.classes(), &batch.labels, 0.0)?.0)
    }
}
