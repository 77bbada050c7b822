mod input;
mod row_scales;

use std::borrow::Cow;
use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};
use prune_core::{Error, Granularity, QuantizedMatrix, Result, ZeroPoint, pack_dense};

use crate::activations::Activations;
use crate::dense::multiply_panels;
use crate::operator::{
    LinearOperator, TILE, check_matrices, check_vectors, for_row_panels, rows_per_task,
};
use crate::pages::Pages;
use crate::simd::{Job, KernelPath, Selected, Simd};
use crate::storage::Storage;
use crate::tiles::columns;
use input::{Input, Unit};
use row_scales::RowScales;

/// Codes of 4 or 8 bits with a scale, and perhaps a zero point, for each group of columns: what
/// RTN, GPTQ, AWQ and HQQ make, multiplied as it is packed.
///
/// Weight `(r, c)` of group `g` is `scale(r, g) · (code(r, c) − zero(r, g))`. Codes are packed along
/// the columns, the lowest bits first, in words of 32 bits, rows padded to whole words: the layout
/// of compressed-tensors' `pack-quantized`, whose offset-binary codes these are.
///
/// With [`Activations::F32`] a group adds `scale · (Σ code · x − zero · Σ x)`, where the sums of `x`
/// are computed once for all rows. With [`Activations::Q8`] codes and zero points are multiplied as
/// integers.
///
/// ```
/// use prune_kernels::{GroupKernel, GroupParts, LinearOperator};
///
/// // One row of 32 columns: codes 8, 9, 10, .. 15, 8, ..; the zero point of 4 symmetric bits is 8.
/// let a = GroupKernel::from_parts(GroupParts {
///     rows: 1,
///     cols: 32,
///     bits: 4,
///     group: 32,
///     words: vec![0xfedc_ba98; 4],
///     scales: vec![0.5f32],
///     zeros: None,
/// })?;
/// let mut x = vec![0.0; 32];
/// x[3] = 1.0;
/// assert_eq!(a.matvec(&x)?, [1.5]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GroupKernel<T> {
    rows: usize,
    cols: usize,
    bits: usize,
    group: usize,
    /// Rows padded with zeros to whole units, in tiles of columns: all rows of the first tile, of the
    /// second, and so on.
    units: Pages<[u32; 8]>,
    /// Groups in a row.
    groups: usize,
    scales: Vec<T>,
    zeros: Option<Vec<T>>,
    /// Where each element of the right-hand side comes from and by what it is multiplied, unless
    /// nothing changes.
    input: Option<Vec<(u32, f32)>>,
    activations: Activations,
    selected: Selected,
}

/// The parts of a [`GroupKernel`].
#[derive(Debug, Clone, PartialEq)]
pub struct GroupParts<T> {
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// Bits of a code: 4 or 8.
    pub bits: usize,
    /// Columns of a group: a multiple of 32, or at least `cols` for one group a row.
    pub group: usize,
    /// `⌈cols · bits / 32⌉` words a row.
    pub words: Vec<u32>,
    /// `⌈cols / group⌉` a row.
    pub scales: Vec<T>,
    /// As many as scales, whole or not; `2^(bits − 1)` everywhere where `None`.
    pub zeros: Option<Vec<T>>,
}

/// Right-hand sides for which codes are unpacked once.
const TOGETHER: usize = 4;

/// Right-hand sides from which rows are expanded to f32 and multiplied as dense ones.
const MANY: usize = 16;

