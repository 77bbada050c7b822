use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::scheme::{Granularity, QuantScheme, ScaleFormat, ZeroPoint};
use crate::{Error, Result};

/// The parts of a [`QuantizedMatrix`], before they are checked.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedParts {
    /// How to read them.
    pub scheme: QuantScheme,
    /// One code a weight, `(out_features, in_features)`, not packed.
    pub codes: Array2<u8>,
    /// Scales, shaped as [`Granularity::scales_shape`] says.
    pub scales: Array2<f32>,
    /// Zero points, shaped as the scales; whole numbers below 2^bits for [`ZeroPoint::Integer`].
    /// `None` for [`ZeroPoint::Symmetric`].
    pub zeros: Option<Array2<f32>>,
    /// What all scales are divided by, for [`ScaleFormat::E4M3`].
    pub global_scale: Option<f32>,
    /// The group of each input channel, where it is not the channel's number divided by the size
    /// of a group: the order of activations in GPTQ.
    pub group_index: Option<Vec<u32>>,
    /// What each input channel was multiplied by before it was quantised, and is divided by after:
    /// AWQ's scales where they are not folded into the layer before.
    pub column_scales: Option<Vec<f32>>,
}

/// A quantised matrix: codes, scales and zero points.
///
/// Weight `(r, c)` of group `g` is
///
/// ```text
/// x̂ = (level(code) − zero_g) · scale_g / global / column_scale_c
/// ```
///
/// where `zero` is 2^(bits − 1) for symmetric integers and 0 for other number formats; `global` and
/// `column_scale` are 1 where there are none. Codes are held a byte each, so that any packing can
/// be written from them; [`QuantizedMatrix::nbytes`] counts them packed.
///
/// ```
/// use ndarray::array;
/// use prune_core::{QuantScheme, QuantizedMatrix, QuantizedParts};
///
/// let parts = QuantizedParts {
///     scheme: QuantScheme::int(4)?.group(2),
///     codes: array![[8, 15, 0, 9]],
///     scales: array![[0.5, 0.25]],
///     zeros: None,
///     global_scale: None,
///     group_index: None,
///     column_scales: None,
/// };
/// let matrix = QuantizedMatrix::from_parts("w", parts)?;
/// assert_eq!(matrix.dequantize(), array![[0.0, 3.5, -2.0, 0.25]]);
/// assert_eq!(matrix.nbytes(), 2 + 2 * 2); // four nibbles and two f16 scales
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    parts: QuantizedParts,
}

impl QuantizedMatrix {
    /// A matrix from parts that may come from an untrusted file. O(rows · cols).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a scheme that contradicts itself; [`Error::InvalidQuantized`]
    /// naming `what` and the part at fault: a shape that does not fit, a code beyond the number
    /// format or not finite in it, a scale, zero point or divisor that is not finite, an integer
    /// zero point that is no code, a divisor of 0, a group that does not exist, a part that the
    /// scheme has no place for.
    pub fn from_parts(what: &str, mut parts: QuantizedParts) -> Result<Self> {
        parts.scheme.check()?;
        check_parts(&parts).map_err(|(field, reason)| Error::InvalidQuantized {
            field,
            reason: format!("{what}: {reason}"),
        })?;
        if !parts.codes.is_standard_layout() {
            parts.codes = parts.codes.as_standard_layout().into_owned();
        }
        Ok(Self { parts })
    }

    /// Number of output channels.
    pub fn rows(&self) -> usize {
        self.parts.codes.nrows()
    }

    /// Number of input channels.
    pub fn cols(&self) -> usize {
        self.parts.codes.ncols()
    }

    /// How it is quantised.
    pub fn scheme(&self) -> QuantScheme {
        self.parts.scheme
    }

