use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor, Var};
use prune_core::{LayerId, LayerInfo, LayerKind, Seed, check_finite};

use crate::{Error, Result};

/// What a parameter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParameterKind {
    /// The weight of a linear layer or a convolution: what is pruned and decays.
    Weight,
    /// A table of vectors.
    Embedding,
    /// A low-rank addition to a weight.
    Adapter,
    /// A bias, or the scale of a norm.
    Vector,
    /// Statistics that the forward pass keeps, such as the running mean of a batch norm: never
    /// trained by gradients.
    Buffer,
}

/// One named tensor of a model.
#[derive(Debug)]
pub struct Parameter {
    name: String,
    kind: ParameterKind,
    var: Var,
    frozen: AtomicBool,
}

impl Parameter {
    /// Its name in a checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub fn kind(&self) -> ParameterKind {
        self.kind
    }

    /// The tensor as the forward pass uses it: no gradient reaches a frozen one or a buffer.
    pub fn tensor(&self) -> Tensor {
        match self.is_trained() {
            true => self.var.as_tensor().clone(),
            false => self.var.as_tensor().detach(),
        }
    }

    /// The variable that holds the values.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Whether gradients train it now.
    pub fn is_trained(&self) -> bool {
        self.kind != ParameterKind::Buffer && !self.frozen.load(Ordering::Relaxed)
    }

    /// Keeps gradients away from it, or lets them in again.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }
}

/// The parameters and buffers of a model, in the order in which they were added.
///
/// Values are f32 on the CPU. Initial values depend on the seed and the parameter's name alone.
///
/// ```
/// use prune_core::Seed;
/// use prune_train::{Init, ParameterKind, Parameters};
///
/// let mut parameters = Parameters::default();
/// parameters.init("fc.weight", ParameterKind::Weight, &[2, 3], Init::KaimingNormal, Seed::new(0))?;
/// parameters.init("fc.bias", ParameterKind::Vector, &[2], Init::Constant(0.0), Seed::new(0))?;
/// assert_eq!(parameters.trained(), 8);
/// parameters.get("fc.bias")?.freeze(true);
/// assert_eq!(parameters.trained(), 6);
/// # Ok::<(), prune_train::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
    index: HashMap<String, usize>,
}

/// Initial values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// This number.
    Constant(f32),
    /// Normal of deviation √(2 / fan-in), where the fan-in is the product of all dimensions but
    /// the first (He et al. 2015).
    KaimingNormal,
    /// Normal of deviation √(2 / (fan-in + fan-out)) (Glorot and Bengio 2010).
    XavierNormal,
    /// Uniform within ±bound.
    Uniform(f64),
    /// Normal of this deviation.
    Normal(f64),
}

impl Parameters {
    /// Adds a parameter with these values; returns its number.
    ///
    /// # Errors
    /// [`prune_core::Error::NotFinite`]; [`Error::Layer`] for a name that is taken or values that
    /// do not fill the shape.
    pub fn push(
        &mut self,
        name: &str,
        kind: ParameterKind,
        shape: &[usize],
        values: Vec<f32>,
    ) -> Result<usize> {
        check_finite(name, &values)?;
        let layer = |reason: String| Error::Layer { layer: name.to_string(), reason };
        if values.len() != shape.iter().product::<usize>() {
            return Err(layer(format!("{} values do not fill {shape:?}", values.len())));
        }
        let at = self.list.len();
        if self.index.contains_key(name) {
            return Err(layer("another parameter has this name".to_string()));
        }
        let var = Var::from_vec(values, shape, &Device::Cpu)?;
        let frozen = AtomicBool::new(false);
        self.index.insert(name.to_string(), at);
        self.list.push(Parameter { name: name.to_string(), kind, var, frozen });
        Ok(at)
    }

    /// Adds a parameter with initial values of its own stream; returns its number.
    ///
    /// # Errors
    /// As [`Parameters::push`].
    pub fn init(
        &mut self,
        name: &str,
        kind: ParameterKind,
        shape: &[usize],
        init: Init,
        seed: Seed,
    ) -> Result<usize> {
        self.push(name, kind, shape, init.values(shape, seed, name))
    }

