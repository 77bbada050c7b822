use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use crate::simd::widest;
use crate::{Error, Pattern, Result, Violation};

/// Which weights of a matrix are kept: one bit a weight, row-major, 1 = kept.
///
/// Rows do not start on word boundaries; bits past the end are always 0.
///
/// ```
/// use ndarray::array;
/// use prune_core::{Mask, Pattern};
///
/// let mut mask = Mask::all_kept(2, 4);
/// mask.remove(0, 1);
/// mask.remove(0, 2);
/// mask.remove(1, 0);
/// mask.remove(1, 3);
/// assert_eq!(mask.kept(), 4);
/// mask.check(Pattern::NM { n: 2, m: 4 })?;
///
/// let mut w = array![[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, -8.0]];
/// mask.apply(w.view_mut())?;
/// assert_eq!(w, array![[1.0, 0.0, 0.0, 4.0], [0.0, 6.0, 7.0, 0.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    cols: usize,
    words: Vec<u64>,
}

impl Mask {
    /// A mask of `rows x cols` that keeps everything.
    pub fn all_kept(rows: usize, cols: usize) -> Self {
        let mut mask = Self { rows, cols, words: vec![u64::MAX; (rows * cols).div_ceil(64)] };
        mask.clear_tail();
        mask
    }

    /// A mask of `rows x cols` that removes everything.
    pub fn all_removed(rows: usize, cols: usize) -> Self {
        Self { rows, cols, words: vec![0; (rows * cols).div_ceil(64)] }
    }

    /// The mask that keeps what `kept(row, col)` says.
    pub fn from_fn(rows: usize, cols: usize, mut kept: impl FnMut(usize, usize) -> bool) -> Self {
        let mut mask = Self::all_removed(rows, cols);
        for r in 0..rows {
            for c in 0..cols {
                if kept(r, c) {
                    mask.keep(r, c);
                }
            }
        }
        mask
    }

    /// The mask that keeps every weight that is not zero (−0.0 is zero).
    pub fn of_nonzeros(weight: ArrayView2<'_, f32>) -> Self {
        Self::from_fn(weight.nrows(), weight.ncols(), |r, c| weight[[r, c]] != 0.0)
    }

    /// Rebuilds a mask from its packed words (bit `i % 64` of word `i / 64` is weight `i`).
    ///
    /// # Errors
    /// [`Error::InvalidSparse`] when the word count is wrong or a bit past the end is set.
    pub fn from_words(rows: usize, cols: usize, words: Vec<u64>) -> Result<Self> {
        let invalid = |field, reason| Error::InvalidSparse { format: "mask", field, reason };
        let n = rows
            .checked_mul(cols)
            .ok_or_else(|| invalid("shape", format!("{rows} x {cols} overflows")))?;
        if words.len() != n.div_ceil(64) {
            return Err(invalid(
                "words",
                format!("found {}, expected {} for {n} weights", words.len(), n.div_ceil(64)),
            ));
        }
        let mut mask = Self { rows, cols, words };
        let last = mask.words.last().copied();
        mask.clear_tail();
        if mask.words.last().copied() != last {
            return Err(invalid("words", format!("bits beyond weight {n} are set")));
        }
        Ok(mask)
    }