    /// The codes, one a weight, in standard layout.
    pub fn codes(&self) -> ArrayView2<'_, u8> {
        self.parts.codes.view()
    }

    /// The scales; see [`Granularity::scales_shape`].
    pub fn scales(&self) -> ArrayView2<'_, f32> {
        self.parts.scales.view()
    }

    /// The zero points, shaped as the scales; `None` for a symmetric scheme.
    pub fn zeros(&self) -> Option<ArrayView2<'_, f32>> {
        self.parts.zeros.as_ref().map(|z| z.view())
    }

    /// What all scales are divided by.
    pub fn global_scale(&self) -> Option<f32> {
        self.parts.global_scale
    }

    /// The group of each input channel, where it does not follow from its number.
    pub fn group_index(&self) -> Option<&[u32]> {
        self.parts.group_index.as_deref()
    }

    /// What each input channel is divided by.
    pub fn column_scales(&self) -> Option<&[f32]> {
        self.parts.column_scales.as_deref()
    }

    /// All parts, without a copy.
    pub fn into_parts(self) -> QuantizedParts {
        self.parts
    }

    /// The position of the scale of weight `(row, col)` in [`QuantizedMatrix::scales`].
    pub fn scale_at(&self, row: usize, col: usize) -> (usize, usize) {
        match (self.parts.scheme.granularity, &self.parts.group_index) {
            (Granularity::PerTensor, _) => (0, 0),
            (Granularity::PerChannel, _) => (row, 0),
            (Granularity::Group(_), Some(index)) => (row, index[col] as usize),
            (Granularity::Group(n), None) => (row, col / n),
            (Granularity::Flat(n), _) => (0, (row * self.cols() + col) / n),
        }
    }

    /// The weights that the codes stand for, `(out_features, in_features)` in f32. Runs on all
    /// threads; the same bits for any number of them.
    pub fn dequantize(&self) -> Array2<f32> {
        let mut out = Array2::zeros(self.parts.codes.raw_dim());
        out.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(r, mut row)| {
            if let Some(row) = row.as_slice_mut() {
                self.dequantize_row(r, row);
            }
        });
        out
    }

    /// Writes the weights of row `row` into `out`, as far as both reach.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        if row >= self.rows() {
            return;
        }
        let number = self.parts.scheme.number;
        let middle = match number.is_integer() {
            true => (1u32 << (number.bits() - 1)) as f32,
            false => 0.0,
        };
        let global = self.parts.global_scale;
        // Pieces of the row that share a scale.
        let run = match (self.parts.scheme.granularity, &self.parts.group_index) {
            (Granularity::PerTensor | Granularity::PerChannel, _) => self.cols(),
            (Granularity::Group(n), None) => n,
            (Granularity::Group(_), Some(_)) | (Granularity::Flat(_), _) => 1,
        };
        let reach = out.len().min(self.cols());
        let codes = self.parts.codes.row(row);
        for (piece, out) in out[..reach].chunks_mut(run.max(1)).enumerate() {
            let first = piece * run;
            let at = self.scale_at(row, first);
            let zero = self.parts.zeros.as_ref().map_or(middle, |z| z[at]);
            let scale = self.parts.scales[at];
            let scale = global.map_or(scale, |g| scale / g);
            let codes = codes.slice(s![first..first + out.len()]);
            for (x, code) in out.iter_mut().zip(codes) {
                *x = (number.level(*code) - zero) * scale;
            }
        }
        if let Some(columns) = &self.parts.column_scales {
            out.iter_mut().zip(columns).for_each(|(x, s)| *x /= s);
        }
    }

    /// Bytes when stored: codes packed densely, scales and zero points in their formats, and what
    /// else there is (4 for a group index, as many as a scale for a column scale).
    pub fn nbytes(&self) -> usize {
        let mut bytes = self.parts.scheme.nbytes(self.rows(), self.cols());
        if let Some(index) = &self.parts.group_index {
            bytes += 4 * index.len();
        }
        if let Some(columns) = &self.parts.column_scales {
            let format = match self.parts.scheme.scale {
                half @ (ScaleFormat::F16 | ScaleFormat::BF16) => half,
                _ => ScaleFormat::F32,
            };
            bytes += format.storage_bits(columns.len()) / 8;
        }
        bytes
    }

    /// Bits for each weight, everything of [`QuantizedMatrix::nbytes`] included; 0 for an empty
    /// matrix.
    pub fn bits_per_weight(&self) -> f64 {
        let weights = self.parts.codes.len();
        if weights == 0 { 0.0 } else { 8.0 * self.nbytes() as f64 / weights as f64 }
    }
}