    /// The parameter of this name.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn get(&self, name: &str) -> Result<&Parameter> {
        let unknown = || Error::UnknownParameter(name.to_string());
        self.number(name).and_then(|at| self.list.get(at)).ok_or_else(unknown)
    }

    /// The number of the parameter of this name.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// All parameters, buffers among them.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.list.iter()
    }

    /// How many parameters there are, buffers among them.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many numbers are trained now.
    pub fn trained(&self) -> usize {
        self.iter().filter(|p| p.is_trained()).map(|p| p.var.elem_count()).sum()
    }

    /// How many numbers can be trained: all but the buffers.
    pub fn count(&self) -> usize {
        let trainable = self.iter().filter(|p| p.kind != ParameterKind::Buffer);
        trainable.map(|p| p.var.elem_count()).sum()
    }

    /// The layers whose weights can be pruned, in the order of the parameters: convolutions have
    /// four dimensions, linear layers two. A layer's parameter is named `LAYER.weight`.
    pub fn layers(&self) -> Vec<LayerInfo> {
        self.iter()
            .filter(|p| p.kind == ParameterKind::Weight && p.name.ends_with(".weight"))
            .map(|p| {
                let kind = match p.var.rank() {
                    4 => LayerKind::Conv2d,
                    _ => LayerKind::Linear,
                };
                let id = LayerId::from_tensor(&p.name);
                LayerInfo::from_name(id.as_str(), kind, p.var.dims().to_vec())
            })
            .collect()
    }

    /// Gives a parameter new values of the same shape.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`], [`prune_core::Error::Shape`].
    pub fn set(&self, name: &str, values: &Tensor) -> Result<()> {
        let parameter = self.get(name)?;
        if parameter.var.dims() != values.dims() {
            return Err(Error::shape(name, values.dims(), parameter.var.dims()));
        }
        // A copy, so that later changes in place stay with this parameter.
        Ok(parameter.var.set(&values.copy()?)?)
    }

    /// Copies of all values, to go back to with [`Parameters::restore`].
    ///
    /// # Errors
    /// What candle reports.
    pub fn snapshot(&self) -> Result<Vec<Tensor>> {
        Ok(self.iter().map(|p| p.var.as_tensor().copy()).collect::<candle_core::Result<_>>()?)
    }

    /// Takes up values from [`Parameters::snapshot`].
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`] for values of another model.
    pub fn restore(&self, snapshot: &[Tensor]) -> Result<()> {
        if snapshot.len() != self.len() {
            return Err(Error::shape("parameters of a snapshot", &[snapshot.len()], &[self.len()]));
        }
        self.iter().zip(snapshot).try_for_each(|(p, values)| self.set(&p.name, values))
    }
}

impl Init {
    /// The values of a parameter of this shape; its stream is that of `name`.
    fn values(self, shape: &[usize], seed: Seed, name: &str) -> Vec<f32> {
        let count: usize = shape.iter().product();
        let fan_in = shape.iter().skip(1).product::<usize>().max(1) as f64;
        let receptive = shape.iter().skip(2).product::<usize>() as f64;
        let fan_out = shape.first().copied().unwrap_or(1) as f64 * receptive;
        let mut stream = seed.stream(name);
        let mut normal = |deviation: f64| -> Vec<f32> {
            let mut values = Vec::with_capacity(count + 1);
            while values.len() < count {
                // Box and Muller.
                let radius = deviation * (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
                let angle = std::f64::consts::TAU * stream.uniform();
                values.push((radius * angle.cos()) as f32);
                values.push((radius * angle.sin()) as f32);
            }
            values.truncate(count);
            values
        };
        match self {
            Init::Constant(value) => vec![value; count],
            Init::KaimingNormal => normal((2.0 / fan_in).sqrt()),
            Init::XavierNormal => normal((2.0 / (fan_in + fan_out)).sqrt()),
            Init::Normal(deviation) => normal(deviation),
            Init::Uniform(bound) => {
                (0..count).map(|_| (bound * (2.0 * stream.uniform() - 1.0)) as f32).collect()
            }
        }
    }
}
