mod layer_scores;
mod noise;
mod perturbed;
mod spsa;

pub use layer_scores::{Together, ZerothOrder};
pub use noise::{Distribution, Noise, SeededNoise};
pub use perturbed::Perturbed;
pub use spsa::{Spsa, SpsaGradient};
