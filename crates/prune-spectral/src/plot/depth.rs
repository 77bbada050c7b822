use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::figure::{Drawn, FONT, Figure, GREY, INK, SERIES, ends, save};
use crate::Result;

/// Exponents by depth, a line for each kind of layer, with WeightWatcher's range of 2 to 6.
///
/// ```
/// use prune_spectral::plot::DepthPlot;
/// # let directory = std::env::temp_dir();
/// let path = directory.join("depth.png");
/// DepthPlot::new("alpha by depth")
///     .series("mlp.up_proj", vec![(0, 3.1), (1, 3.4), (2, 4.2)])
///     .series("mlp.down_proj", vec![(0, 2.6), (1, 2.9), (2, 2.8)])
///     .save(&path)?;
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct DepthPlot<'a> {
    title: &'a str,
    series: Vec<(String, Vec<(usize, f64)>)>,
}

impl<'a> DepthPlot<'a> {
    /// An empty figure.
    pub fn new(title: &'a str) -> Self {
        Self { title, series: Vec::new() }
    }

    /// Adds a line: block index and exponent of each point.
    pub fn series(mut self, name: impl Into<String>, points: Vec<(usize, f64)>) -> Self {
        self.series.push((name.into(), points));
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

impl Figure for DepthPlot<'_> {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        area.fill(&WHITE)?;
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let deepest = points().map(|p| p.0).max().unwrap_or(0);
        let (low, high) = ends(points().map(|p| p.1).chain([2.0, 6.0]));
        // Lines to the left, their names to the right.
        let (left, right) = area.split_horizontally((78).percent_width());
        let mut chart = ChartBuilder::on(&left)
            .caption(self.title, (FONT, 22).into_font().color(&INK))
            .margin(14)
            .x_label_area_size(46)
            .y_label_area_size(56)
            .build_cartesian_2d(-0.5..deepest as f64 + 0.5, low..high)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .axis_style(INK)
            .x_desc("block")
            .y_desc("α")
            .x_labels((deepest + 1).min(16))
            .x_label_formatter(&|v| format!("{v:.0}"))
            .label_style((FONT, 14).into_font().color(&INK))
            .draw()?;
        for bound in [2.0, 6.0] {
            let line = [(-0.5, bound), (deepest as f64 + 0.5, bound)];
            chart.draw_series(LineSeries::new(line, GREY))?;
        }
        for (k, (name, points)) in self.series.iter().enumerate() {
            let color = SERIES[k % SERIES.len()];
            let at = |p: &(usize, f64)| (p.0 as f64, p.1);
            let finite = || points.iter().filter(|p| p.1.is_finite()).map(at);
            chart.draw_series(LineSeries::new(finite(), color.stroke_width(2)))?;
            chart.draw_series(finite().map(|p| Circle::new(p, 3, color.filled())))?;
            let y = 52 + 22 * k as i32;
            right.draw(&Rectangle::new([(4, y + 5), (18, y + 9)], color.filled()))?;
            let font = (FONT, 14).into_font().color(&INK);
            right.draw(&Text::new(name.as_str(), (24, y), font))?;
        }
        Ok(())
    }
}
