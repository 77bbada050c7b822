//! Named state of parameters, in and out of checkpoints.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::{Error, Parameters, Result};

/// Numbers that an optimiser keeps for one parameter: named, each with its shape.
pub(super) trait ParameterState: Sized {
    /// The name, shape and values of each part.
    fn parts(&self) -> Vec<(&'static str, Vec<usize>, Vec<f32>)>;

    /// From parts that [`ParameterState::parts`] gave. `take` finds one by its name.
    fn from_parts(take: &mut Take<'_>) -> Option<Self>;
}

/// Finds the shape and values of a part by its name.
pub(super) type Take<'a> = dyn FnMut(&str) -> Option<(Vec<usize>, Vec<f32>)> + 'a;

/// State by number of the parameter.
pub(super) type States<S> = BTreeMap<usize, S>;

pub(super) fn save<S: ParameterState>(
    prefix: &str,
    states: &States<S>,
    parameters: &Parameters,
) -> Result<Vec<(String, Tensor)>> {
    let mut all = Vec::new();
    for (number, state) in states {
        let Some(parameter) = parameters.iter().nth(*number) else { continue };
        for (part, shape, values) in state.parts() {
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            all.push((format!("{prefix}.{part}.{}", parameter.name()), tensor));
        }
    }
    Ok(all)
}

pub(super) fn load<S: ParameterState>(
    prefix: &str,
    parameters: &Parameters,
    saved: &BTreeMap<String, Tensor>,
) -> Result<States<S>> {
    let mut states = States::new();
    for (number, parameter) in parameters.iter().enumerate() {
        let mut failed = None;
        let state = S::from_parts(&mut |part| {
            let tensor = saved.get(&format!("{prefix}.{part}.{}", parameter.name()))?;
            match tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()) {
                Ok(values) => Some((tensor.dims().to_vec(), values)),
                Err(error) => {
                    failed = Some(error);
                    None
                }
            }
        });
        if let Some(error) = failed {
            return Err(Error::Candle(error));
        }
        if let Some(state) = state {
            states.insert(number, state);
        }
    }
    Ok(states)
}

/// A step counter as two exact floats, high and low 24 bits.
pub(super) fn count_values(count: u64) -> Vec<f32> {
    vec![(count >> 24) as f32, (count & 0xff_ffff) as f32]
}

/// See [`count_values`].
pub(super) fn count_of(values: &[f32]) -> Option<u64> {
    let [high, low] = values else { return None };
    Some(((*high as u64) << 24) | *low as u64)
}

/// An error unless the state of a parameter has as many values as the parameter.
pub(super) fn same_len(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::shape(format!("optimiser state of `{name}`"), &[found], &[expected]))
}
