//! Products with sparse matrices against their definition, on every path of this processor.
#![allow(missing_docs, clippy::unwrap_used)]

use half::{bf16, f16};
use ndarray::{Array2, Array3, ArrayView2};
use proptest::prelude::*;
use prune_core::{Bitmask, BlockDiagonal, Bsr, Csr, NmPacked, Seed, SeedStream, SparseMatrix};
use prune_kernels::{
    ArmorKernel, BitmaskKernel, BlockDiagonalKernel, BsrKernel, CsrKernel, DenseKernel, KernelPath,
    LinearOperator, NmKernel, Storage,
};

/// Right-hand sides: none, fewer than any tile, one more than each tile.
const COLUMNS: [usize; 8] = [0, 1, 2, 3, 5, 9, 13, 50];

fn number(stream: &mut SeedStream) -> f32 {
    (2.0 * stream.uniform() - 1.0) as f32
}

fn stored<T: Storage>(v: f32) -> T {
    T::narrow(v)
}

fn random<T: Storage>(seed: u64, rows: usize, cols: usize, density: f64) -> Array2<T> {
    let mut stream = Seed::new(seed).stream("matrix");
    Array2::from_shape_simple_fn((rows, cols), || {
        let kept = stream.uniform() < density;
        if kept { stored(number(&mut stream)) } else { T::zero() }
    })
}

/// Blocks of `height x width` are whole or zero.
fn blocks<T: Storage>(seed: u64, size: (usize, usize), block: (usize, usize)) -> Array2<T> {
    let mut stream = Seed::new(seed).stream("blocks");
    let keep: Vec<bool> =
        (0..size.0 / block.0 * (size.1 / block.1)).map(|_| stream.uniform() < 0.4).collect();
    let values: Array2<T> = random(seed, size.0, size.1, 1.0);
    Array2::from_shape_fn(size, |(r, c)| {
        let at = r / block.0 * (size.1 / block.1) + c / block.1;
        if keep[at] { values[[r, c]] } else { T::zero() }
    })
}

/// At most `n` of every `m`.
fn nm<T: Storage>(seed: u64, rows: usize, groups: usize, n: usize, m: usize) -> Array2<T> {
    let mut w: Array2<T> = random(seed, rows, groups * m, 0.8);
    for mut row in w.outer_iter_mut() {
        for group in row.as_slice_mut().unwrap().chunks_mut(m) {
            let mut kept = 0;
            for v in group.iter_mut() {
                kept += usize::from(*v != T::zero());
                if kept > n {
                    *v = T::zero();
                }
            }
        }
    }
    w
}

/// Holds `operator`'s products against those of `dense` in f64, for vectors and matrices of both
/// layouts.
fn holds<T: Storage>(operator: &dyn LinearOperator, dense: ArrayView2<'_, T>, seed: u64) {
    let wide = |v: &T| f64::from(v.widen());
    assert_eq!((operator.rows(), operator.cols()), dense.dim());
    for k in COLUMNS {
        let x: Array2<f32> = random(seed ^ k as u64, dense.ncols(), k, 1.0);
        let rows = operator.matmul(x.view()).unwrap();
        let reversed = x.t().as_standard_layout().into_owned();
        let columns = operator.matmul(reversed.t()).unwrap();
        assert_eq!(rows, columns, "the layout of the right-hand side");
        for j in 0..k {
            let column = x.column(j).to_vec();
            let vector = (j < 2).then(|| operator.matvec(&column).unwrap());
            for (r, w) in dense.outer_iter().enumerate() {
                let terms = w.iter().zip(&column).map(|(w, x)| wide(w) * f64::from(*x));
                let (sum, size) =
                    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                let near = |found: f32| (f64::from(found) - sum).abs() <= 1e-5 * size + 1e-30;
                assert!(near(rows[[r, j]]), "{r} {j} of {k}: {} {sum}", rows[[r, j]]);
                if let Some(vector) = &vector {
                    assert!(near(vector[r]), "vector {r}: {} {sum}", vector[r]);
                }
            }
        }
    }
}

