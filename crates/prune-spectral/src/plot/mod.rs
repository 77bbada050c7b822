//! Figures: spectral densities, exponents by depth, exponents by shape. Feature `plot`.
//!
//! Each figure is written as SVG or PNG, as its file name ends. Nothing has to be installed: PNG
//! text is drawn with a font of this crate, SVG text with the `sans-serif` of the viewer.

mod canvas;
mod density;
mod depth;
mod figure;
mod shapes;

pub use density::DensityPlot;
pub use depth::DepthPlot;
pub use shapes::ShapePlot;
