use std::fs::File;
use std::path::Path;

use ndarray::Array2;
use prune_checkpoint::{read_exact_at, write_all_at};

use crate::{Error, Result};

/// The hidden states of all samples between two blocks, `(tokens, width)` each: in memory, or in a
/// temporary file without a name, which disappears with the process however that ends.
pub(crate) struct HiddenStates {
    store: Store,
    samples: usize,
    shape: (usize, usize),
}

enum Store {
    Memory(Vec<Array2<f32>>),
    File(File),
}

impl HiddenStates {
    /// In memory.
    pub(crate) fn in_memory(states: Vec<Array2<f32>>) -> Self {
        let shape = states.first().map_or((0, 0), Array2::dim);
        Self { samples: states.len(), store: Store::Memory(states), shape }
    }

    /// In a file of `directory`, filled sample by sample.
    pub(crate) fn in_file(
        directory: &Path,
        samples: usize,
        shape: (usize, usize),
        mut state: impl FnMut(usize) -> Result<Array2<f32>>,
    ) -> Result<Self> {
        let file = tempfile::tempfile_in(directory)
            .map_err(|source| Error::Io { path: directory.into(), source })?;
        let mut hidden = Self { store: Store::File(file), samples, shape };
        for sample in 0..samples {
            hidden.put(sample, &state(sample)?)?;
        }
        Ok(hidden)
    }

    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    /// The state of one sample, copied when it is in memory.
    pub(crate) fn get(&self, sample: usize) -> Result<Array2<f32>> {
        let file = match &self.store {
            Store::Memory(states) => return Ok(states[sample].clone()),
            Store::File(file) => file,
        };
        let mut bytes = vec![0; self.bytes()];
        read_exact_at(file, &mut bytes, self.place(sample)).map_err(spilled)?;
        let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Array2::from_shape_vec(self.shape, values).map_err(|e| Error::plan("hidden states", e))
    }

    /// The states of all samples once more, in memory.
    pub(crate) fn copy(&self) -> Result<Self> {
        Ok(Self::in_memory((0..self.samples).map(|i| self.get(i)).collect::<Result<_>>()?))
    }

    /// Replaces the states of consecutive samples from `first` on.
    pub(crate) fn replace(&mut self, first: usize, states: Vec<Array2<f32>>) -> Result<()> {
        for (i, state) in states.into_iter().enumerate() {
            match &mut self.store {
                Store::Memory(all) => all[first + i] = state,
                Store::File(_) => self.put(first + i, &state)?,
            }
        }
        Ok(())
    }

    fn put(&mut self, sample: usize, state: &Array2<f32>) -> Result<()> {
        let Store::File(file) = &self.store else { return Ok(()) };
        if state.dim() != self.shape {
            let reason = format!("sample {sample} is {:?}; expected {:?}", state.dim(), self.shape);
            return Err(Error::plan("hidden states", reason));
        }
        let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
        write_all_at(file, &bytes, self.place(sample)).map_err(spilled)
    }

    fn bytes(&self) -> usize {
        4 * self.shape.0 * self.shape.1
    }

    fn place(&self, sample: usize) -> u64 {
        (sample * self.bytes()) as u64
    }
}

fn spilled(source: std::io::Error) -> Error {
    Error::Io { path: "temporary file of hidden states".into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_back_from_a_file_as_they_went_in() {
        let directory = tempfile::tempdir().unwrap();
        let state = |i: usize| Array2::from_shape_fn((3, 2), |(r, c)| (i * 10 + r * 2 + c) as f32);
        let mut hidden =
            HiddenStates::in_file(directory.path(), 4, (3, 2), |i| Ok(state(i))).unwrap();
        assert_eq!(hidden.get(2).unwrap(), state(2));
        hidden.replace(1, vec![state(7), state(8)]).unwrap();
        let all: Vec<_> = (0..4).map(|i| hidden.get(i).unwrap()).collect();
        assert_eq!(all, [state(0), state(7), state(8), state(3)]);
        // No name is left behind.
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