fn dense<T: Storage>(seed: u64, rows: usize, cols: usize) {
    let w: Array2<T> = random(seed, rows, cols, 1.0);
    for path in KernelPath::available() {
        let a = DenseKernel::new(w.clone()).unwrap().with_path(path).unwrap();
        assert_eq!(a.path(), path);
        holds(&a, w.view(), seed);
    }
}

fn csr<T: Storage>(seed: u64, rows: usize, cols: usize, density: f64) {
    let w: Array2<T> = random(seed, rows, cols, density);
    let csr = Csr::from_dense(w.view()).unwrap();
    for path in KernelPath::available() {
        holds(&CsrKernel::from(csr.clone()).with_path(path).unwrap(), w.view(), seed);
    }
}

fn bitmask<T: Storage>(seed: u64, rows: usize, cols: usize, density: f64) {
    let w: Array2<T> = random(seed, rows, cols, density);
    let bitmask = Bitmask::from_dense(w.view()).unwrap();
    for path in KernelPath::available() {
        holds(&BitmaskKernel::from(bitmask.clone()).with_path(path).unwrap(), w.view(), seed);
    }
}

fn bsr<T: Storage>(seed: u64, across: (usize, usize), block: (usize, usize)) {
    let w: Array2<T> = blocks(seed, (across.0 * block.0, across.1 * block.1), block);
    let bsr = Bsr::from_dense(w.view(), block.0, block.1).unwrap();
    for path in KernelPath::available() {
        holds(&BsrKernel::from(bsr.clone()).with_path(path).unwrap(), w.view(), seed);
    }
}

