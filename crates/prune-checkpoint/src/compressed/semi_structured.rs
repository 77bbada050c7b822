use ndarray::{Array2, ArrayView2};
use prune_core::{Error, Result};

/// The order of 2:4 metadata in memory.
///
/// Sparse tensor cores read the words of metadata in an order of their own, which depends on the
/// kernel. Without it the words stand in rows, as [`metadata16`] and [`metadata32`] make them.
///
/// ```
/// use prune_checkpoint::MetadataOrder;
/// let order = MetadataOrder::Cutlass16;
/// assert_eq!([0, 1, 2, 3].map(|c| order.offset(64, 0, c)), [0, 2, 128, 130]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetadataOrder {
    /// PyTorch's `SparseSemiStructuredTensorCUTLASS` with 16-bit words, for f16 and bf16.
    Cutlass16,
    /// The same with 32-bit words, for int8.
    Cutlass32,
    /// Sparse Marlin's with 16-bit words: the files `marlin-24` of compressed-tensors.
    Marlin16,
}

impl MetadataOrder {
    /// Rows of metadata have to be a multiple of this, and words in a row of two.
    pub fn rows(self) -> usize {
        match self {
            Self::Cutlass16 => 32,
            Self::Cutlass32 => 16,
            Self::Marlin16 => 64,
        }
    }

    /// Where word `(row, col)` of metadata with `rows` rows stands.
    pub fn offset(self, rows: usize, row: usize, col: usize) -> usize {
        let mut r = match self {
            Self::Cutlass16 => row / 32 * 32 + row % 8 * 4 + row % 32 / 8,
            Self::Cutlass32 => row / 16 * 16 + row % 8 * 2 + row % 16 / 8,
            Self::Marlin16 => {
                row / 64 * 64 + row % 2 * 2 + row % 8 / 4 + row % 32 % 4 / 2 * 32 + row % 64 / 8 * 4
            }
        };
        let mut c = col;
        // The words off the diagonal of each 2 x 2 change places.
        match (r % 2, c % 2) {
            (0, 1) => (r, c) = (r + 1, c - 1),
            (1, 0) => (r, c) = (r - 1, c + 1),
            _ => {}
        }
        c / 2 * 2 * rows + 2 * r + c % 2
    }

    /// The words of `metadata` in this order.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a shape that the order has no place for.
    pub fn reorder<T: Copy + Default>(self, metadata: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let (rows, cols) = self.check(&metadata)?;
        let mut out = vec![T::default(); rows * cols];
        for ((r, c), v) in metadata.indexed_iter() {
            out[self.offset(rows, r, c)] = *v;
        }
        Array2::from_shape_vec((rows, cols), out).map_err(|e| Error::external("2:4 metadata", e))
    }

    /// The inverse of [`MetadataOrder::reorder`].
    ///
    /// # Errors
    /// As [`MetadataOrder::reorder`].
    pub fn restore<T: Copy + Default>(self, reordered: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let (rows, cols) = self.check(&reordered)?;
        let words: Vec<T> = reordered.iter().copied().collect();
        Ok(Array2::from_shape_fn((rows, cols), |(r, c)| words[self.offset(rows, r, c)]))
    }

    fn check<T>(self, metadata: &ArrayView2<'_, T>) -> Result<(usize, usize)> {
        let (rows, cols) = metadata.dim();
        if rows.is_multiple_of(self.rows()) && cols.is_multiple_of(2) {
            return Ok((rows, cols));
        }
        Err(Error::OutOfRange {
            what: "shape of 2:4 metadata".to_string(),
            found: format!("{rows} x {cols} words"),
            expected: format!("rows in multiples of {} and an even number of words", self.rows()),
        })
    }
}

