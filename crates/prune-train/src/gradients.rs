use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::values::{change, update, with_values};
use crate::{Error, Parameters, Result};

/// The gradients of a loss by the parameters of a model, in their order; none for those that are
/// frozen or play no part.
#[derive(Debug, Default)]
pub struct Gradients {
    list: Vec<Option<Tensor>>,
}

impl Gradients {
    /// No gradients yet, for so many parameters.
    pub fn new(parameters: usize) -> Self {
        Self { list: vec![None; parameters] }
    }

    /// The gradients of `loss`, by back-propagation through candle's graph.
    ///
    /// # Errors
    /// What candle reports.
    pub fn of(loss: &Tensor, parameters: &Parameters) -> Result<Self> {
        Self::take(&mut loss.backward()?, parameters)
    }

    /// Takes the gradients of the parameters out of a store.
    ///
    /// # Errors
    /// What candle reports.
    pub fn take(store: &mut GradStore, parameters: &Parameters) -> Result<Self> {
        let take = |var: &candle_core::Var| store.remove(var.as_tensor());
        let list = parameters.iter().map(|p| p.var()).map(take);
        let whole = |g: Option<Tensor>| g.map(|g| g.contiguous()).transpose();
        Ok(Self { list: list.map(whole).collect::<candle_core::Result<_>>()? })
    }

    /// The gradient of parameter `number`.
    pub fn get(&self, number: usize) -> Option<&Tensor> {
        self.list.get(number).and_then(Option::as_ref)
    }

    /// Takes the gradient of parameter `number` out, so that its memory can go once it is used.
    pub fn remove(&mut self, number: usize) -> Option<Tensor> {
        self.list.get_mut(number).and_then(Option::take)
    }

    /// Adds to the gradient of parameter `number`. A first one is kept as it is, and changed in
    /// place by [`Gradients::scale`] and [`Gradients::clip`]: give a copy of what is used elsewhere.
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`] for a gradient of another shape; [`Error::UnknownParameter`].
    pub fn add(&mut self, number: usize, gradient: Tensor) -> Result<()> {
        let unknown = || Error::UnknownParameter(format!("number {number}"));
        let slot = self.list.get_mut(number).ok_or_else(unknown)?;
        match slot {
            Some(sum) => update("gradient", sum, &gradient, |sum, values| {
                sum.par_chunks_mut(CHUNK)
                    .zip(values.par_chunks(CHUNK))
                    .for_each(|(s, v)| s.iter_mut().zip(v).for_each(|(s, v)| *s += v));
                Ok(())
            })?,
            None => *slot = Some(gradient),
        }
        Ok(())
    }

    /// Adds all gradients of `other`.
    ///
    /// # Errors
    /// As [`Gradients::add`].
    pub fn add_all(&mut self, other: Gradients) -> Result<()> {
        let present = other.list.into_iter().enumerate().filter_map(|(i, g)| Some((i, g?)));
        present.into_iter().try_for_each(|(i, g)| self.add(i, g))
    }

    /// Multiplies all gradients by a number.
    ///
    /// # Errors
    /// What candle reports.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        let factor = factor as f32;
        self.list.iter().flatten().try_for_each(|g| {
            change(g, |values| {
                values
                    .par_chunks_mut(CHUNK)
                    .for_each(|chunk| chunk.iter_mut().for_each(|v| *v *= factor));
                Ok(())
            })
        })
    }

    /// The Euclidean norm of all gradients together, in f64; sums run in a fixed order.
    ///
    /// # Errors
    /// What candle reports.
    pub fn norm(&self) -> Result<f64> {
        let squares = self.list.iter().flatten().map(|g| {
            with_values(g, |values| {
                let chunks: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_squares).collect();
                Ok(chunks.iter().sum::<f64>())
            })
        });
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }

    /// Scales the gradients down so that their norm is at most `most`, as PyTorch's
    /// `clip_grad_norm_` does; returns the norm before.
    ///
    /// # Errors
    /// What candle reports.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use prune_train::Gradients;
    /// let mut gradients = Gradients::new(1);
    /// gradients.add(0, Tensor::new(&[3f32, 4.0], &Device::Cpu)?)?;
    /// assert_eq!(gradients.clip(1.0)?, 5.0);
    /// assert!((gradients.norm()? - 1.0).abs() < 1e-6);
    /// # Ok::<(), prune_train::Error>(())
    /// ```
    pub fn clip(&mut self, most: f64) -> Result<f64> {
        let norm = self.norm()?;
        let factor = most / (norm + 1e-6);
        if factor < 1.0 {
            self.scale(factor)?;
        }
        Ok(norm)
    }

    /// A gradient from plain values.
    pub(crate) fn set_values(
        &mut self,
        number: usize,
        shape: &[usize],
        values: Vec<f32>,
    ) -> Result<()> {
        self.add(number, Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

/// Values of a gradient that one thread handles at a time.
pub(crate) const CHUNK: usize = 1 << 14;

fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*v) * f64::from(*v);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}
