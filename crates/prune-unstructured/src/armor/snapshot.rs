use ndarray::Array2;

use super::Precision;
use super::state::{State, Tile};

/// A copy of A, B and the core, so that a later state can be worse without harm.
pub(super) struct Snapshot<T> {
    a: Vec<Array2<T>>,
    b: Vec<Array2<T>>,
    cores: Vec<Vec<Core<T>>>,
}

/// The copy of one tile.
pub(super) struct Core<T> {
    core: Array2<T>,
    kept: Array2<bool>,
}

impl<T: Precision> Snapshot<T> {
    pub(super) fn new(state: &State<T>) -> Self {
        let core = |tile: &Tile<T>| Core { core: tile.core.clone(), kept: tile.kept.clone() };
        Self {
            a: state.a.clone(),
            b: state.b.clone(),
            cores: state.strips.iter().map(|tiles| tiles.iter().map(core).collect()).collect(),
        }
    }

    pub(super) fn copy_factors(&mut self, state: &State<T>) {
        self.a.clone_from(&state.a);
        self.b.clone_from(&state.b);
    }

    /// The copies of each strip of tiles, to be filled a tile at a time.
    pub(super) fn strips(&mut self) -> impl Iterator<Item = &mut [Core<T>]> {
        self.cores.iter_mut().map(Vec::as_mut_slice)
    }

    /// Puts the copy back into the state that it was made of.
    pub(super) fn restore(self, state: &mut State<T>) {
        state.a = self.a;
        state.b = self.b;
        for (tile, copy) in state.strips.iter_mut().flatten().zip(self.cores.into_iter().flatten())
        {
            tile.core = copy.core;
            tile.kept = copy.kept;
        }
    }
}

impl<T: Precision> Core<T> {
    pub(super) fn copy_from(&mut self, tile: &Tile<T>) {
        self.core.assign(&tile.core);
        self.kept.assign(&tile.kept);
    }
}
