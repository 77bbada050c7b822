mod map;
mod n_m;

pub use map::{Fidelity, Owl};
pub use n_m::owl_n_m;
