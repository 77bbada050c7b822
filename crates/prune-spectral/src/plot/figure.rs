use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::canvas::{self, Canvas};
use crate::{Error, Result};

pub(super) const SIZE: (u32, u32) = (900, 560);
pub(super) const FONT: &str = "sans-serif";

pub(super) const INK: RGBColor = RGBColor(40, 40, 46);
pub(super) const GREY: RGBColor = RGBColor(150, 150, 158);
pub(super) const BLUE: RGBColor = RGBColor(38, 101, 166);
pub(super) const RED: RGBColor = RGBColor(196, 62, 48);
pub(super) const GREEN: RGBColor = RGBColor(58, 135, 82);
pub(super) const AMBER: RGBColor = RGBColor(214, 142, 30);
pub(super) const VIOLET: RGBColor = RGBColor(120, 82, 158);
pub(super) const TEAL: RGBColor = RGBColor(30, 138, 144);

/// Colours of series, in order; they repeat.
pub(super) const SERIES: [RGBColor; 6] = [BLUE, RED, GREEN, AMBER, VIOLET, TEAL];

pub(super) type Drawn<DB> =
    std::result::Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// A figure that can be drawn on anything.
pub(super) trait Figure {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB>;
}

/// Writes a figure as SVG or PNG.
pub(super) fn save(figure: &impl Figure, path: &Path) -> Result<()> {
    let failed = |reason: String| Error::Plot { path: path.to_path_buf(), reason };
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let bytes = match ending.as_str() {
        "svg" => {
            let mut text = String::new();
            {
                let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
                figure
                    .draw(&area)
                    .and_then(|()| area.present())
                    .map_err(|e| failed(e.to_string()))?;
            }
            text.into_bytes()
        }
        "png" => {
            let mut image = canvas::white(SIZE);
            {
                let canvas = Canvas::new(SIZE, &mut image).map_err(|e| failed(e.to_string()))?;
                let area = canvas.into_drawing_area();
                figure
                    .draw(&area)
                    .and_then(|()| area.present())
                    .map_err(|e| failed(e.to_string()))?;
            }
            canvas::encode(SIZE, &image).map_err(|e| failed(e.to_string()))?
        }
        other => {
            return Err(failed(format!(
                "found a file name that ends in `{other}`, expected `svg` or `png`"
            )));
        }
    };
    std::fs::write(path, bytes).map_err(|e| failed(e.to_string()))
}

/// Ends of an axis that shows all of `values`, a little wider; (0, 1) without any.
pub(super) fn ends(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for v in values.into_iter().filter(|v| v.is_finite()) {
        low = low.min(v);
        high = high.max(v);
    }
    if low > high {
        return (0.0, 1.0);
    }
    let room = if high > low { 0.06 * (high - low) } else { 0.5 };
    (low - room, high + room)
}
