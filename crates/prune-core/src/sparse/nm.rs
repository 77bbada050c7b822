use ndarray::{Array2, ArrayView1, ArrayView2};

use super::bitmask::set_bits;
use super::{Element, SparseMatrix, check};
use crate::{Error, Mask, Pattern, Result, Violation};

const FORMAT: &str = "n:m";

/// A matrix of which exactly `n` of every aligned `m` columns are stored.
///
/// `data` has shape `(rows, cols / m · n)`: the `n` values of each group, columns ascending. A
/// group with fewer than `n` nonzeros is filled up with zeros at its lowest free columns, so
/// [`mask`](SparseMatrix::mask) always has `n` positions a group.
///
/// `indices` says where the values stand, one bit an element on average:
/// - 2:4: a nibble a group, `first column | second column << 2`, as sparse tensor cores read it
///   (not reordered). Two groups a byte, the low nibble first; an odd last group leaves the high
///   nibble of the row's last byte 0. The six legal codes are, for the patterns `1100`, `1010`,
///   `0110`, `1001`, `0101` and `0011` (column 0 left), 0x4, 0x8, 0x9, 0xC, 0xD and 0xE.
/// - any other n:m: the row's bits as in [`Bitmask`](crate::Bitmask), a 1 for each stored column,
///   padded with zero bits to whole bytes.
///
/// Bytes: `n / m` of the dense matrix and one bit an element; for f32 2:4 that is 17 bits an
/// element, 1.88 times smaller than dense.
///
/// ```
/// use ndarray::array;
/// use prune_core::{NmPacked, SparseMatrix};
///
/// let w = array![[0.0f32, 5.0, 0.0, 4.0, 1.0, 2.0, 0.0, 0.0]];
/// let a = NmPacked::from_dense(w.view(), 2, 4)?;
/// assert_eq!(a.data(), array![[5.0, 4.0, 1.0, 2.0]]);
/// assert_eq!(a.indices(), [0x4d]); // 0101 is 0xd, 1100 is 0x4
/// assert_eq!(a.to_dense(), w);
///
/// let e = NmPacked::from_dense(array![[1.0f32, 2.0, 3.0, 0.0]].view(), 2, 4).unwrap_err();
/// assert_eq!(
///     e.to_string(),
///     "the pattern 2:4 does not hold: row 0, group 0: 3 kept, at most 2 allowed"
/// );
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct NmPacked<T> {
    n: usize,
    m: usize,
    cols: usize,
    indices: Vec<u8>,
    /// In standard layout.
    data: Array2<T>,
}

impl<T: Element> NmPacked<T> {
    /// A matrix of `cols` columns, with as many rows as `data`, from parts that may come from an
    /// untrusted file. O(rows · cols).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1 <= n < m <= 16`; [`Error::InvalidSparse`] naming the part
    /// at fault:
    /// - `shape`: `cols` is no multiple of `m`, rows without columns, or a dense size beyond the
    ///   address space;
    /// - `indices`: too many or too few bytes, a group that does not say `n` distinct ascending
    ///   columns, or padding that is not zero;
    /// - `data`: not `cols / m · n` wide, or a value that is NaN or infinite.
    pub fn from_parts(
        cols: usize,
        n: usize,
        m: usize,
        indices: Vec<u8>,
        data: Array2<T>,
    ) -> Result<Self> {
        Pattern::nm(n, m)?;
        let invalid = |field, reason| Error::InvalidSparse { format: FORMAT, field, reason };
        let rows = data.nrows();
        if !cols.is_multiple_of(m) {
            return Err(invalid("shape", format!("{cols} columns are not a multiple of {m}")));
        }
        check::addressable::<T>(FORMAT, rows, cols)?;
        let groups = cols / m;
        if data.ncols() != groups * n {
            return Err(invalid(
                "data",
                format!("found {} columns, expected {}", data.ncols(), groups * n),
            ));
        }
        if is_nibble(n, m) {
            check_nibbles(rows, groups, &indices)?;
        } else {
            check_bits(rows, n, m, groups, &indices)?;
        }
        check::finite_data(FORMAT, &data)?;
        let data =
            if data.is_standard_layout() { data } else { data.as_standard_layout().into_owned() };
        Ok(Self { n, m, cols, indices, data })
    }

