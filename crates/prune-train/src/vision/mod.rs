//! Small image classifiers with forward and backward passes that are fast on CPUs, and the images
//! to train them on.
//!
//! | what | where |
//! |---|---|
//! | layers and how they are joined; counts, channels, cropping | [`Network`] |
//! | ResNet, VGG, MobileNetV2, an MLP, a small CNN | [`Network::resnet`] and its neighbours |
//! | a network with parameters | [`VisionModel`] |
//! | digits and CIFAR-10 | [`Images`] |
//! | random masks and those of SNIP, GraSP, SynFlow, magnitude | [`MaskPlan`] |
//! | calibration, unknown images, noise, FGSM | [`reliability`] |

mod architectures;
mod conv;
mod images;
mod layers;
mod mask_plan;
mod model;
mod network;
pub mod reliability;

pub use images::{Augment, ImageBatch, Images};
pub use mask_plan::{MaskPlan, Positions, Ratios};
pub use model::VisionModel;
pub use network::{Activation, LayerCount, Network, Size, Value};