fn two_of_four<T: Storage>(seed: u64, rows: usize, groups: usize) {
    let w: Array2<T> = nm(seed, rows, groups, 2, 4);
    let packed = NmPacked::from_dense(w.view(), 2, 4).unwrap();
    for path in KernelPath::available() {
        holds(&NmKernel::try_from(&packed).unwrap().with_path(path).unwrap(), w.view(), seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn dense_products_are_right(seed: u64, rows in 1usize..40, cols in 1usize..100) {
        dense::<f32>(seed, rows, cols);
        dense::<f16>(seed, rows, cols);
        dense::<bf16>(seed, rows, cols);
    }

    #[test]
    fn csr_products_are_right(
        seed: u64, rows in 1usize..40, cols in 1usize..200, density in 0.0..1.0,
    ) {
        csr::<f32>(seed, rows, cols, density);
        csr::<f16>(seed, rows, cols, density);
        csr::<bf16>(seed, rows, cols, density);
    }

    #[test]
    fn bitmask_products_are_right(
        seed: u64, rows in 1usize..40, cols in 1usize..200, density in 0.0..1.0,
    ) {
        bitmask::<f32>(seed, rows, cols, density);
        bitmask::<f16>(seed, rows, cols, density);
        bitmask::<bf16>(seed, rows, cols, density);
    }

    #[test]
    fn bsr_products_are_right(
        seed: u64, down in 1usize..6, across in 1usize..8,
        height in prop::sample::select(vec![1usize, 2, 3, 4, 8, 16, 24, 32]),
        width in prop::sample::select(vec![1usize, 3, 4, 8, 12, 16, 19]),
    ) {
        bsr::<f32>(seed, (down, across), (height, width));
        bsr::<f16>(seed, (down, across), (height, width));
        bsr::<bf16>(seed, (down, across), (height, width));
    }

    #[test]
    fn two_of_four_products_are_right(seed: u64, rows in 1usize..40, groups in 1usize..40) {
        two_of_four::<f32>(seed, rows, groups);
        two_of_four::<f16>(seed, rows, groups);
        two_of_four::<bf16>(seed, rows, groups);
    }

    #[test]
    fn armor_products_are_right(
        seed: u64, down in 1usize..4, across in 1usize..4,
        d in prop::sample::select(vec![4usize, 8, 16, 20]),
        other_pattern: bool,
    ) {
        let (n, m) = if other_pattern { (1, 2) } else { (2, 4) };
        let core: Array2<f32> = nm(seed, down * d, across * d / m, n, m);
        // The last blocks may be smaller.
        let (rows, cols) = core.dim();
        let factor = |seed, size: usize, block: usize| {
            let count = size.div_ceil(block);
            let values: Array2<f32> = random(seed, count * block, block, 1.0);
            let inside = |i: usize, j| i * block + j < size;
            let data = Array3::from_shape_fn((count, block, block), |(i, r, c)| {
                if inside(i, r) && inside(i, c) { values[[i * block + r, c]] } else { 0.0 }
            });
            BlockDiagonal::from_parts(size, data).unwrap()
        };
        let (a, b) = (factor(seed ^ 1, rows, d), factor(seed ^ 2, cols, 2 * d));
        let wide = |m: &BlockDiagonal<f32>| m.to_dense().mapv(f64::from);
        let product = wide(&a).dot(&core.mapv(f64::from)).dot(&wide(&b));
        let packed = NmPacked::from_dense(core.view(), n, m).unwrap();
        for path in KernelPath::available() {
            let w = ArmorKernel::new(a.clone(), &packed, b.clone()).unwrap();
            let w = w.with_path(path).unwrap();
            prop_assert_eq!(w.path(), path);
            let x: Array2<f32> = random(seed ^ 3, cols, 5, 1.0);
            let expected = product.dot(&x.mapv(f64::from));
            let found = w.matmul(x.view()).unwrap();
            let vector = w.matvec(&x.column(0).to_vec()).unwrap();
            // No term is larger than 1, and there are so many.
            let tolerance = 2e-6 * (d * d * cols) as f64;
            for ((r, j), e) in expected.indexed_iter() {
                prop_assert!((f64::from(found[[r, j]]) - e).abs() < tolerance);
                prop_assert!(j > 0 || (f64::from(vector[r]) - e).abs() < tolerance);
            }
        }
    }
}

#[test]
fn larger_matrices_are_right() {
    dense::<f32>(1, 31, 519);
    csr::<bf16>(2, 50, 1031, 0.1);
    bitmask::<f32>(3, 20, 777, 0.5);
    bsr::<f32>(4, (4, 20), (16, 16));
    bsr::<f16>(5, (2, 5), (64, 64));
    two_of_four::<f32>(6, 43, 257);
}

#[test]
fn rows_wider_than_a_tile_are_right() {
    dense::<f32>(8, 7, 8195);
    dense::<bf16>(9, 5, 4099);
    csr::<f32>(10, 9, 8200, 0.02);
    csr::<f16>(11, 3, 4096, 0.1);
}

#[test]
fn a_block_diagonal_has_its_blocks_on_the_diagonal() {
    let values: Array2<f32> = random(7, 6 * 16, 16, 1.0);
    let blocks = Array3::from_shape_vec((6, 16, 16), values.into_iter().collect()).unwrap();
    let matrix = BlockDiagonal::from_parts(96, blocks).unwrap();
    let a = BlockDiagonalKernel::try_from(matrix.clone()).unwrap();
    assert_eq!(a.nbytes(), 4 * 6 * 16 * 16 + 4 * 6 + 8 * 7);
    holds(&a, matrix.to_dense().view(), 7);
}

#[test]
fn empty_matrices_have_empty_products() {
    let none = Array2::<f32>::zeros((0, 12));
    let operators: Vec<Box<dyn LinearOperator>> = vec![
        Box::new(DenseKernel::new(none.clone()).unwrap()),
        Box::new(CsrKernel::from(Csr::from_dense(none.view()).unwrap())),
        Box::new(BsrKernel::from(Bsr::from_dense(none.view(), 4, 4).unwrap())),
        Box::new(BitmaskKernel::from(Bitmask::from_dense(none.view()).unwrap())),
        Box::new(NmKernel::try_from(&NmPacked::from_dense(none.view(), 2, 4).unwrap()).unwrap()),
    ];
    for a in operators {
        assert!(a.matvec(&[1.0; 12]).unwrap().is_empty());
        assert_eq!(a.matmul(Array2::ones((12, 3)).view()).unwrap().dim(), (0, 3));
    }
    let flat = DenseKernel::new(Array2::<f32>::zeros((3, 0))).unwrap();
    assert_eq!(flat.matvec(&[]).unwrap(), [0.0; 3]);
    assert_eq!(flat.matmul(Array2::zeros((0, 20)).view()).unwrap(), Array2::<f32>::zeros((3, 20)));
}

#[test]
fn wrong_shapes_and_infinities_are_refused() {
    let a = CsrKernel::from(Csr::from_dense(random::<f32>(8, 5, 7, 0.5).view()).unwrap());
    let message = |e: prune_core::Error| e.to_string();
    assert_eq!(
        message(a.matvec(&[0.0; 6]).unwrap_err()),
        "right-hand side: found shape [6], expected [7]"
    );
    assert_eq!(
        message(a.matvec_into(&[0.0; 7], &mut [0.0; 4]).unwrap_err()),
        "product: found shape [4], expected [5]"
    );
    assert_eq!(
        message(a.matmul(Array2::zeros((6, 2)).view()).unwrap_err()),
        "right-hand side: found shape [6, 2], expected [7, 2]"
    );
    let mut x = [0.0; 7];
    x[3] = f32::NAN;
    assert!(message(a.matvec(&x).unwrap_err()).starts_with("right-hand side: element 3 is NaN"));
    let mut x = Array2::zeros((7, 4));
    x[[2, 1]] = f32::INFINITY;
    assert!(message(a.matmul(x.view()).unwrap_err()).starts_with("right-hand side: element 9"));
    let error = DenseKernel::new(ndarray::array![[0.0f32, f32::NAN]]).unwrap_err();
    assert!(message(error).starts_with("dense matrix: element 1 is NaN"));
    let core = NmPacked::from_dense(nm::<f32>(9, 8, 2, 2, 4).view(), 2, 4).unwrap();
    let identity = |size| BlockDiagonal::identity(size, 4).unwrap();
    assert_eq!(
        message(ArmorKernel::new(identity(8), &core, identity(12)).unwrap_err()),
        "rows of the last factor: found shape [12], expected [8]"
    );
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, cols) = (256, 384);
    let w: Array2<f32> = random(10, rows, cols, 0.3);
    let pattern: Array2<f32> = nm(11, rows, cols / 4, 2, 4);
    let packed = NmPacked::from_dense(pattern.view(), 2, 4).unwrap();
    let factor = |size| {
        let data =
            Array3::from_shape_fn((size / 32, 32, 32), |(i, j, k)| (i + j * k) as f32 / 99.0);
        BlockDiagonal::from_parts(size, data).unwrap()
    };
    let blocks = Bsr::from_dense(blocks::<f32>(12, (rows, cols), (16, 16)).view(), 16, 16).unwrap();
    let operators: Vec<Box<dyn LinearOperator>> = vec![
        Box::new(DenseKernel::new(w.clone()).unwrap()),
        Box::new(CsrKernel::from(Csr::from_dense(w.view()).unwrap())),
        Box::new(BitmaskKernel::from(Bitmask::from_dense(w.view()).unwrap())),
        Box::new(BsrKernel::from(blocks)),
        Box::new(NmKernel::try_from(&packed).unwrap()),
        Box::new(ArmorKernel::new(factor(rows), &packed, factor(cols)).unwrap()),
    ];
    for a in operators {
        for k in [1, 3, 20, 40] {
            let x: Array2<f32> = random(k as u64, cols, k, 1.0);
            let products: Vec<_> = [1, 2, 3, 8]
                .map(|threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.unwrap().install(|| {
                        (a.matvec(&x.column(0).to_vec()).unwrap(), a.matmul(x.view()).unwrap())
                    })
                })
                .into();
            assert!(products.iter().all(|p| *p == products[0]));
        }
    }
}
