use ab_glyph::{Font, FontRef, InvalidFont, PxScale, ScaleFont, point};
use plotters::prelude::DrawingBackend;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingErrorKind};

static FONT: &[u8] = include_bytes!("../../assets/DejaVuSans-subset.ttf");

/// An image in memory that plotters draws on, with a font of its own: the bitmap backend of
/// plotters takes its fonts from system libraries.
pub(super) struct Canvas<'a> {
    size: (u32, u32),
    rgb: &'a mut [u8],
    font: FontRef<'static>,
}

/// A white image of this size, three bytes a pixel.
pub(super) fn white(size: (u32, u32)) -> Vec<u8> {
    vec![255; size.0 as usize * size.1 as usize * 3]
}

/// An image as PNG.
pub(super) fn encode(size: (u32, u32), rgb: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(bytes)
}

impl<'a> Canvas<'a> {
    /// A canvas over an image of this size.
    pub(super) fn new(size: (u32, u32), rgb: &'a mut [u8]) -> Result<Self, InvalidFont> {
        Ok(Self { size, rgb, font: FontRef::try_from_slice(FONT)? })
    }

    fn blend(&mut self, (x, y): BackendCoord, color: BackendColor) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
        let (width, height) = (self.size.0 as usize, self.size.1 as usize);
        if x >= width || y >= height {
            return;
        }
        let at = 3 * (y * width + x);
        let (r, g, b) = color.rgb;
        for (old, new) in self.rgb[at..at + 3].iter_mut().zip([r, g, b]) {
            let mixed = f64::from(*old) * (1.0 - color.alpha) + f64::from(new) * color.alpha;
            *old = mixed.round() as u8;
        }
    }

    /// Width, ascent and height of a line of text.
    fn extent(&self, text: &str, size: f64) -> (f32, f32, f32) {
        let font = self.font.as_scaled(PxScale::from(size as f32));
        let width = text.chars().map(|c| font.h_advance(font.glyph_id(c))).sum();
        (width, font.ascent(), font.height())
    }
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = std::convert::Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        Ok(())
    }

    fn draw_pixel(
        &mut self,
        point: BackendCoord,
        color: BackendColor,
    ) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        self.blend(point, color);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        let (width, _, height) = self.extent(text, style.size());
        Ok((width.ceil() as u32, height.ceil() as u32))
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        position: BackendCoord,
    ) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        let (width, ascent, height) = self.extent(text, style.size());
        let anchor = style.anchor();
        let left = match anchor.h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        let top = match anchor.v_pos {
            VPos::Top => 0.0,
            VPos::Center => -height / 2.0,
            VPos::Bottom => -height,
        };
        let color = style.color();
        let transform = style.transform();
        let scale = PxScale::from(style.size() as f32);
        let mut pen = left;
        for character in text.chars() {
            let id = self.font.glyph_id(character);
            let glyph = id.with_scale_and_position(scale, point(pen, top + ascent));
            pen += self.font.as_scaled(scale).h_advance(id);
            // Spaces have no outline.
            let Some(outline) = self.font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            let mut pixels = Vec::new();
            outline.draw(|x, y, cover| {
                pixels.push((corner.x as i32 + x as i32, corner.y as i32 + y as i32, cover));
            });
            for (x, y, cover) in pixels {
                let (dx, dy) = transform.transform(x, y);
                let alpha = color.alpha * f64::from(cover.clamp(0.0, 1.0));
                self.blend((position.0 + dx, position.1 + dy), BackendColor { alpha, ..color });
            }
        }
        Ok(())
    }
}
