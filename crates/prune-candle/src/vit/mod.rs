mod config;
mod model;
mod names;

pub use config::VitConfig;
pub use model::Vit;
pub use names::VitNaming;