    /// Builds a mask row by row on all threads. `fill(scratch, row, bits)` appends exactly `cols`
    /// bits; of several errors the one of the lowest row is returned.
    ///
    /// Rows are dealt out in groups that start on a word boundary, so that no two threads share a
    /// word.
    pub(crate) fn build<S>(
        rows: usize,
        cols: usize,
        scratch: impl Fn() -> S + Sync + Send,
        fill: impl Fn(&mut S, usize, &mut BitWriter<'_>) -> Result<()> + Sync + Send,
    ) -> Result<Self> {
        let mut mask = Self::all_removed(rows, cols);
        if mask.words.is_empty() {
            return Ok(mask);
        }
        let group = 64 >> cols.trailing_zeros().min(6);
        let few = SMALL.div_ceil(group * cols);
        let failed = mask
            .words
            .par_chunks_mut(group * cols / 64)
            .enumerate()
            .with_min_len(few)
            .map_init(scratch, |scratch, (g, words)| {
                let mut bits = BitWriter { words, at: 0 };
                (g * group..((g + 1) * group).min(rows))
                    .try_for_each(|row| fill(scratch, row, &mut bits))
            })
            .find_first(Result::is_err);
        match failed {
            Some(Err(e)) => Err(e),
            _ => Ok(mask),
        }
    }

    /// The packed words; see [`Mask::from_words`].
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn clear_tail(&mut self) {
        let used = (self.rows * self.cols) % 64;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether weight `(row, col)` is kept. `false` outside the matrix.
    pub fn is_kept(&self, row: usize, col: usize) -> bool {
        row < self.rows && col < self.cols && self.bit(row * self.cols + col)
    }

    #[inline]
    fn bit(&self, i: usize) -> bool {
        self.words[i / 64] >> (i % 64) & 1 == 1
    }

    /// Keeps weight `(row, col)`; does nothing outside the matrix.
    pub fn keep(&mut self, row: usize, col: usize) {
        if row < self.rows && col < self.cols {
            let i = row * self.cols + col;
            self.words[i / 64] |= 1 << (i % 64);
        }
    }

    /// Removes weight `(row, col)`; does nothing outside the matrix.
    pub fn remove(&mut self, row: usize, col: usize) {
        if row < self.rows && col < self.cols {
            let i = row * self.cols + col;
            self.words[i / 64] &= !(1 << (i % 64));
        }
    }

    /// The number of weights kept.
    pub fn kept(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The number of weights removed.
    pub fn removed(&self) -> usize {
        self.rows * self.cols - self.kept()
    }

    /// The fraction removed; 0 for an empty matrix.
    pub fn sparsity(&self) -> f64 {
        match self.rows * self.cols {
            0 => 0.0,
            n => self.removed() as f64 / n as f64,
        }
    }

    /// The number of weights kept in each row.
    pub fn kept_per_row(&self) -> Vec<usize> {
        (0..self.rows).map(|r| self.count(r * self.cols, (r + 1) * self.cols)).collect()
    }

    /// Kept weights among the row-major indices `start..end`.
    fn count(&self, start: usize, end: usize) -> usize {
        let mut total = 0;
        let mut i = start;
        while i < end {
            let (word, shift) = (i / 64, i % 64);
            let take = (64 - shift).min(end - i);
            let bits = self.words[word] >> shift;
            let bits = if take == 64 { bits } else { bits & ((1 << take) - 1) };
            total += bits.count_ones() as usize;
            i += take;
        }
        total
    }

    /// Row-major indices of the kept weights, ascending.
    pub fn kept_indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(w, &bits)| {
            let mut rest = bits;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let b = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                Some(w * 64 + b)
            })
        })
    }

    /// Columns of the kept weights of one row, ascending.
    pub fn kept_in_row(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let cols = if row < self.rows { self.cols } else { 0 };
        (0..cols).filter(move |&c| self.bit(row * self.cols + c))
    }

    /// Keeps what both keep.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes differ; likewise for the other set operations.
    pub fn and(&self, other: &Mask) -> Result<Mask> {
        self.zip(other, |a, b| a & b)
    }

    /// Keeps what either keeps.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn or(&self, other: &Mask) -> Result<Mask> {
        self.zip(other, |a, b| a | b)
    }

    /// Keeps what exactly one keeps: where two masks disagree.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn xor(&self, other: &Mask) -> Result<Mask> {
        self.zip(other, |a, b| a ^ b)
    }

    /// Keeps what this one removes.
    #[must_use]
    pub fn complement(&self) -> Mask {
        let words = self.words.iter().map(|w| !w).collect();
        let mut mask = Mask { rows: self.rows, cols: self.cols, words };
        mask.clear_tail();
        mask
    }

    fn zip(&self, other: &Mask, f: impl Fn(u64, u64) -> u64) -> Result<Mask> {
        self.same_shape("mask", other.rows, other.cols)?;
        let words = self.words.iter().zip(&other.words).map(|(a, b)| f(*a, *b)).collect();
        Ok(Mask { rows: self.rows, cols: self.cols, words })
    }

    fn same_shape(&self, what: &str, rows: usize, cols: usize) -> Result<()> {
        if (rows, cols) == (self.rows, self.cols) {
            return Ok(());
        }
        Err(Error::Shape {
            what: what.to_string(),
            found: vec![rows, cols],
            expected: vec![self.rows, self.cols],
        })
    }

    /// Sets every removed weight to `+0.0`.
    ///
    /// Runs on all threads at the speed of memory when the matrix is in standard layout.
    ///
    /// # Errors
    /// [`Error::Shape`] when the matrix has another shape.
    pub fn apply(&self, mut weight: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.same_shape("weight", weight.nrows(), weight.ncols())?;
        if let Some(values) = weight.as_slice_mut() {
            values.par_chunks_mut(SMALL).zip(self.words.par_chunks(SMALL / 64)).for_each(
                |(values, words)| {
                    widest(
                        #[inline(always)]
                        || zero_removed(values, words),
                    );
                },
            );
            return Ok(());
        }
        for (r, mut row) in weight.outer_iter_mut().enumerate() {
            let start = r * self.cols;
            for (c, v) in row.iter_mut().enumerate() {
                if !self.bit(start + c) {
                    *v = 0.0;
                }
            }
        }
        Ok(())
    }

    /// Checks that the mask holds `pattern`: at most `n` kept in each group of `m`, or every block
    /// or column wholly kept or wholly removed. `Unstructured` always holds.
    ///
    /// # Errors
    /// [`Error::PatternShape`] when the pattern does not divide the shape;
    /// [`Error::PatternBroken`] naming the first row and group where it does not hold.
    pub fn check(&self, pattern: Pattern) -> Result<()> {
        pattern.check_shape("mask", self.rows, self.cols)?;
        let violation = match pattern {
            Pattern::Unstructured => None,
            Pattern::NM { n, m } => self.first_bad_group(n, m),
            Pattern::Block { rows, cols } => self.first_bad_block(rows, cols),
            Pattern::Channels => self.first_bad_block(self.rows.max(1), 1),
        };
        match violation {
            None => Ok(()),
            Some(violation) => Err(Error::PatternBroken { pattern, violation }),
        }
    }

    fn first_bad_group(&self, n: usize, m: usize) -> Option<Violation> {
        let groups = self.cols / m;
        (0..self.rows).flat_map(|r| (0..groups).map(move |g| (r, g))).find_map(|(row, group)| {
            let start = row * self.cols + group * m;
            let kept = self.count(start, start + m);
            (kept > n).then_some(Violation { row, group, kept, allowed: n })
        })
    }

    fn first_bad_block(&self, height: usize, width: usize) -> Option<Violation> {
        let blocks = self.cols / width;
        (0..self.rows / height).flat_map(|r| (0..blocks).map(move |g| (r, g))).find_map(
            |(row, group)| {
                let kept: usize = (row * height..(row + 1) * height)
                    .map(|r| {
                        let start = r * self.cols + group * width;
                        self.count(start, start + width)
                    })
                    .sum();
                (kept != 0 && kept != height * width).then_some(Violation {
                    row,
                    group,
                    kept,
                    allowed: height * width,
                })
            },
        )
    }
}