impl<T: Storage> GroupKernel<T> {
    /// The operator of `parts`, with [`Activations::F32`].
    ///
    /// # Errors
    /// [`Error::InvalidQuantized`] naming the part at fault: another number of bits, a group that
    /// is no multiple of 32 and ends inside a row, a length that does not fit, a scale or zero
    /// point that is NaN or infinite.
    pub fn from_parts(parts: GroupParts<T>) -> Result<Self> {
        let GroupParts { rows, cols, bits, group, words, scales, zeros } = parts;
        let invalid = |field, reason| Err(Error::InvalidQuantized { field, reason });
        if bits != 4 && bits != 8 {
            return invalid("bits", format!("found {bits}, expected 4 or 8"));
        }
        if rows.checked_mul(cols).is_none_or(|n| n > isize::MAX as usize / 8) {
            return invalid("shape", format!("{rows} x {cols} exceeds the address space"));
        }
        if group == 0 || (group < cols && !group.is_multiple_of(32)) {
            return invalid(
                "group",
                format!("found {group}, expected a multiple of 32 or all {cols} columns"),
            );
        }
        let row_words = (cols * bits).div_ceil(32);
        let groups = cols.div_ceil(group);
        for (field, found, expected) in [
            ("words", words.len(), rows * row_words),
            ("scales", scales.len(), rows * groups),
            ("zeros", zeros.as_ref().map_or(rows * groups, Vec::len), rows * groups),
        ] {
            if found != expected {
                return invalid(field, format!("found length {found}, expected {expected}"));
            }
        }
        for (field, values) in [("scales", Some(&scales)), ("zeros", zeros.as_ref())] {
            if let Some(bad) = values.into_iter().flatten().find(|v| !v.is_finite()) {
                return invalid(field, format!("found {bad}, expected finite numbers"));
            }
        }
        let mut kernel = Self {
            rows,
            cols,
            bits,
            // One group a row is as good as one of whole units.
            group: if group < cols { group } else { cols.next_multiple_of(64).max(64) },
            units: Vec::new().into(),
            groups,
            scales,
            zeros,
            input: None,
            activations: Activations::F32,
            selected: Selected::best(),
        };
        let (padded, tile) = (kernel.padded_cols() / kernel.unit(), kernel.tile());
        let mut units = Vec::with_capacity(rows * padded);
        for first in (0..padded).step_by(tile) {
            let last = padded.min(first + tile);
            for r in 0..rows {
                let row = &words[r * row_words..(r + 1) * row_words];
                for u in first..last {
                    let mut unit = [0; 8];
                    let of_unit = &row[8 * u..row_words.min(8 * u + 8)];
                    unit[..of_unit.len()].copy_from_slice(of_unit);
                    units.push(unit);
                }
            }
        }
        kernel.units = units.into();
        Ok(kernel)
    }

    /// The same matrix with another treatment of the right-hand side.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        Ok(Self { selected: Selected::new(path)?, ..self })
    }

    /// Columns of a unit.
    fn unit(&self) -> usize {
        256 / self.bits
    }

    fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(self.unit())
    }

    /// Units of a tile, but for the last one of a row.
    fn tile(&self) -> usize {
        self.span() * (TILE / (self.span() * self.unit())).max(1)
    }

    /// Units of a row in the tile that begins with unit `first`.
    #[inline(always)]
    fn row_units(&self, row: usize, first: usize) -> &[[u32; 8]] {
        let width = self.tile().min(self.padded_cols() / self.unit() - first);
        &self.units[self.rows * first + row * width..][..width]
    }

    /// Units from one possible change of the scale to the next.
    fn span(&self) -> usize {
        if self.group.is_multiple_of(self.unit()) { self.group / self.unit() } else { 1 }
    }

    fn spans(&self) -> usize {
        self.padded_cols().div_ceil(self.span() * self.unit())
    }

    fn write(&self, x: &[f32], vectors: usize, mut y: ArrayViewMut2<'_, f32>) {
        let padded = self.padded_cols();
        let inputs: Vec<Input> =
            (0..vectors).map(|j| Input::new(self, &x[j * padded..(j + 1) * padded])).collect();
        for (i, inputs) in inputs.chunks(TOGETHER).enumerate() {
            let first = i * TOGETHER;
            let y = y.slice_mut(s![.., first..first + inputs.len()]);
            let rows = rows_per_task(self, 1, y.ncols());
            for_row_panels(y, rows, |first, y| {
                self.selected.run(Rows { matrix: self, first, inputs, y });
            });
        }
    }
}

impl<T: Storage> TryFrom<&QuantizedMatrix> for GroupKernel<T> {
    type Error = Error;