    /// The matrix that stores the nonzeros of `dense` (−0.0 is zero), filled up to `n` a group.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1 <= n < m <= 16`; [`Error::PatternShape`] when the columns
    /// are no multiple of `m`; [`Error::PatternBroken`] naming the first row and group with more
    /// than `n` nonzeros; [`Error::NotFinite`] with the row-major index.
    pub fn from_dense(dense: ArrayView2<'_, T>, n: usize, m: usize) -> Result<Self> {
        Self::select(dense, n, m, |_, _, v| v != T::zero())
    }

    /// The matrix that stores what `mask` keeps of `dense`, filled up to `n` a group with zeros.
    ///
    /// # Errors
    /// As [`NmPacked::from_dense`], counting what `mask` keeps; [`Error::Shape`] when the shapes
    /// differ.
    pub fn from_dense_masked(
        dense: ArrayView2<'_, T>,
        mask: &Mask,
        n: usize,
        m: usize,
    ) -> Result<Self> {
        check::same_shape(&dense, mask)?;
        Self::select(dense, n, m, |r, c, _| mask.is_kept(r, c))
    }

    fn select(
        dense: ArrayView2<'_, T>,
        n: usize,
        m: usize,
        stored: impl Fn(usize, usize, T) -> bool,
    ) -> Result<Self> {
        let pattern = Pattern::nm(n, m)?;
        let (rows, cols) = dense.dim();
        pattern.check_shape("dense matrix", rows, cols)?;
        check::addressable::<T>(FORMAT, rows, cols)?;
        check::finite_dense(&dense)?;
        let (groups, stride) = (cols / m, cols.div_ceil(8));
        let mut indices = vec![0u8; rows * stride];
        let mut data = Vec::with_capacity(rows * groups * n);
        for (row, values) in dense.outer_iter().enumerate() {
            let out = &mut indices[row * stride..(row + 1) * stride];
            for group in 0..groups {
                let first = group * m;
                let wanted = (0..m).fold(0u16, |bits, j| {
                    bits | u16::from(stored(row, first + j, values[first + j])) << j
                });
                let kept = wanted.count_ones() as usize;
                if kept > n {
                    let violation = Violation { row, group, kept, allowed: n };
                    return Err(Error::PatternBroken { pattern, violation });
                }
                let filled = fill_up(wanted, n - kept);
                for j in (0..m).filter(|j| filled >> j & 1 == 1) {
                    let keep = wanted >> j & 1 == 1;
                    data.push(if keep { values[first + j] } else { T::zero() });
                }
                write_group(out, n, m, group, filled);
            }
        }
        let data = Array2::from_shape_vec((rows, groups * n), data).map_err(|e| {
            Error::InvalidSparse { format: FORMAT, field: "data", reason: e.to_string() }
        })?;
        Ok(Self { n, m, cols, indices, data })
    }

    /// `(n, m)`: stored of each group, size of a group.
    pub fn n_m(&self) -> (usize, usize) {
        (self.n, self.m)
    }

    /// Where the values stand, `⌈cols / 8⌉` bytes a row; see [`NmPacked`] for the code.
    pub fn indices(&self) -> &[u8] {
        &self.indices
    }

    /// The stored elements, `(rows, cols / m · n)`, contiguous.
    pub fn data(&self) -> ArrayView2<'_, T> {
        self.data.view()
    }

    /// `indices` and `data`, without a copy.
    pub fn into_parts(self) -> (Vec<u8>, Array2<T>) {
        (self.indices, self.data)
    }
}

/// Whether the indices are nibbles rather than bits. Both take `⌈cols / 8⌉` bytes a row.
fn is_nibble(n: usize, m: usize) -> bool {
    (n, m) == (2, 4)
}

