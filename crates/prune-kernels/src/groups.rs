use std::borrow::Cow;

use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};
use prune_core::{Error, Granularity, QuantizedMatrix, Result, ZeroPoint, pack_dense};

use crate::activations::{Activations, Q8Block, ToBlocks};
use crate::dense::multiply_panels;
use crate::operator::{
    LinearOperator, check_matrices, check_vectors, for_row_panels, rows_per_task,
};
use crate::simd::{Job, KernelPath, Selected, Simd};
use crate::storage::Storage;
use crate::tiles::columns;

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
    /// Rows padded with zeros to whole units.
    units: Vec<[u32; 8]>,
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
        let row_units = row_words.div_ceil(8);
        let mut units = vec![[0u32; 8]; rows * row_units];
        if row_words > 0 {
            for (to, from) in units.chunks_exact_mut(row_units).zip(words.chunks_exact(row_words)) {
                to.as_flattened_mut()[..row_words].copy_from_slice(from);
            }
        }
        Ok(Self {
            rows,
            cols,
            bits,
            // One group a row is as good as one of whole units.
            group: if group < cols { group } else { cols.next_multiple_of(64).max(64) },
            units,
            groups,
            scales,
            zeros,
            input: None,
            activations: Activations::F32,
            selected: Selected::best(),
        })
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

    #[inline(always)]
    fn row_units(&self, row: usize) -> &[[u32; 8]] {
        let units = self.padded_cols() / self.unit();
        &self.units[row * units..(row + 1) * units]
    }

    #[inline(always)]
    fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales[row * self.groups + group].one()
    }

    #[inline(always)]
    fn zero(&self, row: usize, group: usize) -> f32 {
        match &self.zeros {
            Some(zeros) => zeros[row * self.groups + group].one(),
            None => (1u32 << (self.bits - 1)) as f32,
        }
    }

    /// Units from one possible change of the scale to the next.
    fn span(&self) -> usize {
        if self.group.is_multiple_of(self.unit()) { self.group / self.unit() } else { 1 }
    }

    /// Scales and zero points of the two halves of the units of a span.
    #[inline(always)]
    fn halves(&self, row: usize, span: usize) -> [(f32, f32); 2] {
        let last = self.groups - 1;
        let first = span * self.span() * self.unit();
        let of = |column: usize| {
            let group = (column / self.group).min(last);
            (self.scale(row, group), self.zero(row, group))
        };
        if self.group.is_multiple_of(self.unit()) {
            let same = of(first);
            return [same, same];
        }
        [of(first), of(first + self.unit() / 2)]
    }

    fn write(&self, x: &[f32], vectors: usize, mut y: ArrayViewMut2<'_, f32>) {
        let padded = self.padded_cols();
        let inputs: Vec<Input> =
            (0..vectors).map(|j| Input::new(self, &x[j * padded..(j + 1) * padded])).collect();
        for (i, inputs) in inputs.chunks(TOGETHER).enumerate() {
            let first = i * TOGETHER;
            let y = y.slice_mut(s![.., first..first + inputs.len()]);
            for_row_panels(y, rows_per_task(self, 1), |first, y| {
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
            multiply_panels(x, y, rows_per_task(self, 1), |first, rows| {
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

/// A right-hand side in the order of the codes in a unit.
enum Input {
    Float {
        /// For each unit, for each place of a code in a word: the element of each of the eight
        /// words, divided by the place's weight so that the code need not be shifted there.
        x: Vec<[f32; 8]>,
        /// For each span, the sum of what each word meets.
        sums: Vec<[f32; 8]>,
    },
    /// Two blocks of 32 a unit for 4 bits, one for 8.
    Integer(Vec<Unit>),
}

/// A unit of a right-hand side in 8 bits.
struct Unit {
    /// What meets the low nibbles (all bytes, for 8 bits) and the high nibbles.
    codes: [[i8; 32]; 2],
    /// The sums of the codes that each word meets.
    sums: [f32; 8],
    /// The scale of each word's codes.
    scales: [f32; 8],
}

impl Input {
    /// Of padded length.
    fn new<T: Storage>(matrix: &GroupKernel<T>, x: &[f32]) -> Self {
        let (bits, unit) = (matrix.bits, matrix.unit());
        if matrix.activations == Activations::F32 {
            let in_word = 32 / bits;
            let mut ordered = vec![[0.0; 8]; x.len() / 8];
            let mut sums = vec![[0.0; 8]; (x.len() / unit).div_ceil(matrix.span())];
            for (u, from) in x.chunks_exact(unit).enumerate() {
                let sums = &mut sums[u / matrix.span()];
                for (place, to) in ordered[u * in_word..][..in_word].iter_mut().enumerate() {
                    // The topmost code is shifted down, for it would reach the sign.
                    let scale = match place + 1 == in_word {
                        true => 1.0,
                        false => ((1u32 << (place * bits)) as f32).recip(),
                    };
                    for word in 0..8 {
                        let v = from[word * in_word + place];
                        to[word] = v * scale;
                        sums[word] += v;
                    }
                }
            }
            return Self::Float { x: ordered, sums };
        }
        let precision = matrix.activations;
        let blocks = matrix.selected.run(ToBlocks { x, precision });
        if bits == 8 {
            return Self::Integer(blocks.into_iter().map(Unit::of_bytes).collect());
        }
        Self::Integer(blocks.as_chunks::<2>().0.iter().map(Unit::of_nibbles).collect())
    }
}

impl Unit {
    fn of_bytes(block: Q8Block) -> Self {
        let Q8Block { codes, sums, scale, .. } = block;
        Self { codes: [codes, [0; 32]], sums: sums.map(|s| s as f32), scales: [scale; 8] }
    }

    fn of_nibbles(blocks: &[Q8Block; 2]) -> Self {
        let [a, b] = blocks;
        let code = |c: usize| if c < 32 { a.codes[c] } else { b.codes[c - 32] };
        let sum = |word: usize| (0..8).map(|i| f32::from(code(8 * word + i))).sum();
        let codes = [0, 1].map(|odd| std::array::from_fn(|i| code(2 * i + odd)));
        let scales = std::array::from_fn(|word| if word < 4 { a.scale } else { b.scale });
        Self { codes, sums: std::array::from_fn(sum), scales }
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
    fn run<S: Simd>(mut self, simd: S) {
        match self.inputs.len() {
            1 => self.columns::<S, 1>(simd),
            2 => self.columns::<S, 2>(simd),
            3 => self.columns::<S, 3>(simd),
            _ => self.columns::<S, TOGETHER>(simd),
        }
    }
}

impl<T: Storage> Rows<'_, T> {
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S) {
        let mut x: [&[[f32; 8]]; N] = [&[]; N];
        let mut sums: [&[[f32; 8]]; N] = [&[]; N];
        let mut units: [&[Unit]; N] = [&[]; N];
        for j in 0..N {
            match &self.inputs[j] {
                Input::Float { x: of, sums: their } => (x[j], sums[j]) = (of, their),
                Input::Integer(of) => units[j] = of,
            }
        }
        let integer = matches!(self.inputs[0], Input::Integer(_));
        for r in 0..self.y.nrows() {
            let row = self.first + r;
            let totals = match (integer, self.matrix.bits) {
                (true, 4) => self.integer::<S, N, 4>(simd, row, units),
                (true, _) => self.integer::<S, N, 8>(simd, row, units),
                (false, 4) => self.float::<S, N, 4, 8>(simd, row, x, sums),
                (false, _) => self.float::<S, N, 8, 4>(simd, row, x, sums),
            };
            for j in 0..N {
                self.y[[r, j]] = simd.sum(totals[j]);
            }
        }
    }

    #[inline(always)]
    fn float<S: Simd, const N: usize, const BITS: usize, const IN_WORD: usize>(
        &self,
        simd: S,
        row: usize,
        x: [&[[f32; 8]]; N],
        sums: [&[[f32; 8]]; N],
    ) -> [S::F; N] {
        let zero = simd.splat(0.0);
        let mut totals = [zero; N];
        let span = self.matrix.span();
        let top = simd.splat_i32((32 - BITS) as i32);
        for (i, units) in self.matrix.row_units(row).chunks(span).enumerate() {
            let (mut even, mut odd) = ([zero; N], [zero; N]);
            for (u, words) in units.iter().enumerate() {
                let words = simd.load_u32(words);
                let first = (i * span + u) * IN_WORD;
                let mut of = [&[[0.0; 8]; IN_WORD]; N];
                for j in 0..N {
                    if let Some(x) = x[j][first..].first_chunk::<IN_WORD>() {
                        of[j] = x;
                    }
                }
                for place in 0..IN_WORD {
                    let code = if place + 1 == IN_WORD {
                        simd.shift_right_each(words, top)
                    } else {
                        let mask = ((1u32 << BITS) - 1) << (place * BITS);
                        simd.and_i32(words, simd.splat_i32(mask as i32))
                    };
                    let code = simd.to_f32(code);
                    for j in 0..N {
                        let x = simd.load(&of[j][place]);
                        if place % 2 == 0 {
                            even[j] = simd.mul_add(code, x, even[j]);
                        } else {
                            odd[j] = simd.mul_add(code, x, odd[j]);
                        }
                    }
                }
            }
            let [(low, low_zero), (high, high_zero)] = self.matrix.halves(row, i);
            let scale = simd.halves(low, high);
            let minus_zero = simd.halves(-low_zero, -high_zero);
            for j in 0..N {
                let products = simd.add(even[j], odd[j]);
                let shifted = simd.mul_add(minus_zero, simd.load(&sums[j][i]), products);
                totals[j] = simd.mul_add(scale, shifted, totals[j]);
            }
        }
        totals
    }

    #[inline(always)]
    fn integer<S: Simd, const N: usize, const BITS: usize>(
        &self,
        simd: S,
        row: usize,
        x: [&[Unit]; N],
    ) -> [S::F; N] {
        let mut totals = [simd.splat(0.0); N];
        let span = self.matrix.span();
        let (low_bits, sign) = (simd.splat_u8(15), simd.splat_u8(0x80));
        for (i, units) in self.matrix.row_units(row).chunks(span).enumerate() {
            let [(low, low_zero), (high, high_zero)] = self.matrix.halves(row, i);
            let scale = simd.halves(low, high);
            // Bytes are multiplied as signed ones, 128 below the codes.
            let offset = if BITS == 8 { 128.0 } else { 0.0 };
            let minus_zero = simd.halves(offset - low_zero, offset - high_zero);
            for (u, words) in units.iter().enumerate() {
                let codes = simd.bytes(simd.load_u32(words));
                for j in 0..N {
                    let x = &x[j][i * span + u];
                    let pairs = if BITS == 8 {
                        simd.pairs_i8(simd.xor(codes, sign), simd.load_i8(&x.codes[0]))
                    } else {
                        let even = simd.and(codes, low_bits);
                        let odd = simd.shift_right::<4>(codes);
                        simd.add_i16(
                            simd.pairs_u7(even, simd.load_i8(&x.codes[0])),
                            simd.pairs_u7(odd, simd.load_i8(&x.codes[1])),
                        )
                    };
                    let products = simd.pairs_i16(pairs, simd.halves_i16(1, 1));
                    // Exact for whole zero points: all of it is below 2^24.
                    let sums = simd.load(&x.sums);
                    let shifted = simd.mul_add(minus_zero, sums, simd.to_f32(products));
                    let scale = simd.mul(scale, simd.load(&x.scales));
                    totals[j] = simd.mul_add(shifted, scale, totals[j]);
                }
            }
        }
        totals
    }
}

struct Dequantize<'a, T> {
    matrix: &'a GroupKernel<T>,
    row: usize,
    w: &'a mut [f32],
}

impl<T: Storage> Job for Dequantize<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (bits, in_word) = (self.matrix.bits, 32 / self.matrix.bits);
        let words = self.matrix.row_units(self.row).as_flattened();
        let groups = self.w.chunks_mut(self.matrix.group).enumerate();
        for (g, w) in groups {
            let (scale, zero) = (self.matrix.scale(self.row, g), self.matrix.zero(self.row, g));
            let words = &words[g * self.matrix.group / in_word..];
            for (w, word) in w.chunks_mut(in_word).zip(words) {
                for (place, w) in w.iter_mut().enumerate() {
                    let code = word >> (place * bits) & ((1u32 << bits) - 1);
                    *w = scale * (code as f32 - zero);
                }
            }
        }
    }
}
