use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::figure::{BLUE, Drawn, FONT, Figure, GREEN, GREY, INK, RED, save};
use crate::bulk::density_of_law;
use crate::{Bulk, PowerLaw, Result, Spectrum};

/// The density of a spectrum on logarithmic axes, with the power law of its tail and the law of its
/// bulk.
///
/// ```
/// use ndarray::Array2;
/// use prune_spectral::plot::DensityPlot;
/// use prune_spectral::{BulkFit, Spectrum, TailFit};
/// # let directory = std::env::temp_dir();
/// let weight = Array2::from_shape_fn((80, 60), |(i, j)| ((i * i + 7 * j * j + i * j) as f32).sin());
/// let spectrum = Spectrum::of(weight.view())?;
/// let path = directory.join("density.svg");
/// DensityPlot::new("mlp.up_proj", &spectrum)
///     .fit(TailFit::peak().fit(&spectrum)?)
///     .bulk(BulkFit::default().fit(&spectrum)?)
///     .save(&path)?;
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct DensityPlot<'a> {
    title: &'a str,
    spectrum: &'a Spectrum,
    fit: Option<PowerLaw>,
    bulk: Option<Bulk>,
}

const BINS: usize = 100;

impl<'a> DensityPlot<'a> {
    /// The density alone.
    pub fn new(title: &'a str, spectrum: &'a Spectrum) -> Self {
        Self { title, spectrum, fit: None, bulk: None }
    }

    /// With a power law and the start of its tail.
    pub fn fit(self, fit: PowerLaw) -> Self {
        Self { fit: Some(fit), ..self }
    }

    /// With a Marchenko–Pastur law.
    pub fn bulk(self, bulk: Bulk) -> Self {
        Self { bulk: Some(bulk), ..self }
    }

    /// Writes the figure to `path`, which ends in `.svg` or `.png`.
    ///
    /// # Errors
    /// [`Error::Plot`](crate::Error::Plot).
    pub fn save(&self, path: &Path) -> Result<()> {
        save(self, path)
    }

    /// Centre and density of each bin of log λ that is not empty.
    fn histogram(&self) -> Vec<(f64, f64)> {
        let all = self.spectrum.eigenvalues();
        let values = &all[all.partition_point(|v| *v <= self.spectrum.zero())..];
        let (Some(low), Some(high)) = (values.first(), values.last()) else { return Vec::new() };
        let (low, high) = (low.ln(), high.ln().max(low.ln() + 1e-9));
        let width = (high - low) / BINS as f64;
        let mut counts = [0usize; BINS];
        for v in values {
            counts[(((v.ln() - low) / width) as usize).min(BINS - 1)] += 1;
        }
        let edge = |bin: usize| (low + bin as f64 * width).exp();
        counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bin, count)| {
                let (a, b) = (edge(bin), edge(bin + 1));
                ((a * b).sqrt(), *count as f64 / (all.len() as f64 * (b - a)))
            })
            .collect()
    }
}

impl Figure for DensityPlot<'_> {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        area.fill(&WHITE)?;
        let points = self.histogram();
        let ends = |of: fn(&(f64, f64)) -> f64| {
            let low = points.iter().map(of).fold(f64::INFINITY, f64::min);
            let high = points.iter().map(of).fold(0.0, f64::max);
            if low < high { (low / 1.8, high * 1.8) } else { (0.1, 10.0) }
        };
        let (x, y) = (ends(|p| p.0), ends(|p| p.1));
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, (FONT, 22).into_font().color(&INK))
            .margin(14)
            .x_label_area_size(46)
            .y_label_area_size(76)
            .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .axis_style(INK)
            .x_desc("eigenvalue λ")
            .y_desc("density")
            .x_label_formatter(&|v| format!("{v:.0e}"))
            .y_label_formatter(&|v| format!("{v:.0e}"))
            .label_style((FONT, 14).into_font().color(&INK))
            .draw()?;
        chart
            .draw_series(points.iter().map(|p| Circle::new(*p, 3, BLUE.filled())))?
            .label(format!("{} eigenvalues", self.spectrum.len()))
            .legend(|(x, y)| Circle::new((x + 10, y), 3, BLUE.filled()));
        if let Some(bulk) = &self.bulk {
            let unit = bulk.scale * bulk.scale;
            let aspect = self.spectrum.aspect();
            let line = (0..=400)
                .map(|k| bulk.min.max(x.0) * (bulk.max / bulk.min.max(x.0)).powf(k as f64 / 400.0))
                .map(|v| (v, unit * density_of_law(bulk.sigma, aspect, v * unit)))
                .filter(|p| p.1 > y.0);
            chart
                .draw_series(LineSeries::new(line, GREEN.stroke_width(2)))?
                .label(format!("bulk, σ = {:.3}, {} spikes", bulk.sigma, bulk.num_spikes))
                .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], GREEN.stroke_width(2)));
        }
        if let Some(fit) = &self.fit {
            let share = fit.tail as f64 / self.spectrum.len() as f64;
            let law =
                |v: f64| share * (fit.alpha - 1.0) / fit.xmin * (v / fit.xmin).powf(-fit.alpha);
            let end = self.spectrum.largest();
            let line = [fit.xmin, end].map(|v| (v, law(v)));
            chart
                .draw_series(LineSeries::new(line, RED.stroke_width(2)))?
                .label(format!("α = {:.3} ± {:.3}, D = {:.3}", fit.alpha, fit.sigma, fit.distance))
                .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], RED.stroke_width(2)));
            chart
                .draw_series(LineSeries::new(
                    [(fit.xmin, y.0), (fit.xmin, y.1)],
                    RED.mix(0.5).stroke_width(1),
                ))?
                .label(format!("tail starts at {:.3e}", fit.xmin))
                .legend(|(x, y)| {
                    PathElement::new([(x, y), (x + 20, y)], RED.mix(0.5).stroke_width(1))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(GREY)
            .label_font((FONT, 14).into_font().color(&INK))
            .draw()
    }
}