fn check_parts(parts: &QuantizedParts) -> Result<(), (&'static str, String)> {
    let QuantizedParts { scheme, codes, scales, zeros, .. } = parts;
    let (rows, cols) = codes.dim();
    let expected = scheme.granularity.scales_shape(rows, cols);
    if scales.dim() != expected {
        return Err(("scales", shapes(scales.dim(), expected)));
    }
    check_codes(parts)?;
    if let Some(bad) = scales.iter().find(|s| !s.is_finite()) {
        return Err(("scales", format!("found {bad}, expected finite numbers")));
    }
    match (scheme.zero, zeros) {
        (ZeroPoint::Symmetric, Some(_)) => {
            return Err(("zeros", "found some, expected none in a symmetric scheme".to_string()));
        }
        (ZeroPoint::Integer | ZeroPoint::Float, None) => {
            return Err(("zeros", format!("found none, expected them for `{scheme}`")));
        }
        (_, None) => {}
        (kind, Some(zeros)) => {
            if zeros.dim() != expected {
                return Err(("zeros", shapes(zeros.dim(), expected)));
            }
            let top = ((1u32 << scheme.number.bits()) - 1) as f32;
            let good = |z: &f32| match kind {
                ZeroPoint::Integer => z.fract() == 0.0 && (0.0..=top).contains(z),
                _ => z.is_finite(),
            };
            if let Some(bad) = zeros.iter().find(|z| !good(z)) {
                let expected = match kind {
                    ZeroPoint::Integer => format!("whole numbers from 0 to {top}"),
                    _ => "finite numbers".to_string(),
                };
                return Err(("zeros", format!("found {bad}, expected {expected}")));
            }
        }
    }
    check_extras(parts, expected.1)
}

fn check_codes(parts: &QuantizedParts) -> Result<(), (&'static str, String)> {
    let number = parts.scheme.number;
    let valid: [bool; 256] = std::array::from_fn(|code| {
        code >> number.bits() == 0 && number.level(code as u8).is_finite()
    });
    match parts.codes.iter().position(|c| !valid[usize::from(*c)]) {
        None => Ok(()),
        Some(at) => {
            let code = parts.codes.iter().nth(at).copied().unwrap_or_default();
            Err(("codes", format!("weight {at} has code {code}, which {number} does not have")))
        }
    }
}

fn check_extras(parts: &QuantizedParts, groups: usize) -> Result<(), (&'static str, String)> {
    let cols = parts.codes.ncols();
    match (parts.scheme.scale, parts.global_scale) {
        (ScaleFormat::E4M3, None) => {
            return Err(("global_scale", "found none, expected one for e4m3 scales".to_string()));
        }
        (_, Some(g)) if !g.is_finite() || g == 0.0 => {
            return Err(("global_scale", format!("found {g}, expected a finite number but 0")));
        }
        _ => {}
    }
    if let Some(index) = &parts.group_index {
        if !matches!(parts.scheme.granularity, Granularity::Group(_)) {
            return Err(("group_index", "found one, expected none without groups".to_string()));
        }
        if index.len() != cols {
            return Err(("group_index", format!("found {}, expected {cols}", index.len())));
        }
        if let Some(bad) = index.iter().find(|g| **g as usize >= groups) {
            return Err(("group_index", format!("found group {bad}, expected below {groups}")));
        }
    }
    if let Some(columns) = &parts.column_scales {
        if columns.len() != cols {
            return Err(("column_scales", format!("found {}, expected {cols}", columns.len())));
        }
        if let Some(bad) = columns.iter().find(|s| !s.is_finite() || **s == 0.0) {
            return Err(("column_scales", format!("found {bad}, expected finite numbers but 0")));
        }
    }
    Ok(())
}