    /// Integer codes of up to 4 bits are held in 4, of up to 8 in 8. Columns in another order than
    /// that of their groups are sorted, and column scales divide the right-hand side.
    ///
    /// # Errors
    /// [`Error::UnsupportedScheme`] for number formats that are not integers, groups that are no
    /// multiple of 32 or cross rows, and groups of unequal size.
    fn try_from(matrix: &QuantizedMatrix) -> Result<Self> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let scheme = matrix.scheme();
        let unsupported = |reason: &str| Error::UnsupportedScheme {
            method: "the product with groups".to_string(),
            scheme,
            reason: reason.to_string(),
        };
        if !scheme.number.is_integer() {
            return Err(unsupported("only integers can be multiplied; dequantise it"));
        }
        let group = match scheme.granularity {
            Granularity::PerTensor | Granularity::PerChannel => cols.max(1),
            Granularity::Group(n) => n,
            Granularity::Flat(_) => return Err(unsupported("groups cross rows; dequantise it")),
        };
        if group < cols && !group.is_multiple_of(32) {
            return Err(unsupported("groups have to be multiples of 32; dequantise it"));
        }
        let order = match matrix.group_index() {
            Some(index) => {
                let mut order: Vec<usize> = (0..cols).collect();
                order.sort_by_key(|c| index[*c]);
                if order.iter().enumerate().any(|(i, c)| index[*c] as usize != i / group) {
                    return Err(unsupported("groups are of unequal size; dequantise it"));
                }
                Some(order)
            }
            None => None,
        };
        let bits = if scheme.number.bits() <= 4 { 4 } else { 8 };
        let mut words = Vec::with_capacity(rows * (cols * bits).div_ceil(32));
        for row in matrix.codes().outer_iter() {
            let codes: Vec<u8> = match &order {
                Some(order) => order.iter().map(|c| row[*c]).collect(),
                None => row.to_vec(),
            };
            words.extend(pack_dense(&codes, bits as u32));
        }
        let groups = cols.div_ceil(group);
        let each = |values: ArrayView2<'_, f32>| -> Vec<T> {
            let at = |r, g| match scheme.granularity {
                Granularity::PerTensor => values[[0, 0]],
                _ => values[[r, g]],
            };
            (0..rows).flat_map(|r| (0..groups).map(move |g| T::narrow(at(r, g)))).collect()
        };
        let scales = match matrix.global_scale() {
            Some(global) => each((&matrix.scales() / global).view()),
            None => each(matrix.scales()),
        };
        let zeros = match (scheme.zero, matrix.zeros()) {
            (ZeroPoint::Symmetric, _) | (_, None) => {
                let middle = (1u32 << (scheme.number.bits() - 1)) as f32;
                let stored = scheme.number.bits() as usize == bits;
                (!stored).then(|| vec![T::narrow(middle); scales.len()])
            }
            (_, Some(zeros)) => Some(each(zeros)),
        };
        let mut kernel =
            Self::from_parts(GroupParts { rows, cols, bits, group, words, scales, zeros })?;
        if order.is_some() || matrix.column_scales().is_some() {
            let input = (0..cols).map(|i| {
                let c = order.as_ref().map_or(i, |order| order[i]);
                (c as u32, matrix.column_scales().map_or(1.0, |s| s[c].recip()))
            });
            kernel.input = Some(input.collect());
        }
        Ok(kernel)
    }
}