/// The code of two kept columns of four: the first in the low two bits, the second above.
///
/// Fewer or more than two are filled up or cut as PyTorch does it.
///
/// ```
/// use prune_checkpoint::{code_of_kept, kept_of_code};
/// assert_eq!(code_of_kept([false, true, false, true]), 0xd);
/// assert_eq!(kept_of_code(0xd), Some([false, true, false, true]));
/// assert_eq!(code_of_kept([true; 4]), 0x4);
/// assert_eq!(kept_of_code(0x5), None);
/// ```
pub fn code_of_kept(kept: [bool; 4]) -> u8 {
    match kept.map(u8::from) {
        [1, 0, 1, 0] => 0x8,
        [0, 1, 1, 0] | [0, 1, 0, 0] => 0x9,
        [1, 0, 0, 1] | [1, 0, 1, 1] => 0xc,
        [0, 1, 0, 1] | [0, 1, 1, 1] => 0xd,
        [0, 0, _, _] => 0xe,
        [1, 0, 0, 0] => 0x8,
        _ => 0x4,
    }
}

/// The two kept columns of four; `None` for what is no code.
pub fn kept_of_code(code: u8) -> Option<[bool; 4]> {
    let (first, second) = (code & 3, code >> 2);
    (first < second && second < 4)
        .then(|| std::array::from_fn(|c| c == usize::from(first) || c == usize::from(second)))
}

/// Codes of groups, `(rows, columns / 4)`, four to a word, the first in the lowest bits: the
/// metadata of f16 and bf16.
///
/// # Errors
/// [`Error::OutOfRange`] for groups that do not fill words, and for what is no code.
///
/// ```
/// use ndarray::array;
/// use prune_checkpoint::{metadata16, metadata16_codes};
/// let codes = array![[0x4, 0x8, 0x9, 0xe]];
/// let words = metadata16(codes.view())?;
/// assert_eq!(words, array![[0xe984]]);
/// assert_eq!(metadata16_codes(words.view())?, codes);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn metadata16(codes: ArrayView2<'_, u8>) -> Result<Array2<u16>> {
    check_codes(&codes, 4)?;
    Ok(Array2::from_shape_fn((codes.nrows(), codes.ncols() / 4), |(r, w)| {
        (0..4).fold(0, |word, i| word | u16::from(codes[[r, 4 * w + i]]) << (4 * i))
    }))
}

/// As [`metadata16`], eight to a word: the metadata of int8.
///
/// # Errors
/// As [`metadata16`].
pub fn metadata32(codes: ArrayView2<'_, u8>) -> Result<Array2<u32>> {
    check_codes(&codes, 8)?;
    Ok(Array2::from_shape_fn((codes.nrows(), codes.ncols() / 8), |(r, w)| {
        (0..8).fold(0, |word, i| word | u32::from(codes[[r, 8 * w + i]]) << (4 * i))
    }))
}

/// The codes that [`metadata16`] packed.
///
/// # Errors
/// [`Error::OutOfRange`] for what is no code.
pub fn metadata16_codes(words: ArrayView2<'_, u16>) -> Result<Array2<u8>> {
    let codes = Array2::from_shape_fn((words.nrows(), 4 * words.ncols()), |(r, g)| {
        (words[[r, g / 4]] >> (4 * (g % 4)) & 15) as u8
    });
    check_codes(&codes.view(), 4)?;
    Ok(codes)
}

/// The codes that [`metadata32`] packed.
///
/// # Errors
/// [`Error::OutOfRange`] for what is no code.
pub fn metadata32_codes(words: ArrayView2<'_, u32>) -> Result<Array2<u8>> {
    let codes = Array2::from_shape_fn((words.nrows(), 8 * words.ncols()), |(r, g)| {
        (words[[r, g / 8]] >> (4 * (g % 8)) & 15) as u8
    });
    check_codes(&codes.view(), 8)?;
    Ok(codes)
}

fn check_codes(codes: &ArrayView2<'_, u8>, in_word: usize) -> Result<()> {
    if !codes.ncols().is_multiple_of(in_word) {
        return Err(Error::OutOfRange {
            what: "groups of a row".to_string(),
            found: codes.ncols().to_string(),
            expected: format!("a multiple of {in_word}, a word each"),
        });
    }
    match codes.indexed_iter().find(|(_, code)| kept_of_code(**code).is_none()) {
        None => Ok(()),
        Some(((row, group), code)) => Err(Error::OutOfRange {
            what: format!("code of row {row}, group {group}"),
            found: format!("{code:#x}"),
            expected: "0x4, 0x8, 0x9, 0xc, 0xd or 0xe".to_string(),
        }),
    }
}