fn shapes(found: (usize, usize), expected: (usize, usize)) -> String {
    format!("found {found:?}, expected {expected:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NumberFormat;
    use ndarray::array;

    fn parts() -> QuantizedParts {
        QuantizedParts {
            scheme: QuantScheme::int(4).unwrap().group(2).zero(ZeroPoint::Integer),
            codes: array![[0, 3, 15, 4], [1, 2, 3, 4]],
            scales: array![[0.5, 1.0], [2.0, 0.25]],
            zeros: Some(array![[3.0, 4.0], [0.0, 15.0]]),
            global_scale: None,
            group_index: None,
            column_scales: None,
        }
    }

    #[test]
    fn weights_follow_the_formula() {
        let m = QuantizedMatrix::from_parts("w", parts()).unwrap();
        assert_eq!(m.dequantize(), array![[-1.5, 0.0, 11.0, 0.0], [2.0, 4.0, -3.0, -2.75]]);
        assert_eq!(m.nbytes(), 4 + 8 + 2);
        assert_eq!(m.bits_per_weight(), 14.0);
        let index = QuantizedParts { group_index: Some(vec![1, 0, 1, 0]), ..parts() };
        let m = QuantizedMatrix::from_parts("w", index).unwrap();
        assert_eq!(m.dequantize().row(0), array![-4.0, 0.0, 11.0, 0.5]);
        assert_eq!(m.nbytes(), 14 + 16);
        let columns = QuantizedParts { column_scales: Some(vec![1.0, 2.0, 4.0, 0.5]), ..parts() };
        let m = QuantizedMatrix::from_parts("w", columns).unwrap();
        assert_eq!(m.dequantize().row(1), array![2.0, 2.0, -0.75, -5.5]);
    }

    #[test]
    fn flat_blocks_cross_rows() {
        let m = QuantizedMatrix::from_parts(
            "w",
            QuantizedParts {
                scheme: QuantScheme {
                    number: NumberFormat::Fp4,
                    granularity: Granularity::Flat(4),
                    zero: ZeroPoint::Symmetric,
                    scale: ScaleFormat::F32,
                },
                codes: array![[1, 2, 3], [4, 5, 15]],
                scales: array![[2.0, 10.0]],
                zeros: None,
                global_scale: None,
                group_index: None,
                column_scales: None,
            },
        );
        assert_eq!(m.unwrap().dequantize(), array![[1.0, 2.0, 3.0], [4.0, 30.0, -60.0]]);
    }

    #[test]
    fn every_broken_part_is_named() {
        type Break = fn(&mut QuantizedParts);
        let cases: [(&str, Break); 13] = [
            ("scales", |p| p.scales = array![[1.0, 1.0]]),
            ("scales", |p| p.scales[[0, 1]] = f32::NAN),
            ("codes", |p| p.codes[[0, 1]] = 16),
            ("zeros", |p| p.zeros = None),
            ("zeros", |p| p.zeros = Some(array![[1.0]])),
            ("zeros", |p| p.zeros = Some(array![[0.5, 0.0], [0.0, 0.0]])),
            ("zeros", |p| p.zeros = Some(array![[16.0, 0.0], [0.0, 0.0]])),
            ("zeros", |p| p.scheme.zero = ZeroPoint::Symmetric),
            ("global_scale", |p| p.scheme.scale = ScaleFormat::E4M3),
            ("global_scale", |p| p.global_scale = Some(0.0)),
            ("group_index", |p| p.group_index = Some(vec![0, 1, 2, 0])),
            ("group_index", |p| p.group_index = Some(vec![0])),
            ("column_scales", |p| p.column_scales = Some(vec![1.0, 1.0, 0.0, 1.0])),
        ];
        for (want, broken) in cases {
            let mut p = parts();
            broken(&mut p);
            match QuantizedMatrix::from_parts("w", p) {
                Err(Error::InvalidQuantized { field, reason }) => {
                    assert_eq!(field, want, "{reason}");
                    assert!(reason.starts_with("w: "), "{reason}");
                }
                other => panic!("{want}: {other:?}"),
            }
        }
        let mut p = parts();
        p.scheme = QuantScheme::fp8().group(2);
        (p.zeros, p.codes[[1, 1]]) = (None, 0x7f);
        assert!(QuantizedMatrix::from_parts("w", p).is_err(), "NaN has a code but no place");
    }
}