/// `bits` with the `missing` lowest zeros set.
fn fill_up(mut bits: u16, missing: usize) -> u16 {
    for _ in 0..missing {
        bits |= bits + 1;
    }
    bits
}

/// Writes the columns of one group into a row of zeroed indices.
fn write_group(row: &mut [u8], n: usize, m: usize, group: usize, bits: u16) {
    if is_nibble(n, m) {
        let first = bits.trailing_zeros();
        let second = (bits & bits.wrapping_sub(1)).trailing_zeros();
        row[group / 2] |= ((first | second << 2) as u8) << (group % 2 * 4);
    } else {
        for c in (0..m).filter(|j| bits >> j & 1 == 1).map(|j| group * m + j) {
            row[c / 8] |= 1 << (c % 8);
        }
    }
}

/// The columns of one group, a bit each.
fn read_group(row: &[u8], n: usize, m: usize, group: usize) -> u16 {
    if is_nibble(n, m) {
        let code = nibble(row, group);
        1 << (code & 3) | 1 << (code >> 2)
    } else {
        let bit = |c: usize| u16::from(row[c / 8] >> (c % 8) & 1);
        (0..m).fold(0, |bits, j| bits | bit(group * m + j) << j)
    }
}

fn nibble(row: &[u8], group: usize) -> u8 {
    row[group / 2] >> (group % 2 * 4) & 0xf
}

fn check_nibbles(rows: usize, groups: usize, indices: &[u8]) -> Result<()> {
    let invalid = |reason| Err(Error::InvalidSparse { format: FORMAT, field: "indices", reason });
    let stride = groups.div_ceil(2);
    // The caller has checked that rows times columns does not overflow.
    check::length(FORMAT, "indices", indices.len(), rows * stride)?;
    if stride == 0 {
        return Ok(());
    }
    for (r, row) in indices.chunks_exact(stride).enumerate() {
        for g in 0..groups {
            let code = nibble(row, g);
            if code & 3 >= code >> 2 {
                return invalid(format!(
                    "row {r}, group {g} has code {code:#x}, expected 0x4, 0x8, 0x9, 0xc, 0xd or 0xe"
                ));
            }
        }
        if !groups.is_multiple_of(2) && nibble(row, groups) != 0 {
            return invalid(format!("row {r} has a code beyond its last group"));
        }
    }
    Ok(())
}

fn check_bits(rows: usize, n: usize, m: usize, groups: usize, indices: &[u8]) -> Result<()> {
    let cols = groups * m;
    check::bit_rows(FORMAT, "indices", rows, cols, indices)?;
    if cols == 0 {
        return Ok(());
    }
    let mut counts = vec![0usize; groups];
    for (r, row) in indices.chunks_exact(cols.div_ceil(8)).enumerate() {
        counts.fill(0);
        set_bits(row).for_each(|c| counts[c / m] += 1);
        if let Some(g) = counts.iter().position(|c| *c != n) {
            return Err(Error::InvalidSparse {
                format: FORMAT,
                field: "indices",
                reason: format!("row {r}, group {g} has {} columns, expected {n}", counts[g]),
            });
        }
    }
    Ok(())
}

impl<T: Element> SparseMatrix for NmPacked<T> {
    type Element = T;

    fn rows(&self) -> usize {
        self.data.nrows()
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nnz(&self) -> usize {
        self.data.len()
    }

    fn nbytes(&self) -> usize {
        self.indices.len() + self.data.len() * size_of::<T>()
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (usize, T)> + '_ {
        let stride = self.cols.div_ceil(8);
        let (codes, values) = if row < self.rows() {
            (&self.indices[row * stride..(row + 1) * stride], self.data.row(row))
        } else {
            (&[][..], ArrayView1::from(&[][..]))
        };
        let groups = values.len() / self.n;
        let columns = (0..groups).flat_map(move |group| {
            let bits = read_group(codes, self.n, self.m, group);
            (0..self.m).filter(move |j| bits >> j & 1 == 1).map(move |j| group * self.m + j)
        });
        columns.zip(values.into_iter().copied())
    }
}
