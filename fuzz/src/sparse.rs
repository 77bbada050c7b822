//! Sparse matrices from parts.

use half::bf16;
use ndarray::{Array1, Array2, Array3};
use prune_core::{Bitmask, BlockDiagonal, Bsr, Csr, Error, Mask, NmPacked, SparseMatrix};

use crate::bounded::{Limit, Outcome, bounded};
use crate::parts::Parts;

/// A part is at most eight times as long in memory as here, and a check may copy one of them.
const LIMIT: Limit = Limit { per_byte: 32, constant: 1 << 20 };

/// Everything that a matrix which was accepted can be asked.
fn accepted<M>(matrix: &M, again: impl FnOnce(Array2<bf16>, &Mask) -> Result<M, Error>) -> Outcome
where
    M: SparseMatrix<Element = bf16> + PartialEq + std::fmt::Debug,
{
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut stored = 0;
    for r in 0..rows.min(100) {
        let columns: Vec<usize> = matrix.row(r).map(|(c, _)| c).collect();
        assert!(columns.windows(2).all(|pair| pair[0] < pair[1]), "row {r}: {columns:?}");
        assert!(columns.iter().all(|c| *c < cols), "row {r}: {columns:?}");
        stored += columns.len();
    }
    assert_eq!(matrix.row(rows).count(), 0);
    if rows <= 100 {
        assert_eq!(stored, matrix.nnz());
    }
    assert!(matrix.nbytes() >= 2 * matrix.nnz());
    // The dense form is as large as the shape says: not to be made of just any shape.
    if rows.max(1).saturating_mul(cols.max(1)) > 1 << 12 {
        return Outcome::Accepted;
    }
    let dense = matrix.to_dense();
    let mask = matrix.mask();
    assert_eq!(mask.kept(), matrix.nnz());
    assert_eq!(again(dense.clone(), &mask).expect("what was stored is valid"), *matrix);
    let ones = Array1::from_elem(cols, bf16::ONE);
    let product = matrix.matvec(ones.view()).expect("the lengths agree");
    let table = matrix.matmul(Array2::from_elem((cols, 1), bf16::ONE).view()).expect("they agree");
    // Sums of finite values may overflow, to the same infinity or NaN in both.
    for (a, b) in product.iter().zip(table.column(0)) {
        assert_eq!(a.to_bits(), b.to_bits());
    }
    assert!(matrix.matvec(Array1::from_elem(cols + 1, bf16::ONE).view()).is_err());
    Outcome::Accepted
}

/// Rows, columns, `indptr`, `indices`, `data`.
pub fn csr(input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || {
        let mut parts = Parts(input);
        let (rows, cols) = (parts.size(), parts.size());
        let (indptr, indices) = (parts.sizes(), parts.indices());
        match Csr::from_parts(rows, cols, indptr, indices, parts.data()) {
            Ok(matrix) => accepted(&matrix, |d, mask| Csr::from_dense_masked(d.view(), mask)),
            Err(e) => Outcome::refused(&e),
        }
    })
}

/// Rows, columns, height and width of a block, `indptr`, `indices`, `data`.
pub fn bsr(input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || {
        let mut parts = Parts(input);
        let (rows, cols) = (parts.size(), parts.size());
        let [height, width] = parts.array::<2>().map(usize::from);
        let (indptr, indices, mut data) = (parts.sizes(), parts.indices(), parts.data());
        let blocks = data.len().checked_div(height * width).unwrap_or(0);
        data.truncate(blocks * height * width);
        let data =
            Array3::from_shape_vec((blocks, height, width), data).expect("it was cut to fit");
        match Bsr::from_parts(rows, cols, indptr, indices, data) {
            Ok(matrix) => {
                accepted(&matrix, |d, mask| Bsr::from_dense_masked(d.view(), mask, height, width))
            }
            Err(e) => Outcome::refused(&e),
        }
    })
}

/// Columns, n, m, rows, `indices`, `data`.
pub fn nm_packed(input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || {
        let mut parts = Parts(input);
        let cols = parts.size();
        let [n, m, rows] = parts.array::<3>().map(usize::from);
        let (indices, mut data) = (parts.bytes(), parts.data());
        let width = data.len().checked_div(rows).unwrap_or(0);
        data.truncate(rows * width);
        let data = Array2::from_shape_vec((rows, width), data).expect("it was cut to fit");
        match NmPacked::from_parts(cols, n, m, indices, data) {
            Ok(matrix) => {
                accepted(&matrix, |d, mask| NmPacked::from_dense_masked(d.view(), mask, n, m))
            }
            Err(e) => Outcome::refused(&e),
        }
    })
}

/// Rows, columns, `bitmask`, `row_offsets`, `data`.
pub fn bitmask(input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || {
        let mut parts = Parts(input);
        let (rows, cols) = (parts.size(), parts.size());
        let (bits, offsets, data) = (parts.bytes(), parts.sizes(), parts.data());
        if let Ok(matrix) = Bitmask::from_bits(rows, cols, bits.clone(), data.clone()) {
            let (_, right, _) = matrix.into_parts();
            assert_eq!(
                Bitmask::from_parts(rows, cols, bits.clone(), offsets.clone(), data.clone())
                    .is_ok(),
                offsets == right
            );
        }
        match Bitmask::from_parts(rows, cols, bits, offsets, data) {
            Ok(matrix) => accepted(&matrix, |d, mask| Bitmask::from_dense_masked(d.view(), mask)),
            Err(e) => Outcome::refused(&e),
        }
    })
}

/// Rows, rows of a block, columns of a block, `data`.
pub fn block_diagonal(input: &[u8]) -> Outcome {
    bounded(input, LIMIT, || {
        let mut parts = Parts(input);
        let size = parts.size();
        let [height, width] = parts.array::<2>().map(usize::from);
        let mut data = parts.data();
        let blocks = data.len().checked_div(height * width).unwrap_or(0);
        data.truncate(blocks * height * width);
        let data =
            Array3::from_shape_vec((blocks, height, width), data).expect("it was cut to fit");
        match BlockDiagonal::from_parts(size, data) {
            Ok(matrix) => {
                accepted(&matrix, |_, _| BlockDiagonal::from_parts(size, matrix.data().to_owned()))
            }
            Err(e) => Outcome::refused(&e),
        }
    })
}