/// Weights that are not worth a task of their own; a multiple of 64.
const SMALL: usize = 1 << 14;

/// Appends bits to the words of a mask, which start out as 0.
pub(crate) struct BitWriter<'a> {
    words: &'a mut [u64],
    at: usize,
}

impl BitWriter<'_> {
    /// Appends the low `len <= 64` bits of `bits`; those above are 0.
    #[inline]
    pub(crate) fn push(&mut self, bits: u64, len: usize) {
        let (word, shift) = (self.at / 64, self.at % 64);
        self.words[word] |= bits << shift;
        if shift + len > 64 {
            self.words[word + 1] |= bits >> (64 - shift);
        }
        self.at += len;
    }

    /// Appends `len` bits that are all `keep`.
    pub(crate) fn push_run(&mut self, keep: bool, len: usize) {
        if !keep {
            self.at += len;
            return;
        }
        let mut rest = len;
        while rest >= 64 {
            self.push(u64::MAX, 64);
            rest -= 64;
        }
        if rest > 0 {
            self.push((1 << rest) - 1, rest);
        }
    }

    /// Sets bit `i` of the `len` bits appended last.
    pub(crate) fn set_back(&mut self, len: usize, i: usize) {
        let at = self.at - len + i;
        self.words[at / 64] |= 1 << (at % 64);
    }
}

