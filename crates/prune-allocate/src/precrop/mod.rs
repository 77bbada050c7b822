mod densities;
mod network;
mod shapes;
mod syn_exp;
mod widths;

pub use densities::{LayerCost, Limits, PreCrop};
pub use network::{ChannelNetwork, Channels, NetworkCost};
pub use shapes::{mobilenet_v2, resnet20, vgg16};
pub use syn_exp::log_syn_exp;
pub use widths::{Residual, Widths};
