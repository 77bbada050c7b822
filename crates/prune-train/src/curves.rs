use std::path::Path;

use plotters::prelude::*;

use crate::{Error, History, Result};

/// Draws the losses of runs over their steps as an SVG: a line of training, smoothed over a
/// fiftieth of the run, and points of held-out data, for every run by its name.
///
/// # Errors
/// [`Error::Format`] when the figure cannot be written, or without records.
pub fn draw_curves(runs: &[(&str, &History)], path: &Path) -> Result<()> {
    let failed = |e: String| Error::format(path, "figure", e, "a figure that can be written");
    let smooth: Vec<Vec<(f64, f64)>> = runs.iter().map(|(_, h)| smoothed(h)).collect();
    let heldout: Vec<Vec<(f64, f64)>> = runs
        .iter()
        .map(|(_, h)| {
            let point = |r: &crate::Record| Some((r.step as f64, r.heldout_loss?));
            h.records.iter().filter_map(point).collect()
        })
        .collect();
    let points = || smooth.iter().chain(&heldout).flatten();
    let steps = points().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = points()
        .map(|p| p.1)
        .filter(|l| l.is_finite())
        .fold((f64::INFINITY, 0.0f64), |(low, high), l| (low.min(l), high.max(l)));
    if low > high {
        return Err(failed("there are no records".to_string()));
    }
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..steps, 0.95 * low..1.05 * high + 1e-9)?;
        chart.configure_mesh().x_desc("step").y_desc("loss").draw()?;
        for (i, (name, _)) in runs.iter().enumerate() {
            let colour = Palette99::pick(i).to_rgba();
            chart
                .draw_series(LineSeries::new(smooth[i].iter().copied(), colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], colour));
            let circle = |p: &(f64, f64)| Circle::new(*p, 4, colour.filled());
            chart.draw_series(heldout[i].iter().map(circle))?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|e| failed(e.to_string()))
}

/// The mean training loss of each fiftieth of the run, at its middle.
fn smoothed(history: &History) -> Vec<(f64, f64)> {
    let window = history.records.len().div_ceil(50).max(1);
    let mean = |records: &[crate::Record]| {
        let n = records.len() as f64;
        let step = records.iter().map(|r| r.step as f64).sum::<f64>() / n;
        (step, records.iter().map(|r| r.loss).sum::<f64>() / n)
    };
    history.records.chunks(window).map(mean).collect()
}
