//! Sparse matrices: the published layouts, round trips, products, and parts from hostile files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use half::{bf16, f16};
use ndarray::{Array1, Array2, Array3, ArrayView2, array};
use proptest::collection::vec;
use proptest::prelude::*;
use prune_core::{Bitmask, BlockDiagonal, Bsr, Csr, Element, Error, Mask, NmPacked, SparseMatrix};

/// `W[i, j] = sin(7i + 3j)`, 4 x 8.
fn fixture() -> Array2<f32> {
    Array2::from_shape_fn((4, 8), |(i, j)| ((7 * i + 3 * j) as f64).sin() as f32)
}

/// Keeps the `keep` largest magnitudes of every aligned `group` columns.
fn largest(w: ArrayView2<'_, f32>, group: usize, keep: usize) -> Mask {
    Mask::from_fn(w.nrows(), w.ncols(), |r, c| {
        let first = c / group * group;
        let larger = (first..first + group).filter(|&j| w[[r, j]].abs() > w[[r, c]].abs());
        larger.count() < keep
    })
}

fn field_of<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result.unwrap_err() {
        Error::InvalidSparse { field, .. } => field,
        other => panic!("{other}"),
    }
}

#[test]
fn csr_of_the_fixture_is_what_scipy_gives() {
    let w = fixture();
    let mask = largest(w.view(), 8, 3);
    let a = Csr::from_dense_masked(w.view(), &mask).unwrap();
    assert_eq!(a.indptr(), [0, 3, 6, 9, 12]);
    assert_eq!(a.indices(), [5, 6, 7, 0, 1, 2, 0, 1, 2, 3, 4, 5]);
    assert_eq!(a.mask(), mask);
    assert_eq!(a.nbytes(), 5 * 8 + 12 * 4 + 12 * 4);
}

#[test]
fn bsr_of_the_fixture_is_what_scipy_and_torch_give() {
    let w = fixture();
    let kept = [(0, 1), (1, 0), (1, 3)];
    let mask = Mask::from_fn(4, 8, |r, c| kept.contains(&(r / 2, c / 2)));
    let a = Bsr::from_dense_masked(w.view(), &mask, 2, 2).unwrap();
    assert_eq!(a.indptr(), [0, 1, 3]);
    assert_eq!(a.indices(), [1, 0, 3]);
    assert_eq!(a.data().dim(), (3, 2, 2));
    assert_eq!(a.data()[[2, 1, 0]], w[[3, 6]]);
    assert_eq!(a.mask(), mask);
    assert_eq!(a.nbytes(), 3 * 8 + 3 * 4 + 12 * 4);
    let mut pruned = w;
    mask.apply(pruned.view_mut()).unwrap();
    assert_eq!(a.to_dense(), pruned);
}

#[test]
fn bitmasks_of_the_fixture_are_what_compressed_tensors_writes() {
    let w = fixture();
    let two_four = Bitmask::from_dense_masked(w.view(), &largest(w.view(), 4, 2)).unwrap();
    assert_eq!(two_four.bitmask(), [204, 147, 51, 60]);
    let rows = [
        [-0.279415, 0.412118, -0.750987, 0.836656],
        [0.656987, -0.544021, 0.149877, 0.270906],
        [0.990607, -0.961397, 0.762558, -0.663634],
        [0.956376, -0.988032, 0.999912, -0.991779],
    ];
    for (got, want) in two_four.data().iter().zip(rows.as_flattened()) {
        approx::assert_abs_diff_eq!(*got, *want, epsilon = 1e-6);
    }
    let loose = Bitmask::from_dense_masked(w.view(), &largest(w.view(), 8, 3)).unwrap();
    assert_eq!(loose.bitmask(), [224, 7, 7, 56]);
    assert_eq!(loose.row_offsets(), [0, 3, 6, 9]);
    assert_eq!(loose.nbytes(), 4 + 4 * 8 + 12 * 4);
}