impl<T: Storage> LinearOperator for GroupKernel<T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nbytes(&self) -> usize {
        size_of_val(&self.units[..])
            + size_of_val(&self.scales[..])
            + self.zeros.as_ref().map_or(0, |z| size_of_val(&z[..]))
    }

    fn path(&self) -> KernelPath {
        self.selected.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check_vectors(self, x, y)?;
        let mut padded = match &self.input {
            None => x.to_vec(),
            Some(input) => input.iter().map(|(c, by)| x[*c as usize] * by).collect(),
        };
        padded.resize(self.padded_cols(), 0.0);
        self.write(&padded, 1, ArrayViewMut1::from(y).insert_axis(Axis(1)));
        Ok(())
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_matrices(self, &x, &y)?;
        let ordered;
        let x = match &self.input {
            None => x,
            Some(input) => {
                ordered = Array2::from_shape_fn(x.dim(), |(r, c)| {
                    let (from, by) = input[r];
                    x[[from as usize, c]] * by
                });
                ordered.view()
            }
        };
        if self.activations == Activations::F32 && x.ncols() >= MANY {
            let rows = rows_per_task(self, 1, y.ncols());
            multiply_panels(x, y, rows, |first, rows| {
                let mut w = vec![0.0; rows * self.cols];
                if self.cols > 0 {
                    for (r, w) in w.chunks_exact_mut(self.cols).enumerate() {
                        self.selected.run(Dequantize { matrix: self, row: first + r, w });
                    }
                }
                Cow::Owned(w)
            });
            return Ok(());
        }
        self.write(&columns(x, self.padded_cols()), x.ncols(), y);
        Ok(())
    }
}

struct Rows<'a, T> {
    matrix: &'a GroupKernel<T>,
    first: usize,
    /// At most [`TOGETHER`], all of one kind.
    inputs: &'a [Input],
    y: ArrayViewMut2<'a, f32>,
}

impl<T: Storage> Job for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Of one right-hand side, rows one after the other: memory is read in one stream. Two rows
        // share what they load of two; with more there are no registers.
        match self.inputs.len() {
            1 => self.columns::<S, 1, 1>(simd),
            2 => self.columns::<S, 2, 2>(simd),
            3 => self.columns::<S, 3, 1>(simd),
            _ => self.columns::<S, TOGETHER, 1>(simd),
        }
    }
}

