//! AWQ: scales for input channels, and clipping.

mod clip;
mod quantizer;
mod scales;

pub use clip::clip_limits;
pub use quantizer::{Awq, Clip};
pub use scales::{AwqScales, ScaleSearch, Weighting};