#[test]
fn bitmask_rows_of_eleven_columns_are_padded_to_two_bytes() {
    let w = Array2::from_shape_fn((3, 11), |(i, j)| ((7 * i + 3 * j) as f64).sin() as f32);
    // 50 %: 5 of 11 go.
    let a = Bitmask::from_dense_masked(w.view(), &largest(w.view(), 11, 6)).unwrap();
    assert_eq!(a.bitmask(), [224, 7, 7, 7, 63, 0]);
}

#[test]
fn two_four_nibbles_are_the_codes_of_sparse_tensor_cores() {
    let patterns = [
        ([1, 1, 0, 0], 0x4),
        ([1, 0, 1, 0], 0x8),
        ([0, 1, 1, 0], 0x9),
        ([1, 0, 0, 1], 0xc),
        ([0, 1, 0, 1], 0xd),
        ([0, 0, 1, 1], 0xe),
    ];
    for (columns, code) in patterns {
        let w = Array2::from_shape_fn((1, 4), |(_, j)| columns[j] as f32);
        assert_eq!(NmPacked::from_dense(w.view(), 2, 4).unwrap().indices(), [code]);
    }
}

#[test]
fn two_four_metadata_agree_with_torch() {
    // torch's semi-structured metadata of 32 x 64 sin(7i + 3j) pruned by magnitude, before its
    // reordering, row 0: four nibbles a 16-bit word, group 0 lowest.
    let w = Array2::from_shape_fn((32, 64), |(i, j)| ((7 * i + 3 * j) as f64).sin() as f32);
    let a = NmPacked::from_dense_masked(w.view(), &largest(w.view(), 4, 2), 2, 4).unwrap();
    let words = |row: &[u8]| -> Vec<u16> {
        row.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    };
    assert_eq!(words(&a.indices()[..8]), [0x4eee, 0xee44, 0xe449, 0x44ee]);
    assert_eq!(words(&a.indices()[8..16]), [61124, 58436, 17646, 20204]);
}

#[test]
fn groups_with_few_nonzeros_are_filled_at_the_lowest_free_columns() {
    let a = NmPacked::from_dense(array![[0.0f32, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.0]].view(), 2, 4)
        .unwrap();
    assert_eq!(a.indices(), [0x4c]); // columns 0 and 3, then 0 and 1
    assert_eq!(a.data(), array![[0.0, 7.0, 0.0, 0.0]]);
    let b = NmPacked::from_dense(array![[5.0f32, 0.0, 0.0, 7.0, 0.0, 0.0]].view(), 2, 3).unwrap();
    assert_eq!(b.indices(), [0b011011]);
    assert_eq!(b.data(), array![[5.0, 0.0, 7.0, 0.0]]);
}

#[test]
fn the_first_group_that_breaks_the_pattern_is_named() {
    let mut w = Array2::<f32>::zeros((3, 12));
    w.row_mut(1).slice_mut(ndarray::s![4..7]).fill(1.0);
    w.row_mut(2).fill(1.0);
    match NmPacked::from_dense(w.view(), 2, 4).unwrap_err() {
        Error::PatternBroken { violation, .. } => {
            assert_eq!((violation.row, violation.group), (1, 1));
            assert_eq!((violation.kept, violation.allowed), (3, 2));
        }
        other => panic!("{other}"),
    }
    assert!(matches!(
        NmPacked::from_dense(w.slice(ndarray::s![.., ..10]), 2, 4),
        Err(Error::PatternShape { .. })
    ));
    assert!(matches!(NmPacked::from_dense(w.view(), 4, 4), Err(Error::OutOfRange { .. })));
}

#[test]
fn a_negative_zero_is_a_zero() {
    let w = array![[-0.0f32, 1.0, -0.0, 0.0]];
    assert_eq!(Csr::from_dense(w.view()).unwrap().nnz(), 1);
    assert_eq!(Bitmask::from_dense(w.view()).unwrap().bitmask(), [2]);
    assert_eq!(Bsr::from_dense(w.view(), 1, 2).unwrap().indices(), [0]);
    let packed = NmPacked::from_dense(w.view(), 1, 4).unwrap();
    assert!(packed.to_dense().iter().all(|v| v.is_sign_positive()));
}