impl<T: Storage> Rows<'_, T> {
    #[inline(always)]
    fn columns<S: Simd, const N: usize, const R: usize>(mut self, simd: S) {
        self.y.fill(0.0);
        let rows = self.y.nrows();
        let (spans, tile) = (self.matrix.spans(), self.matrix.tile() / self.matrix.span());
        let mut scales: [RowScales; R] = std::array::from_fn(|_| RowScales::new(self.matrix));
        for first in (0..spans).step_by(tile) {
            let spans = first..spans.min(first + tile);
            for r in (0..rows / R * R).step_by(R) {
                self.rows::<S, N, R>(simd, r, spans.clone(), &mut scales);
            }
            if let Some(scales) = scales.first_chunk_mut::<1>() {
                for r in rows / R * R..rows {
                    self.rows::<S, N, 1>(simd, r, spans.clone(), scales);
                }
            }
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const N: usize, const R: usize>(
        &mut self,
        simd: S,
        r: usize,
        spans: Range<usize>,
        scales: &mut [RowScales; R],
    ) {
        for i in 0..R {
            scales[i].fill(simd, self.matrix, self.first + r + i, &spans);
        }
        let totals = match (&self.inputs[0], self.matrix.bits) {
            (Input::Float { .. }, 4) => self.float::<S, N, R, 4, 8>(simd, r, spans, scales),
            (Input::Float { .. }, _) => self.float::<S, N, R, 8, 4>(simd, r, spans, scales),
            (Input::Integer { .. }, 4) => self.integer::<S, N, R, 4>(simd, r, spans, scales),
            (Input::Integer { .. }, _) => self.integer::<S, N, R, 8>(simd, r, spans, scales),
        };
        for i in 0..R {
            for j in 0..N {
                self.y[[r + i, j]] += simd.sum(totals[i][j]);
            }
        }
    }

    #[inline(always)]
    fn float<S: Simd, const N: usize, const R: usize, const BITS: usize, const IN_WORD: usize>(
        &self,
        simd: S,
        r: usize,
        spans: Range<usize>,
        scales: &[RowScales; R],
    ) -> [[S::F; N]; R] {
        let zero = simd.splat(0.0);
        let span = self.matrix.span();
        let top = simd.splat_i32((32 - BITS) as i32);
        let mut x: [&[[[f32; 16]; IN_WORD]]; N] = [&[]; N];
        let mut sums: [&[[f32; 8]]; N] = [&[]; N];
        for j in 0..N {
            if let Input::Float { x: of, sums: their } = &self.inputs[j] {
                (x[j], sums[j]) = (of.as_chunks().0, their);
            }
        }
        let mut units: [&[[u32; 8]]; R] = [&[]; R];
        for i in 0..R {
            units[i] = self.matrix.row_units(self.first + r + i, spans.start * span);
        }
        let mut totals = [[zero; N]; R];
        let count = units[0].len();
        let before = spans.start * span;
        for g in spans {
            let mut first = g * span - before;
            let last = count.min(first + span);
            let mut products = [[zero; N]; R];
            if R == 1 && N == 1 && span.is_multiple_of(2) {
                let pairs = (last - first) / 2;
                let (units, x) = (&units[0][first..], &x[0][(before + first) / 2..]);
                let sum = pairs_of_units::<S, BITS, IN_WORD>(simd, &units[..2 * pairs], x);
                products[0][0] = simd.wide_fold(sum);
                first += 2 * pairs;
            }
            // Even and odd places apart, so that a multiplication seldom waits for another.
            let (mut even, mut odd) = (products, [[zero; N]; R]);
            for u in first..last {
                let mut words = [simd.splat_i32(0); R];
                for i in 0..R {
                    words[i] = simd.load_u32(&units[i][u]);
                }
                let (pair, half) = ((before + u) / 2, (before + u) % 2);
                for place in 0..IN_WORD {
                    let mut codes = [zero; R];
                    for i in 0..R {
                        let code = if place + 1 == IN_WORD {
                            simd.shift_right_each(words[i], top)
                        } else {
                            simd.and_i32(words[i], simd.splat_i32(mask(BITS, place)))
                        };
                        codes[i] = simd.to_f32(code);
                    }
                    for j in 0..N {
                        let x = simd.load(&x[j][pair][place].as_chunks().0[half]);
                        for i in 0..R {
                            let sum = if place % 2 == 0 { &mut even } else { &mut odd };
                            sum[i][j] = simd.mul_add(codes[i], x, sum[i][j]);
                        }
                    }
                }
            }
            for i in 0..R {
                let (scale, minus_zero) = scales[i].of_span(simd, g);
                for j in 0..N {
                    let products = simd.add(even[i][j], odd[i][j]);
                    let shifted = simd.mul_add(minus_zero, simd.load(&sums[j][g]), products);
                    totals[i][j] = simd.mul_add(scale, shifted, totals[i][j]);
                }
            }
        }
        totals
    }

    #[inline(always)]
    fn integer<S: Simd, const N: usize, const R: usize, const BITS: usize>(
        &self,
        simd: S,
        r: usize,
        spans: Range<usize>,
        scales: &[RowScales; R],
    ) -> [[S::F; N]; R] {
        let zero = simd.splat(0.0);
        let span = self.matrix.span();
        let mut x: [&[Unit]; N] = [&[]; N];
        let mut sums: [&[[f32; 8]]; N] = [&[]; N];
        for j in 0..N {
            if let Input::Integer { units, sums: their } = &self.inputs[j] {
                (x[j], sums[j]) = (units, their);
            }
        }
        let mut units: [&[[u32; 8]]; R] = [&[]; R];
        for i in 0..R {
            units[i] = self.matrix.row_units(self.first + r + i, spans.start * span);
        }
        // Bytes are multiplied as signed ones, 128 below the codes.
        let offset = simd.splat(if BITS == 8 { 128.0 } else { 0.0 });
        let mut totals = [[zero; N]; R];
        let count = units[0].len();
        let before = spans.start * span;
        for g in spans {
            let first = g * span - before;
            let mut of_span = [[zero; N]; R];
            for u in first..count.min(first + span) {
                for i in 0..R {
                    let codes = simd.bytes(simd.load_u32(&units[i][u]));
                    for j in 0..N {
                        let x = &x[j][before + u];
                        let products = simd.to_f32(products::<S, BITS>(simd, codes, x));
                        of_span[i][j] = simd.mul_add(products, simd.load(&x.scales), of_span[i][j]);
                    }
                }
            }
            for i in 0..R {
                let (scale, minus_zero) = scales[i].of_span(simd, g);
                let minus_zero = simd.add(minus_zero, offset);
                for j in 0..N {
                    let sums = simd.load(&sums[j][g]);
                    let shifted = simd.mul_add(minus_zero, sums, of_span[i][j]);
                    totals[i][j] = simd.mul_add(scale, shifted, totals[i][j]);
                }
            }
        }
        totals
    }
}

/// The bits of the code at a place of a word.
#[inline(always)]
fn mask(bits: usize, place: usize) -> i32 {
    (((1u32 << bits) - 1) << (place * bits)) as i32
}

/// For each word of two units, the sum of its codes times what they meet, over pairs of units of one
/// row: sixteen words at once.
#[inline(always)]
fn pairs_of_units<S: Simd, const BITS: usize, const IN_WORD: usize>(
    simd: S,
    units: &[[u32; 8]],
    x: &[[[f32; 16]; IN_WORD]],
) -> S::W {
    // Even and odd places apart, as below.
    let mut sums = [simd.wide_splat(0.0); 2];
    for (words, x) in units.as_flattened().as_chunks().0.iter().zip(x) {
        let words = simd.wide_load_u32(words);
        for place in 0..IN_WORD {
            let code = if place + 1 == IN_WORD {
                simd.wide_shift_right(words, (32 - BITS) as i32)
            } else {
                simd.wide_and_i32(words, simd.wide_splat_i32(mask(BITS, place)))
            };
            let x = simd.wide_load(&x[place]);
            sums[place % 2] = simd.wide_mul_add(simd.wide_to_f32(code), x, sums[place % 2]);
        }
    }
    simd.wide_add(sums[0], sums[1])
}

/// For each word, the sum of its codes times what they meet; of 8 bits, codes less 128.
#[inline(always)]
fn products<S: Simd, const BITS: usize>(simd: S, codes: S::B, x: &Unit) -> S::I {
    let pairs = if BITS == 8 {
        simd.pairs_i8(simd.xor(codes, simd.splat_u8(0x80)), simd.load_i8(&x.codes[0]))
    } else {
        let even = simd.and(codes, simd.splat_u8(15));
        let odd = simd.shift_right::<4>(codes);
        simd.add_i16(
            simd.pairs_u7(even, simd.load_i8(&x.codes[0])),
            simd.pairs_u7(odd, simd.load_i8(&x.codes[1])),
        )
    };
    simd.pairs_i16(pairs, simd.halves_i16(1, 1))
}

struct Dequantize<'a, T> {
    matrix: &'a GroupKernel<T>,
    row: usize,
    w: &'a mut [f32],
}

