use std::collections::BTreeMap;

use ndarray::ArrayViewMut2;
use prune_core::{LayerId, Mask};

use crate::values::change;
use crate::{Error, Gradients, Parameters, Result};

/// Which weights of a model are kept, by layer; layers without a mask are dense.
///
/// [`Trainer`](crate::Trainer) zeroes the gradients of masked weights before it measures their norm
/// and the weights themselves after every step: they are exactly zero under every optimiser, with
/// momentum and decay. A weight of any shape is seen as a matrix of its first dimension by the
/// others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masks {
    by_layer: BTreeMap<LayerId, Mask>,
}

impl Masks {
    /// These masks, each of the layer that it stands with.
    pub fn new(masks: impl IntoIterator<Item = (LayerId, Mask)>) -> Self {
        Self { by_layer: masks.into_iter().collect() }
    }

    /// The mask that keeps what is not zero in the weights now.
    ///
    /// # Errors
    /// What candle reports.
    pub fn of_nonzeros(parameters: &Parameters) -> Result<Self> {
        let mut masks = Self::default();
        for layer in parameters.layers() {
            let weight = parameters.get(&layer.id.weight_name())?.var();
            let (rows, cols) = matrix(weight.dims());
            let values = weight.flatten_all()?.to_vec1::<f32>()?;
            let mask = Mask::from_fn(rows, cols, |r, c| values[r * cols + c] != 0.0);
            masks.by_layer.insert(layer.id, mask);
        }
        Ok(masks)
    }

    /// The mask of a layer.
    pub fn get(&self, layer: &LayerId) -> Option<&Mask> {
        self.by_layer.get(layer)
    }

    /// All masks, sorted by layer.
    pub fn iter(&self) -> impl Iterator<Item = (&LayerId, &Mask)> {
        self.by_layer.iter()
    }

    /// Whether no layer has a mask.
    pub fn is_empty(&self) -> bool {
        self.by_layer.is_empty()
    }

    /// How many weights are kept.
    pub fn kept(&self) -> usize {
        self.by_layer.values().map(Mask::kept).sum()
    }

    /// How many weights there are in layers with a mask.
    pub fn weights(&self) -> usize {
        self.by_layer.values().map(|m| m.rows() * m.cols()).sum()
    }

    /// Zeroes the masked weights.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`], [`prune_core::Error::Shape`] naming the layer.
    pub fn apply(&self, parameters: &Parameters) -> Result<()> {
        for (layer, mask) in &self.by_layer {
            let var = parameters.get(&layer.weight_name())?.var();
            check(layer, mask, var.dims())?;
            change(var, |values| zero(mask, values))?;
        }
        Ok(())
    }

    /// Zeroes the gradients of masked weights.
    ///
    /// # Errors
    /// As [`Masks::apply`].
    pub fn apply_to(&self, gradients: &Gradients, parameters: &Parameters) -> Result<()> {
        for (layer, mask) in &self.by_layer {
            let name = layer.weight_name();
            let number = parameters.number(&name).ok_or(Error::UnknownParameter(name))?;
            if let Some(gradient) = gradients.get(number) {
                check(layer, mask, gradient.dims())?;
                change(gradient, |values| zero(mask, values))?;
            }
        }
        Ok(())
    }
}

/// Rows and columns of a weight of any shape.
pub(crate) fn matrix(shape: &[usize]) -> (usize, usize) {
    let rows = shape.first().copied().unwrap_or(1);
    (rows, shape.iter().skip(1).product())
}

fn check(layer: &LayerId, mask: &Mask, shape: &[usize]) -> Result<()> {
    let (rows, cols) = matrix(shape);
    if (mask.rows(), mask.cols()) == (rows, cols) {
        return Ok(());
    }
    Err(Error::shape(format!("mask of `{layer}`"), &[mask.rows(), mask.cols()], &[rows, cols]))
}

fn zero(mask: &Mask, values: &mut [f32]) -> Result<()> {
    let (shape, len) = ((mask.rows(), mask.cols()), values.len());
    let view = ArrayViewMut2::from_shape(shape, values)
        .map_err(|_| Error::shape("masked weight", &[len], &[shape.0, shape.1]))?;
    Ok(mask.apply(view)?)
}