#[test]
fn a_mask_keeps_zeros_and_their_sign() {
    let w = array![[-0.0f32, 1.0, 0.0, 0.0]];
    let mask = Mask::from_fn(1, 4, |_, c| c < 2);
    for dense in [
        Csr::from_dense_masked(w.view(), &mask).unwrap().to_dense(),
        Bitmask::from_dense_masked(w.view(), &mask).unwrap().to_dense(),
        Bsr::from_dense_masked(w.view(), &mask, 1, 2).unwrap().to_dense(),
        NmPacked::from_dense_masked(w.view(), &mask, 2, 4).unwrap().to_dense(),
    ] {
        assert_eq!(dense[[0, 0]].to_bits(), (-0.0f32).to_bits());
        assert_eq!(dense[[0, 2]].to_bits(), 0.0f32.to_bits());
    }
}

#[test]
fn values_that_are_not_finite_are_refused_everywhere() {
    let w = array![[0.0f32, f32::NAN, 0.0, 0.0]];
    let mask = Mask::all_removed(1, 4);
    let refused = |r: Result<(), Error>| matches!(r, Err(Error::NotFinite { index: 1, .. }));
    assert!(refused(Csr::from_dense(w.view()).map(|_| ())));
    assert!(refused(Bsr::from_dense(w.view(), 1, 2).map(|_| ())));
    assert!(refused(Bitmask::from_dense(w.view()).map(|_| ())));
    assert!(refused(NmPacked::from_dense(w.view(), 2, 4).map(|_| ())));
    assert!(refused(Csr::from_dense_masked(w.view(), &mask).map(|_| ())));
    let inf = f32::INFINITY;
    assert_eq!(field_of(Csr::from_parts(1, 2, vec![0, 1], vec![0], vec![inf])), "data");
    assert_eq!(field_of(Bitmask::from_bits(1, 2, vec![1], vec![inf])), "data");
    let blocks = Array3::from_elem((1, 1, 1), inf);
    assert_eq!(field_of(Bsr::from_parts(1, 2, vec![0, 1], vec![0], blocks)), "data");
    let row = Array2::from_elem((1, 2), inf);
    assert_eq!(field_of(NmPacked::from_parts(4, 2, 4, vec![4], row)), "data");
}

#[test]
fn masks_of_another_shape_or_pattern_are_refused() {
    let w = fixture();
    let small = Mask::all_kept(4, 4);
    assert!(matches!(Csr::from_dense_masked(w.view(), &small), Err(Error::Shape { .. })));
    assert!(matches!(Bitmask::from_dense_masked(w.view(), &small), Err(Error::Shape { .. })));
    assert!(matches!(Bsr::from_dense_masked(w.view(), &small, 2, 2), Err(Error::Shape { .. })));
    assert!(matches!(
        NmPacked::from_dense_masked(w.view(), &small, 2, 4),
        Err(Error::Shape { .. })
    ));
    let mut ragged = Mask::all_removed(4, 8);
    ragged.keep(2, 3);
    match Bsr::from_dense_masked(w.view(), &ragged, 2, 2).unwrap_err() {
        Error::PatternBroken { violation, .. } => {
            assert_eq!((violation.row, violation.group), (1, 1));
        }
        other => panic!("{other}"),
    }
    assert!(matches!(Bsr::from_dense(w.view(), 3, 2), Err(Error::PatternShape { .. })));
    assert!(matches!(Bsr::from_dense(w.view(), 0, 2), Err(Error::OutOfRange { .. })));
}

