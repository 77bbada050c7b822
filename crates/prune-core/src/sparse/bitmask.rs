use ndarray::ArrayView2;

use super::{Element, SparseMatrix, check};
use crate::{Error, Mask, Result};

const FORMAT: &str = "bitmask";

/// A matrix stored as one bit an element and the values whose bit is set.
///
/// Bit `b` (least significant first) of byte `q` of a row says whether column `8q + b` is stored,
/// as numpy's `packbits(bitorder="little")`; rows are padded with zero bits to whole bytes. Values
/// stand in row-major order. `row_offsets` says where each row's values start, without a trailing
/// total. These are the parts of the checkpoint formats `sparse-bitmask` and `sparse-24-bitmask`.
///
/// Bytes: ⌈cols / 8⌉ + 8 a row, the size of `T` a value.
///
/// ```
/// use ndarray::array;
/// use prune_core::{Bitmask, SparseMatrix};
///
/// let w = array![[0.0f32, 5.0, 0.0, 4.0], [1.0, 0.0, 0.0, 0.0]];
/// let a = Bitmask::from_dense(w.view())?;
/// assert_eq!(a.bitmask(), [0b1010, 0b0001]);
/// assert_eq!(a.row_offsets(), [0, 2]);
/// assert_eq!(a.data(), [5.0, 4.0, 1.0]);
/// assert_eq!(a.to_dense(), w);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Bitmask<T> {
    rows: usize,
    cols: usize,
    bitmask: Vec<u8>,
    row_offsets: Vec<usize>,
    data: Vec<T>,
}

impl<T: Element> Bitmask<T> {
    /// A `rows x cols` matrix from its parts, which may come from an untrusted file. O(rows · cols
    /// / 8).
    ///
    /// # Errors
    /// [`Error::InvalidSparse`] naming the part at fault:
    /// - `shape`: rows without columns, or a dense size beyond the address space;
    /// - `bitmask`: not `rows · ⌈cols / 8⌉` long, or a bit beyond the last column is set;
    /// - `row_offsets`: not the exclusive prefix sums of the bits set in each row;
    /// - `data`: not as long as bits are set, or a value that is NaN or infinite.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        bitmask: Vec<u8>,
        row_offsets: Vec<usize>,
        data: Vec<T>,
    ) -> Result<Self> {
        let matrix = Self::from_bits(rows, cols, bitmask, data)?;
        check::length(FORMAT, "row_offsets", row_offsets.len(), rows)?;
        let differing = row_offsets.iter().zip(&matrix.row_offsets).position(|(a, b)| a != b);
        match differing {
            None => Ok(matrix),
            Some(r) => Err(Error::InvalidSparse {
                format: FORMAT,
                field: "row_offsets",
                reason: format!(
                    "row {r} starts at {}, expected {} by the bits set before it",
                    row_offsets[r], matrix.row_offsets[r]
                ),
            }),
        }
    }

    /// As [`Bitmask::from_parts`] for formats that do not store `row_offsets`.
    ///
    /// # Errors
    /// As [`Bitmask::from_parts`].
    pub fn from_bits(rows: usize, cols: usize, bitmask: Vec<u8>, data: Vec<T>) -> Result<Self> {
        check::addressable::<T>(FORMAT, rows, cols)?;
        check::bit_rows(FORMAT, "bitmask", rows, cols, &bitmask)?;
        let row_offsets = offsets(rows, cols, &bitmask);
        let set = bitmask.iter().map(|b| b.count_ones() as usize).sum();
        check::length(FORMAT, "data", data.len(), set)?;
        check::finite_data(FORMAT, &data)?;
        Ok(Self { rows, cols, bitmask, row_offsets, data })
    }

    /// The matrix that stores exactly the nonzeros of `dense` (−0.0 is zero).
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the row-major index.
    pub fn from_dense(dense: ArrayView2<'_, T>) -> Result<Self> {
        Self::select(dense, |_, _, v| v != T::zero())
    }

    /// The matrix that stores exactly what `mask` keeps of `dense`, zeros included.
    ///
    /// # Errors
    /// As [`Bitmask::from_dense`]; [`Error::Shape`] when the shapes differ.
    pub fn from_dense_masked(dense: ArrayView2<'_, T>, mask: &Mask) -> Result<Self> {
        check::same_shape(&dense, mask)?;
        Self::select(dense, |r, c, _| mask.is_kept(r, c))
    }

    fn select(dense: ArrayView2<'_, T>, stored: impl Fn(usize, usize, T) -> bool) -> Result<Self> {
        let (rows, cols) = dense.dim();
        check::addressable::<T>(FORMAT, rows, cols)?;
        check::finite_dense(&dense)?;
        let stride = cols.div_ceil(8);
        let mut bitmask = vec![0u8; rows * stride];
        let mut data = Vec::new();
        for (r, row) in dense.outer_iter().enumerate() {
            for (c, &v) in row.iter().enumerate() {
                if stored(r, c, v) {
                    bitmask[r * stride + c / 8] |= 1 << (c % 8);
                    data.push(v);
                }
            }
        }
        let row_offsets = offsets(rows, cols, &bitmask);
        Ok(Self { rows, cols, bitmask, row_offsets, data })
    }

    /// The bits, `⌈cols / 8⌉` bytes a row.
    pub fn bitmask(&self) -> &[u8] {
        &self.bitmask
    }

    /// The index in `data` of each row's first value; `rows` long.
    pub fn row_offsets(&self) -> &[usize] {
        &self.row_offsets
    }

    /// The stored elements.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// `bitmask`, `row_offsets` and `data`, without a copy.
    pub fn into_parts(self) -> (Vec<u8>, Vec<usize>, Vec<T>) {
        (self.bitmask, self.row_offsets, self.data)
    }
}

fn offsets(rows: usize, cols: usize, bitmask: &[u8]) -> Vec<usize> {
    let stride = cols.div_ceil(8);
    let mut next = 0;
    (0..rows)
        .map(|r| {
            let start = next;
            let bits = &bitmask[r * stride..(r + 1) * stride];
            next += bits.iter().map(|b| b.count_ones() as usize).sum::<usize>();
            start
        })
        .collect()
}

/// Positions of the set bits of `bytes`, ascending, the least significant bit of a byte first.
pub(super) fn set_bits(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes.iter().enumerate().flat_map(|(q, &byte)| {
        let mut rest = byte;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let b = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            Some(8 * q + b)
        })
    })
}

impl<T: Element> SparseMatrix for Bitmask<T> {
    type Element = T;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nnz(&self) -> usize {
        self.data.len()
    }

    fn nbytes(&self) -> usize {
        self.bitmask.len() + size_of_val(&self.row_offsets[..]) + size_of_val(&self.data[..])
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (usize, T)> + '_ {
        let stride = self.cols.div_ceil(8);
        let (bits, data) = match self.row_offsets.get(row) {
            Some(&start) => (&self.bitmask[row * stride..(row + 1) * stride], &self.data[start..]),
            None => (&[][..], &[][..]),
        };
        set_bits(bits).zip(data.iter().copied())
    }
}