impl<T: Storage> Job for Dequantize<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, row, w } = self;
        let mut scales = RowScales::new(matrix);
        scales.fill(simd, matrix, row, &(0..matrix.spans()));
        // No group ends inside of 32 columns.
        let units = matrix.padded_cols() / matrix.unit();
        let tiles = (0..units).step_by(matrix.tile());
        let words = tiles.flat_map(|first| {
            matrix.row_units(row, first).as_flattened().chunks_exact(matrix.bits)
        });
        for (i, (w, words)) in w.chunks_mut(32).zip(words).enumerate() {
            let group = 32 * i / matrix.group;
            let (scale, minus_zero) = (scales.scales[group], scales.minus_zeros[group]);
            let mut codes = [0u8; 32];
            if matrix.bits == 4 {
                for (codes, word) in codes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                    for (codes, byte) in codes.chunks_exact_mut(2).zip(word.to_le_bytes()) {
                        (codes[0], codes[1]) = (byte & 15, byte >> 4);
                    }
                }
            } else {
                for (codes, word) in codes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                    *codes = word.to_le_bytes();
                }
            }
            let mut weights = [0.0; 32];
            for (weight, code) in weights.iter_mut().zip(codes) {
                *weight = scale * (f32::from(code) + minus_zero);
            }
            w.copy_from_slice(&weights[..w.len()]);
        }
    }
}