#[test]
fn every_broken_part_of_a_csr_is_named() {
    let csr = |rows, cols, indptr: &[usize], indices: &[u32], data: &[f32]| {
        Csr::from_parts(rows, cols, indptr.to_vec(), indices.to_vec(), data.to_vec())
    };
    assert!(csr(2, 3, &[0, 1, 3], &[2, 0, 1], &[1.0; 3]).is_ok());
    assert_eq!(field_of(csr(2, 3, &[0, 1], &[2], &[1.0])), "indptr");
    assert_eq!(field_of(csr(2, 3, &[1, 1, 3], &[2, 0, 1], &[1.0; 3])), "indptr");
    assert_eq!(field_of(csr(2, 3, &[0, 1, 4], &[2, 0, 1], &[1.0; 3])), "indptr");
    assert_eq!(field_of(csr(3, 3, &[0, 3, 1, 3], &[0, 1, 2], &[1.0; 3])), "indptr");
    assert_eq!(field_of(csr(3, 3, &[0, 9, 1, 3], &[0, 1, 2], &[1.0; 3])), "indptr");
    assert_eq!(field_of(csr(2, 3, &[0, 1, 3], &[3, 0, 1], &[1.0; 3])), "indices");
    assert_eq!(field_of(csr(2, 3, &[0, 1, 3], &[2, 1, 1], &[1.0; 3])), "indices");
    assert_eq!(field_of(csr(2, 3, &[0, 1, 3], &[2, 1, 0], &[1.0; 3])), "indices");
    assert_eq!(field_of(csr(2, 3, &[0, 1, 3], &[2, 0, 1], &[1.0; 2])), "data");
    assert_eq!(field_of(csr(usize::MAX, 3, &[0], &[], &[])), "shape");
    assert_eq!(field_of(csr(1, usize::MAX, &[0, 0], &[], &[])), "shape");
    assert_eq!(field_of(csr(usize::MAX, 0, &[0], &[], &[])), "shape");
}

#[test]
fn every_broken_part_of_a_bsr_is_named() {
    let bsr = |rows, cols, indptr: &[usize], indices: &[u32], shape| {
        Bsr::from_parts(rows, cols, indptr.to_vec(), indices.to_vec(), Array3::<f32>::ones(shape))
    };
    assert!(bsr(4, 8, &[0, 1, 3], &[1, 0, 3], (3, 2, 2)).is_ok());
    assert_eq!(field_of(bsr(4, 8, &[0, 1, 3], &[1, 0, 4], (3, 2, 2))), "indices");
    assert_eq!(field_of(bsr(4, 8, &[0, 1, 3], &[1, 3, 0], (3, 2, 2))), "indices");
    assert_eq!(field_of(bsr(4, 8, &[0, 2, 1], &[1, 0, 3], (3, 2, 2))), "indptr");
    assert_eq!(field_of(bsr(4, 8, &[0, 1, 3], &[1, 0, 3], (2, 2, 2))), "data");
    assert_eq!(field_of(bsr(4, 8, &[0, 1, 3], &[1, 0, 3], (3, 0, 2))), "data");
    assert_eq!(field_of(bsr(5, 8, &[0, 1, 3], &[1, 0, 3], (3, 2, 2))), "shape");
    assert_eq!(field_of(bsr(4, 9, &[0, 1, 3], &[1, 0, 3], (3, 2, 2))), "shape");
}