/// Zeroes the values whose bit is 0.
#[inline(always)]
fn zero_removed(values: &mut [f32], words: &[u64]) {
    let (whole, tail) = values.as_chunks_mut::<64>();
    for (values, &word) in whole.iter_mut().zip(words) {
        for (half, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let bits = (word >> (32 * half)) as u32;
            for (i, v) in values.iter_mut().enumerate() {
                let keep = if bits & (1 << i) != 0 { u32::MAX } else { 0 };
                *v = f32::from_bits(v.to_bits() & keep);
            }
        }
    }
    if let Some(&word) = words.get(whole.len()) {
        for (i, v) in tail.iter_mut().enumerate() {
            if word >> i & 1 == 0 {
                *v = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arb_mask() -> impl Strategy<Value = Mask> {
        (1usize..9, 1usize..80).prop_flat_map(|(r, c)| {
            proptest::collection::vec(any::<bool>(), r * c)
                .prop_map(move |bits| Mask::from_fn(r, c, |i, j| bits[i * c + j]))
        })
    }

    proptest! {
        #[test]
        fn counts_agree_with_iteration(mask in arb_mask()) {
            let kept: Vec<usize> = mask.kept_indices().collect();
            prop_assert_eq!(kept.len(), mask.kept());
            prop_assert!(kept.is_sorted());
            prop_assert_eq!(mask.kept_per_row().iter().sum::<usize>(), mask.kept());
            for r in 0..mask.rows() {
                prop_assert_eq!(mask.kept_in_row(r).count(), mask.kept_per_row()[r]);
            }
            prop_assert_eq!(mask.kept() + mask.removed(), mask.rows() * mask.cols());
        }

        #[test]
        fn set_operations_follow_de_morgan(mask in arb_mask(), salt in any::<u64>()) {
            let other = Mask::from_fn(mask.rows(), mask.cols(), |r, c| {
                (salt >> ((r * 7 + c) % 64)) & 1 == 1
            });
            let and = mask.and(&other).unwrap();
            let or = mask.complement().or(&other.complement()).unwrap().complement();
            prop_assert_eq!(&and, &or);
            let xor = mask.xor(&other).unwrap();
            prop_assert_eq!(xor.kept(), mask.kept() + other.kept() - 2 * and.kept());
            prop_assert_eq!(mask.complement().complement(), mask.clone());
            prop_assert_eq!(Mask::from_words(mask.rows(), mask.cols(), mask.words().to_vec()).unwrap(), mask);
        }
    }

    proptest! {
        #[test]
        fn building_by_rows_equals_building_by_bits(mask in arb_mask()) {
            let (rows, cols) = (mask.rows(), mask.cols());
            let built = Mask::build(rows, cols, || (), |(), row, bits| {
                let mut c = 0;
                while c < cols {
                    let len = (cols - c).min(64);
                    let word = (0..len).fold(0, |w, i| w | u64::from(mask.is_kept(row, c + i)) << i);
                    bits.push(word, len);
                    c += len;
                }
                Ok(())
            });
            prop_assert_eq!(built.unwrap(), mask.clone());
            let runs = Mask::build(rows, cols, || (), |(), row, bits| {
                (0..cols).for_each(|c| bits.push_run(mask.is_kept(row, c), 1));
                Ok(())
            });
            prop_assert_eq!(runs.unwrap(), mask);
        }

        #[test]
        fn applying_zeroes_the_removed_in_any_layout(mask in arb_mask()) {
            let dense = ndarray::Array2::from_shape_fn((mask.rows(), mask.cols()), |(r, c)| {
                if (r + c) % 3 == 0 { -0.0 } else { (r * 100 + c) as f32 - 37.5 }
            });
            let mut plain = dense.clone();
            mask.apply(plain.view_mut()).unwrap();
            let mut turned = dense.t().as_standard_layout().into_owned().reversed_axes();
            mask.apply(turned.view_mut()).unwrap();
            for ((i, new), old) in plain.indexed_iter().zip(&dense) {
                let want = if mask.is_kept(i.0, i.1) { old.to_bits() } else { 0 };
                prop_assert_eq!(new.to_bits(), want);
                prop_assert_eq!(turned[i].to_bits(), want);
            }
        }
    }

    #[test]
    fn building_returns_the_error_of_the_lowest_row() {
        let built = Mask::build(
            1000,
            64,
            || (),
            |(), row, bits| {
                bits.push_run(true, 64);
                match row {
                    300.. => Err(Error::Infeasible(row.to_string())),
                    _ => Ok(()),
                }
            },
        );
        assert_eq!(built.unwrap_err().to_string(), "infeasible budget: 300");
    }

    #[test]
    fn broken_pattern_names_first_row_and_group() {
        let mut mask = Mask::from_fn(3, 8, |_, c| c % 4 < 2);
        assert!(mask.check(Pattern::NM { n: 2, m: 4 }).is_ok());
        mask.keep(1, 6);
        mask.keep(2, 2);
        let err = mask.check(Pattern::NM { n: 2, m: 4 }).unwrap_err();
        assert_eq!(
            err.to_string(),
            "the pattern 2:4 does not hold: row 1, group 1: 3 kept, at most 2 allowed"
        );
        let err = mask.check(Pattern::NM { n: 1, m: 5 }).unwrap_err();
        assert!(err.to_string().contains("8 columns are not a multiple of 5"), "{err}");
    }

    #[test]
    fn blocks_are_whole_or_empty() {
        let mut mask = Mask::from_fn(4, 6, |r, c| (r / 2 + c / 3) % 2 == 0);
        let pattern = Pattern::Block { rows: 2, cols: 3 };
        assert!(mask.check(pattern).is_ok());
        mask.remove(3, 5);
        match mask.check(pattern) {
            Err(Error::PatternBroken { violation, .. }) => {
                assert_eq!((violation.row, violation.group, violation.kept), (1, 1, 5));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bits_past_the_end_are_refused() {
        assert!(Mask::from_words(1, 3, vec![0b1000]).is_err());
        assert!(Mask::from_words(1, 3, vec![]).is_err());
        assert!(Mask::from_words(usize::MAX, 3, vec![]).is_err());
    }
}
