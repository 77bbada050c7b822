use ndarray::{ArrayView2, ArrayViewMut2};
use prune_core::{Bitmask, Result, SparseMatrix};

use crate::operator::{
    LinearOperator, by_column, check_matrices, check_vectors, for_row_panels, for_rows,
    rows_per_task,
};
use crate::pages::Pages;
use crate::simd::{Job, KernelPath, Selected, Simd};
use crate::storage::Storage;
use crate::tiles::{ByTile, ElementRows, WideTiles, add, add_scaled};

/// A [`Bitmask`] matrix that multiplies fast.
///
/// For a vector, each byte of the mask expands the next stored values into eight lanes. What is
/// read is least of all unstructured formats, one bit an element and the values, but every eight
/// columns cost the same instructions however few are stored: between 50 % and 80 % sparsity it is
/// for memory, above that [`CsrKernel`](crate::CsrKernel) is faster.
///
/// ```
/// use ndarray::array;
/// use prune_core::Bitmask;
/// use prune_kernels::{BitmaskKernel, LinearOperator};
///
/// let w = array![[0.0f32, 5.0, 0.0, 4.0], [1.0, 0.0, 0.0, 0.0]];
/// let a = BitmaskKernel::from(Bitmask::from_dense(w.view())?);
/// assert_eq!(a.matvec(&[1.0, 10.0, 100.0, 1000.0])?, [4050.0, 1.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BitmaskKernel<T> {
    rows: usize,
    cols: usize,
    nbytes: usize,
    bitmask: Vec<u8>,
    row_offsets: Vec<usize>,
    /// With seven zeros behind the last, so that eight can be loaded at each.
    data: Pages<T>,
    selected: Selected,
}

/// Right-hand sides up to which one after the other is faster.
const FEW: usize = 8;

impl<T: Storage> From<Bitmask<T>> for BitmaskKernel<T> {
    fn from(matrix: Bitmask<T>) -> Self {
        let (rows, cols, nbytes) = (matrix.rows(), matrix.cols(), matrix.nbytes());
        let (bitmask, row_offsets, mut data) = matrix.into_parts();
        data.extend([T::zero(); 8]);
        let (data, selected) = (data.into(), Selected::best());
        Self { rows, cols, nbytes, bitmask, row_offsets, data, selected }
    }
}

impl<T: Storage> BitmaskKernel<T> {
    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](prune_core::Error::OutOfRange) when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        Ok(Self { selected: Selected::new(path)?, ..self })
    }

    /// The bits of a row and the data from its first value on.
    #[inline(always)]
    fn elements(&self, row: usize) -> (&[u8], &[T]) {
        let stride = self.cols.div_ceil(8);
        let bits = &self.bitmask[row * stride..(row + 1) * stride];
        (bits, &self.data[self.row_offsets[row]..])
    }
}

impl<T: Storage> LinearOperator for BitmaskKernel<T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nbytes(&self) -> usize {
        self.nbytes
    }

    fn path(&self) -> KernelPath {
        self.selected.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check_vectors(self, x, y)?;
        let mut padded = x.to_vec();
        padded.resize(x.len().next_multiple_of(8), 0.0);
        for_rows(y, rows_per_task(self, 1, 1), |first, y| {
            self.selected.run(Expand { matrix: self, first, x: &padded, y });
        });
        Ok(())
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_matrices(self, &x, &y)?;
        if y.ncols() <= FEW {
            return by_column(self, x, y);
        }
        let tiles = WideTiles::new(x);
        let rows = rows_per_task(self, 1, y.ncols());
        for_row_panels(y, rows, |first, y| {
            self.selected.run(ByTile { matrix: self, first, tiles: &tiles, y });
        });
        Ok(())
    }
}

struct Expand<'a, T> {
    matrix: &'a BitmaskKernel<T>,
    first: usize,
    /// Padded with zeros to whole bytes of the mask.
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<T: Storage> Job for Expand<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let x = self.x.as_chunks::<8>().0;
        for (i, y) in self.y.iter_mut().enumerate() {
            let (bits, data) = self.matrix.elements(self.first + i);
            let mut sums = [simd.splat(0.0); 4];
            let mut next = 0;
            let (bits4, bits1) = bits.as_chunks::<4>();
            let (x4, x1) = x.as_chunks::<4>();
            for (bits, x) in bits4.iter().zip(x4) {
                for p in 0..4 {
                    sums[p] = expand_add(simd, bits[p], &data[next..], &x[p], sums[p]);
                    next += bits[p].count_ones() as usize;
                }
            }
            for (bits, x) in bits1.iter().zip(x1) {
                sums[0] = expand_add(simd, *bits, &data[next..], x, sums[0]);
                next += bits.count_ones() as usize;
            }
            let sums = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
            *y = simd.sum(sums);
        }
    }
}

/// `sums` and the products of the first values of `data` with the lanes of `x` whose bit is set.
#[inline(always)]
fn expand_add<S: Simd, T: Storage>(
    simd: S,
    bits: u8,
    data: &[T],
    x: &[f32; 8],
    sums: S::F,
) -> S::F {
    // There are always eight, thanks to the zeros at the end.
    let Some(values) = data.first_chunk::<8>() else { return sums };
    simd.mul_add(simd.expand(T::eight(simd, values), bits), simd.load(x), sums)
}

impl<T: Storage> ElementRows for BitmaskKernel<T> {
    #[inline(always)]
    fn row<S: Simd, const P: usize>(&self, simd: S, row: usize, x: &[[[f32; 16]; P]]) -> [S::W; P] {
        // Two sums that do not wait for each other.
        let (mut even, mut odd) = ([simd.wide_splat(0.0); P], [simd.wide_splat(0.0); P]);
        let (bits, data) = self.elements(row);
        let mut elements = SetBits { bits, at: 0, word: 0, next: 0 }.zip(data);
        while let Some((c, w)) = elements.next() {
            even = add_scaled(simd, w.one(), &x[c], even);
            let Some((c, w)) = elements.next() else { break };
            odd = add_scaled(simd, w.one(), &x[c], odd);
        }
        add(simd, even, odd)
    }
}

/// The columns of the set bits of a row, ascending.
struct SetBits<'a> {
    /// What is left after `word`.
    bits: &'a [u8],
    /// The column of the first bit after `word`.
    at: usize,
    word: u64,
    /// The column of the first bit of `word`.
    next: usize,
}

impl Iterator for SetBits<'_> {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        while self.word == 0 {
            if self.bits.is_empty() {
                return None;
            }
            let (now, later) = self.bits.split_at(self.bits.len().min(8));
            let mut bytes = [0; 8];
            bytes[..now.len()].copy_from_slice(now);
            (self.bits, self.word, self.next) = (later, u64::from_le_bytes(bytes), self.at);
            self.at += 64;
        }
        let bit = self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some(self.next + bit)
    }
}
