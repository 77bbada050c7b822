mod config;
mod image_model;
mod model;
mod names;
mod train;

pub use config::VitConfig;
pub use model::Vit;
pub use names::VitNaming;
