//! ARMOR: an N:M core between two block-diagonal matrices, fitted to the normalised weight.

mod adam;
mod discrete;
mod factoriser;
mod grid;
mod group;
mod layer;
mod normalise;
mod options;
mod precision;
mod scan;
mod snapshot;
mod solver;
mod state;
mod sweep;
mod text;

pub use factoriser::Armor;
pub use layer::ArmorLayer;
pub use options::{
    AdamOptions, ArmorMethod, ArmorOptions, CoreRate, Fidelity, GroupChoice, Keep, Patience,
    Schedule,
};
pub use precision::Precision;
pub use solver::{ArmorSolution, armor};