#[test]
fn blocks_given_column_major_are_stored_row_major() {
    use ndarray::ShapeBuilder;
    let data = Array3::from_shape_vec((1, 2, 2).f(), vec![1.0f32, 3.0, 2.0, 4.0]).unwrap();
    let a = Bsr::from_parts(2, 2, vec![0, 1], vec![0], data).unwrap();
    assert_eq!(a.to_dense(), array![[1.0, 2.0], [3.0, 4.0]]);
    assert_eq!(a.data().as_slice().unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn every_broken_part_of_a_bitmask_is_named() {
    let bits = |bitmask: &[u8], offsets: &[usize], nnz| {
        Bitmask::from_parts(2, 3, bitmask.to_vec(), offsets.to_vec(), vec![1.0f32; nnz])
    };
    assert!(bits(&[0b101, 0b010], &[0, 2], 3).is_ok());
    assert_eq!(field_of(bits(&[0b101], &[0, 2], 3)), "bitmask");
    assert_eq!(field_of(bits(&[0b1001, 0b010], &[0, 2], 3)), "bitmask");
    assert_eq!(field_of(bits(&[0b101, 0b010], &[0, 1], 3)), "row_offsets");
    assert_eq!(field_of(bits(&[0b101, 0b010], &[0, 2, 3], 3)), "row_offsets");
    assert_eq!(field_of(bits(&[0b101, 0b010], &[0, 2], 2)), "data");
    let huge = Bitmask::<f32>::from_bits(usize::MAX, usize::MAX, vec![], vec![]);
    assert_eq!(field_of(huge), "shape");
    assert_eq!(field_of(Bitmask::<f32>::from_bits(1 << 59, 0, vec![], vec![])), "shape");
}

#[test]
fn every_broken_part_of_an_n_m_matrix_is_named() {
    let nm = |cols, n, m, indices: &[u8], width| {
        NmPacked::from_parts(cols, n, m, indices.to_vec(), Array2::<f32>::ones((1, width)))
    };
    assert!(nm(8, 2, 4, &[0xe4], 4).is_ok());
    assert!(nm(4, 2, 4, &[0x0e], 2).is_ok());
    for code in [0x0, 0x1, 0x2, 0x3, 0x5, 0x6, 0x7, 0xa, 0xb, 0xf] {
        assert_eq!(field_of(nm(4, 2, 4, &[code], 2)), "indices", "{code:#x}");
    }
    assert_eq!(field_of(nm(4, 2, 4, &[0x4e], 2)), "indices");
    assert_eq!(field_of(nm(8, 2, 4, &[0xe4, 0], 4)), "indices");
    assert_eq!(field_of(nm(8, 2, 4, &[0xe4], 3)), "data");
    assert_eq!(field_of(nm(9, 2, 4, &[0xe4], 4)), "shape");
    assert!(nm(6, 2, 3, &[0b01_1110], 4).is_ok());
    assert_eq!(field_of(nm(6, 2, 3, &[0b11_1110], 4)), "indices");
    assert_eq!(field_of(nm(6, 2, 3, &[0b01_0110], 4)), "indices");
    assert_eq!(field_of(nm(6, 2, 3, &[0b101_1110], 4)), "indices");
    assert!(nm(4, 4, 4, &[0xf], 4).is_err());
}

#[test]
fn products_refuse_right_hand_sides_of_another_length() {
    let a = Csr::from_dense(fixture().view()).unwrap();
    assert!(matches!(a.matvec(Array1::zeros(7).view()), Err(Error::Shape { .. })));
    assert!(matches!(a.matmul(Array2::zeros((4, 8)).view()), Err(Error::Shape { .. })));
    assert_eq!(a.matmul(Array2::zeros((8, 0)).view()).unwrap().dim(), (4, 0));
}

#[test]
fn half_precision_products_sum_in_f32() {
    // 2048 ones and a last one: f16 sums stick at 2048, bf16 sums at 256.
    let w = Array2::from_elem((1, 2050), f16::ONE);
    let y = Csr::from_dense(w.view()).unwrap().matvec(Array1::from_elem(2050, f16::ONE).view());
    assert_eq!(y.unwrap()[0].to_f32(), 2050.0);
    let w = Array2::from_elem((1, 512), bf16::ONE);
    let y = Bitmask::from_dense(w.view()).unwrap();
    let y = y.matmul(Array2::from_elem((512, 1), bf16::ONE).view());
    assert_eq!(y.unwrap()[[0, 0]].to_f32(), 512.0);
}

#[test]
fn rows_outside_the_matrix_are_empty() {
    let w = fixture();
    assert_eq!(Csr::from_dense(w.view()).unwrap().row(4).count(), 0);
    assert_eq!(Bsr::from_dense(w.view(), 2, 2).unwrap().row(4).count(), 0);
    assert_eq!(Bitmask::from_dense(w.view()).unwrap().row(4).count(), 0);
    let mask = largest(w.view(), 4, 2);
    assert_eq!(NmPacked::from_dense_masked(w.view(), &mask, 2, 4).unwrap().row(4).count(), 0);
}

#[test]
fn matrices_without_rows_are_matrices() {
    let w = Array2::<f32>::zeros((0, 8));
    assert_eq!(Csr::from_dense(w.view()).unwrap().to_dense(), w);
    assert_eq!(Bsr::from_dense(w.view(), 2, 2).unwrap().to_dense(), w);
    assert_eq!(Bitmask::from_dense(w.view()).unwrap().to_dense(), w);
    assert_eq!(NmPacked::from_dense(w.view(), 2, 4).unwrap().to_dense(), w);
}

/// Rows and columns that divide by the blocks and groups used below, small integers as values.
fn arb_dense() -> impl Strategy<Value = Array2<f32>> {
    (0usize..4, 1usize..6).prop_flat_map(|(r, c)| {
        let (rows, cols) = (2 * r, 4 * c);
        vec(prop_oneof![3 => Just(0i8), 2 => -9i8..10], rows * cols).prop_map(move |v| {
            Array2::from_shape_vec((rows, cols), v.into_iter().map(f32::from).collect()).unwrap()
        })
    })
}

fn convert<T: Element>(w: &Array2<f32>) -> Array2<T> {
    w.mapv(|v| T::from(v).unwrap())
}

/// The product by the definition, every element of `a` taking part.
fn dense_product<T: Element>(a: &Array2<T>, x: &Array2<T>) -> Array2<T> {
    Array2::from_shape_fn((a.nrows(), x.ncols()), |(r, k)| {
        let zero = T::zero().widen();
        T::narrow((0..a.ncols()).fold(zero, |s, c| s + a[[r, c]].widen() * x[[c, k]].widen()))
    })
}

fn holds<A: SparseMatrix>(a: &A, dense: &Array2<A::Element>) {
    assert_eq!(&a.to_dense(), dense);
    assert_eq!((a.rows(), a.cols()), dense.dim());
    assert_eq!(a.mask().kept(), a.nnz());
    for (r, row) in dense.outer_iter().enumerate() {
        assert!(a.row(r).map(|(c, _)| c).is_sorted());
        assert!(a.row(r).all(|(c, v)| row[c] == v && a.mask().is_kept(r, c)));
    }
    let x = Array2::from_shape_fn((dense.ncols(), 3), |(c, k)| {
        <A::Element as num_traits::NumCast>::from((c * 3 + k) as f64 - 7.5).unwrap()
    });
    let want = dense_product(dense, &x);
    assert_eq!(a.matmul(x.view()).unwrap(), want);
    for k in 0..3 {
        assert_eq!(a.matvec(x.column(k)).unwrap(), want.column(k));
    }
}

/// All formats, of the nonzeros and under a mask, and rebuilt from their own parts.
fn all_formats_hold<T: Element>(w: &Array2<f32>) {
    let dense = convert::<T>(w);
    let (rows, cols) = dense.dim();
    let nonzeros = Mask::of_nonzeros(w.view());

    let csr = Csr::from_dense(dense.view()).unwrap();
    holds(&csr, &dense);
    assert_eq!(csr.mask(), nonzeros);
    assert_eq!(csr, Csr::from_dense_masked(dense.view(), &nonzeros).unwrap());
    let (indptr, indices, data) = csr.clone().into_parts();
    assert_eq!(csr, Csr::from_parts(rows, cols, indptr, indices, data).unwrap());

    let bits = Bitmask::from_dense(dense.view()).unwrap();
    holds(&bits, &dense);
    assert_eq!(bits.mask(), nonzeros);
    let (bitmask, offsets, data) = bits.clone().into_parts();
    assert_eq!(bits, Bitmask::from_parts(rows, cols, bitmask, offsets, data).unwrap());

    let bsr = Bsr::from_dense(dense.view(), 2, 4).unwrap();
    holds(&bsr, &dense);
    assert_eq!(bsr, Bsr::from_dense_masked(dense.view(), &bsr.mask(), 2, 4).unwrap());
    let (indptr, indices, data) = bsr.clone().into_parts();
    assert_eq!(bsr, Bsr::from_parts(rows, cols, indptr, indices, data).unwrap());

    for (n, m) in [(2, 4), (1, 2), (1, 4), (3, 4)] {
        let mask = largest(w.view(), m, n);
        let kept = Mask::from_fn(rows, cols, |r, c| {
            // Ties may let `largest` keep too many: drop the last ones.
            let first = c / m * m;
            mask.is_kept(r, c) && (first..c).filter(|&j| mask.is_kept(r, j)).count() < n
        });
        let mut pruned = w.clone();
        kept.apply(pruned.view_mut()).unwrap();
        let pruned = convert::<T>(&pruned);
        let packed = NmPacked::from_dense(pruned.view(), n, m).unwrap();
        holds(&packed, &pruned);
        assert_eq!(packed.n_m(), (n, m));
        assert_eq!(packed.nnz(), rows * cols / m * n);
        assert_eq!(packed.indices().len(), rows * cols.div_ceil(8));
        let masked = NmPacked::from_dense_masked(dense.view(), &kept, n, m).unwrap();
        holds(&masked, &pruned);
        let (indices, data) = packed.clone().into_parts();
        assert_eq!(packed, NmPacked::from_parts(cols, n, m, indices, data).unwrap());
    }
}

/// Uses everything that could index out of bounds.
fn exercise<A: SparseMatrix<Element = f32>>(a: &A) {
    assert_eq!(a.to_dense().dim(), (a.rows(), a.cols()));
    assert_eq!(a.mask().kept(), a.nnz());
    a.matvec(Array1::ones(a.cols()).view()).unwrap();
}

proptest! {
    #[test]
    fn round_trips_and_products_hold_in_every_element_type(w in arb_dense()) {
        all_formats_hold::<f32>(&w);
        all_formats_hold::<f64>(&w);
        all_formats_hold::<f16>(&w);
        all_formats_hold::<bf16>(&w);
    }

    #[test]
    fn any_n_m_round_trips(m in 2usize..17, seed in any::<u64>(), groups in 1usize..5) {
        let n = 1 + seed as usize % (m - 1);
        let w = Array2::from_shape_fn((3, groups * m), |(r, c)| {
            let place = (c % m + r + seed as usize % m) % m;
            if place < n { 1.0 + c as f32 } else { 0.0 }
        });
        holds(&NmPacked::from_dense(w.view(), n, m).unwrap(), &w);
    }

    #[test]
    fn transposed_views_give_the_transposed_matrix(w in arb_dense()) {
        // A matrix without columns but with rows is refused.
        if w.nrows() > 0 {
            let dense = w.t().to_owned();
            holds(&Csr::from_dense(w.t()).unwrap(), &dense);
            holds(&Bitmask::from_dense(w.t()).unwrap(), &dense);
            holds(&Bsr::from_dense(w.t(), 4, 2).unwrap(), &dense);
        }
    }

    #[test]
    fn hostile_csr_and_bsr_parts_never_panic(
        rows in prop_oneof![0usize..5, Just(usize::MAX), Just(1 << 62)],
        cols in prop_oneof![0usize..6, Just(usize::MAX), Just(1 << 62)],
        indptr in vec(prop_oneof![0usize..6, Just(usize::MAX)], 0..6),
        indices in vec(prop_oneof![0u32..6, Just(u32::MAX)], 0..6),
        nnz in 0usize..6,
        block in (0usize..3, 0usize..3),
    ) {
        let data = vec![1.0f32; nnz];
        if let Ok(a) = Csr::from_parts(rows, cols, indptr.clone(), indices.clone(), data) {
            exercise(&a);
        }
        let data = Array3::<f32>::ones((nnz, block.0, block.1));
        if let Ok(a) = Bsr::from_parts(rows, cols, indptr, indices, data) {
            exercise(&a);
        }
    }

    #[test]
    fn nearly_valid_csr_parts_never_panic(
        w in arb_dense(), at in any::<prop::sample::Index>(), to in 0usize..30, what in 0u8..3,
    ) {
        let (rows, cols) = w.dim();
        let (mut indptr, mut indices, mut data) = Csr::from_dense(w.view()).unwrap().into_parts();
        match what {
            0 => indptr[at.index(rows + 1)] = to,
            1 if !indices.is_empty() => indices[at.index(data.len())] = to as u32,
            _ => data.truncate(to),
        }
        if let Ok(a) = Csr::from_parts(rows, cols, indptr, indices, data) {
            exercise(&a);
        }
    }

    #[test]
    fn hostile_bit_parts_never_panic(
        rows in prop_oneof![0usize..3, Just(usize::MAX), Just(1 << 61)],
        cols in prop_oneof![0usize..20, Just(usize::MAX), Just(1 << 62)],
        bytes in vec(any::<u8>(), 0..7),
        offsets in vec(0usize..9, 0..3),
        nm in (0usize..18, 0usize..18),
        width in 0usize..12,
        nnz in 0usize..20,
    ) {
        let set: usize = bytes.iter().map(|b| b.count_ones() as usize).sum();
        for n in [nnz, set] {
            let data = vec![1.0f32; n];
            if let Ok(a) = Bitmask::from_bits(rows, cols, bytes.clone(), data.clone()) {
                exercise(&a);
            }
            let a = Bitmask::from_parts(rows, cols, bytes.clone(), offsets.clone(), data);
            if let Ok(a) = a {
                exercise(&a);
            }
        }
        for nm in [nm, (2, 4)] {
            let data = Array2::<f32>::ones((rows.min(3), width));
            if let Ok(a) = NmPacked::from_parts(cols, nm.0, nm.1, bytes.clone(), data) {
                exercise(&a);
            }
        }
    }
}

#[test]
fn block_diagonals_refuse_parts_that_do_not_fit() {
    let ones = |shape: (usize, usize, usize)| Array3::<f32>::ones(shape);
    for (size, data) in [
        (4, ones((2, 2, 3))),
        (4, ones((3, 2, 2))),
        (4, ones((1, 2, 2))),
        (3, ones((2, 2, 2))),
        (2, ones((0, 0, 0))),
        (2, Array3::from_elem((1, 2, 2), f32::NAN)),
    ] {
        assert_eq!(field_of(BlockDiagonal::from_parts(size, data)), "data");
    }
    assert_eq!(field_of(BlockDiagonal::from_parts(usize::MAX, ones((1, 1, 1)))), "shape");
    assert_eq!(field_of(BlockDiagonal::<f32>::identity(2, 0)), "data");
    let none = BlockDiagonal::<f32>::identity(0, 4).unwrap();
    assert_eq!((none.rows(), none.nnz(), none.row(0).count()), (0, 0, 0));
}

proptest! {
    #[test]
    fn block_diagonals_are_their_dense_matrix(
        size in 1usize..14, block in 1usize..6, seed in vec(-4i8..5, 14 * 14),
    ) {
        let value = |r: usize, c: usize| f64::from(seed[r * 14 + c]);
        let dense = Array2::from_shape_fn((size, size), |(r, c)| {
            if r / block == c / block { value(r, c) } else { 0.0 }
        });
        let data = Array3::from_shape_fn((size.div_ceil(block), block, block), |(i, r, c)| {
            let (r, c) = (i * block + r, i * block + c);
            if r < size && c < size { value(r, c) } else { 0.0 }
        });
        let a = BlockDiagonal::from_parts(size, data.clone()).unwrap();
        prop_assert_eq!(a.to_dense(), &dense);
        prop_assert_eq!(a.nnz(), dense.indexed_iter().filter(|((r, c), _)| r / block == c / block).count());
        let x = Array1::from_iter((0..size).map(|j| value(j, 0)));
        prop_assert_eq!(a.matvec(x.view()).unwrap(), dense.dot(&x));
        prop_assert_eq!((a.block(a.blocks()).len(), a.row(size).count()), (0, 0));
        prop_assert_eq!(a.into_data(), data);
        let one = BlockDiagonal::<f64>::identity(size, block).unwrap();
        prop_assert_eq!(one.to_dense(), Array2::eye(size));
    }
}
