mod map;
mod n_m;

pub use map::Owl;
pub use n_m::owl_n_m;
