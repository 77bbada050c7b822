mod released;
mod water_fill;

pub use water_fill::{Aggregate, Ecoflap};
