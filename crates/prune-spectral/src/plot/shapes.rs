use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::figure::{BLUE, Drawn, FONT, Figure, GREY, INK, RED, ends, save};
use crate::Result;

/// Exponents of layers by their aspect ratio, from whole weights and from windows.
///
/// Without windows exponents follow the shape; with them they should not.
///
/// ```
/// use prune_spectral::plot::ShapePlot;
/// # let directory = std::env::temp_dir();
/// let path = directory.join("shapes.svg");
/// ShapePlot::new("alpha by shape").layer(576, 576, 2.4, 2.2).layer(1536, 576, 4.1, 2.3).save(&path)?;
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ShapePlot<'a> {
    title: &'a str,
    layers: Vec<Layer>,
}

#[derive(Debug, Clone, Copy)]
struct Layer {
    aspect: f64,
    whole: f64,
    windows: f64,
}

impl<'a> ShapePlot<'a> {
    /// An empty figure.
    pub fn new(title: &'a str) -> Self {
        Self { title, layers: Vec::new() }
    }

    /// Adds a layer of `rows` x `cols` with the exponent of its whole weight and of its windows.
    pub fn layer(mut self, rows: usize, cols: usize, whole: f64, windows: f64) -> Self {
        let aspect = rows as f64 / cols.max(1) as f64;
        self.layers.push(Layer { aspect, whole, windows });
        self
    }

    /// Writes the figure to `path`, which ends in `.svg` or `.png`.
    ///
    /// # Errors
    /// [`Error::Plot`](crate::Error::Plot).
    pub fn save(&self, path: &Path) -> Result<()> {
        save(self, path)
    }
}

impl Figure for ShapePlot<'_> {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        area.fill(&WHITE)?;
        let (title, body) = area.split_vertically(44);
        let font = (FONT, 22).into_font().color(&INK);
        title.draw(&Text::new(self.title, (16, 12), font))?;
        let x = ends(self.layers.iter().map(|l| l.aspect.log2()));
        let y = ends(self.layers.iter().flat_map(|l| [l.whole, l.windows]));
        let whole = |l: &Layer| (l.aspect.log2(), l.whole);
        let windows = |l: &Layer| (l.aspect.log2(), l.windows);
        let panels = [
            ("whole weight", RED, self.layers.iter().map(whole).collect::<Vec<_>>()),
            ("windows", BLUE, self.layers.iter().map(windows).collect()),
        ];
        for (panel, (name, color, points)) in body.split_evenly((1, 2)).iter().zip(panels) {
            let mut chart = ChartBuilder::on(panel)
                .caption(name, (FONT, 17).into_font().color(&color))
                .margin(12)
                .x_label_area_size(46)
                .y_label_area_size(50)
                .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GREY.mix(0.25))
                .axis_style(INK)
                .x_desc("rows / columns, log₂")
                .y_desc("α")
                .x_labels(6)
                .label_style((FONT, 14).into_font().color(&INK))
                .draw()?;
            let finite = points.into_iter().filter(|p| p.0.is_finite() && p.1.is_finite());
            chart.draw_series(finite.map(|p| Circle::new(p, 3, color.mix(0.55).filled())))?;
        }
        Ok(())
    }
}
