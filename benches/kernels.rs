//! Products with sparse and quantised matrices of the sizes of a 7B model, against the dense
//! product and against the rate at which memory can be read.
//!
//! Every measurement goes round copies of the matrix that are together larger than the caches, as
//! the layers of a model are: what is small is not faster for having been read before. Beside
//! criterion's figures each line states the median, the speed against the dense f32 product with
//! the same right-hand side in the same run, and, for vectors, the bytes read a second as a share
//! of what a plain sum or, where that is more, the dense product reads.
//!
//! ```text
//! cargo bench -p prune-benches --bench kernels [-- FILTER]
//! ```
//!
//! The instruction set is the best of the processor, or the one that `KERNEL_PATH` names. A filter
//! such as `'4096 x 4096, 1 threads.* x 1$'` takes a part.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use ndarray::{Array2, Array3};
use prune_benches as _;
use prune_core::{Bitmask, BlockDiagonal, Bsr, Csr, Mask, NmPacked, Seed, SeedStream, pack_dense};
use prune_kernels::{
    Activations, ArmorKernel, BitmaskKernel, BlockFormat, BsrKernel, CsrKernel, DenseKernel,
    GgufKernel, GroupKernel, GroupParts, KernelPath, LinearOperator, NmKernel,
};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

const SHAPES: [(usize, usize); 2] = [(4096, 4096), (4096, 11008)];

/// Right-hand sides.
const COLUMNS: [usize; 3] = [1, 8, 32];

/// What the copies of a matrix take together, at least.
const COLD: usize = 256 << 20;

/// Rows and columns of a block of ARMOR's factors.
const ARMOR_BLOCK: usize = 128;

type Operator = Box<dyn LinearOperator>;

/// Makes as many copies as are needed.
struct Subject {
    name: &'static str,
    /// For vectors only; for the formats whose products with matrices go the same way.
    vector_only: bool,
    operator: Box<dyn Fn() -> Operator>,
}

fn subject(name: &'static str, operator: impl Fn() -> Operator + 'static) -> Subject {
    Subject { name, vector_only: false, operator: Box::new(operator) }
}

fn vector_subject(name: &'static str, operator: impl Fn() -> Operator + 'static) -> Subject {
    Subject { vector_only: true, ..subject(name, operator) }
}

fn boxed<K: LinearOperator + Clone + 'static>(kernel: K) -> impl Fn() -> Operator + 'static {
    move || Box::new(kernel.clone())
}

fn number(stream: &mut SeedStream) -> f32 {
    (2.0 * stream.uniform() - 1.0) as f32
}

fn weights(rows: usize, cols: usize) -> Array2<f32> {
    let mut stream = Seed::new(0).stream("weights");
    Array2::from_shape_simple_fn((rows, cols), || number(&mut stream))
}

/// Keeps blocks at random.
fn mask(size: (usize, usize), block: (usize, usize), density: f64) -> Mask {
    let mut stream = Seed::new(0).stream("mask");
    let mut mask = Mask::all_removed(size.0, size.1);
    for r in (0..size.0).step_by(block.0) {
        for c in (0..size.1).step_by(block.1) {
            if stream.uniform() < density {
                for i in 0..block.0 {
                    (0..block.1).for_each(|j| mask.keep(r + i, c + j));
                }
            }
        }
    }
    mask
}

fn two_of_four(rows: usize, cols: usize) -> Mask {
    let mut stream = Seed::new(0).stream("groups");
    let mut mask = Mask::all_removed(rows, cols);
    for r in 0..rows {
        for c in (0..cols).step_by(4) {
            let first = (stream.uniform() * 4.0) as usize;
            let other = (first + 1 + (stream.uniform() * 3.0) as usize) % 4;
            mask.keep(r, c + first);
            mask.keep(r, c + other);
        }
    }
    mask
}

fn block_diagonal(size: usize) -> BlockDiagonal<f32> {
    let mut stream = Seed::new(0).stream("factor");
    let shape = (size / ARMOR_BLOCK, ARMOR_BLOCK, ARMOR_BLOCK);
    let data = Array3::from_shape_simple_fn(shape, || number(&mut stream));
    BlockDiagonal::from_parts(size, data).unwrap()
}

fn groups(rows: usize, cols: usize, bits: usize) -> GroupKernel<f16> {
    let mut stream = Seed::new(0).stream("codes");
    let words = (0..rows)
        .flat_map(|_| {
            let code = |_| (stream.uniform() * (1u32 << bits) as f64) as u8;
            pack_dense(&(0..cols).map(code).collect::<Vec<_>>(), bits as u32)
        })
        .collect();
    let scales = vec![f16::from_f32(0.01); rows * cols.div_ceil(128)];
    GroupKernel::from_parts(GroupParts { rows, cols, bits, group: 128, words, scales, zeros: None })
        .unwrap()
}

fn blocks(format: BlockFormat, rows: usize, cols: usize) -> GgufKernel {
    let mut stream = Seed::new(0).stream("blocks");
    let bytes = rows * cols / format.elements() * format.bytes();
    // Below 0x7c everywhere, so that no half is infinite.
    let data = (0..bytes).map(|_| (stream.uniform() * 124.0) as u8).collect();
    GgufKernel::from_bytes(format, rows, cols, data).unwrap().with_activations(Activations::Q8)
}

/// The one that `KERNEL_PATH` names, or the best.
fn path() -> KernelPath {
    let Ok(name) = std::env::var("KERNEL_PATH") else { return KernelPath::best() };
    KernelPath::available().into_iter().find(|p| p.name() == name).unwrap()
}

/// A kernel on that path, as [`boxed`] makes it.
macro_rules! on_path {
    ($kernel:expr) => {
        boxed($kernel.with_path(path()).unwrap())
    };
}

fn subjects(rows: usize, cols: usize) -> Vec<Subject> {
    let w = weights(rows, cols);
    let unstructured = |density| mask((rows, cols), (1, 1), density);
    let blocked = |density| mask((rows, cols), (16, 16), density);
    let csr = |density| {
        on_path!(CsrKernel::from(Csr::from_dense_masked(w.view(), &unstructured(density)).unwrap()))
    };
    let bsr = |density| {
        let bsr = Bsr::from_dense_masked(w.view(), &blocked(density), 16, 16).unwrap();
        on_path!(BsrKernel::from(bsr))
    };
    let pattern = two_of_four(rows, cols);
    let packed = NmPacked::from_dense_masked(w.view(), &pattern, 2, 4).unwrap();
    let half = w.mapv(bf16::from_f32);
    let half_packed = NmPacked::from_dense_masked(half.view(), &pattern, 2, 4).unwrap();
    let bitmask = Bitmask::from_dense_masked(w.view(), &unstructured(0.5)).unwrap();
    let (a, b) = (block_diagonal(rows), block_diagonal(cols));
    let four = groups(rows, cols, 4);
    let eight = groups(rows, cols, 8);
    vec![
        subject("dense f32", on_path!(DenseKernel::new(w.clone()).unwrap())),
        subject("dense bf16", on_path!(DenseKernel::new(half).unwrap())),
        subject("CSR 75 %", csr(0.25)),
        subject("CSR 90 %", csr(0.1)),
        vector_subject("bitmask 50 %", on_path!(BitmaskKernel::from(bitmask))),
        subject("BSR 16x16 50 %", bsr(0.5)),
        subject("BSR 16x16 75 %", bsr(0.25)),
        subject("2:4", on_path!(NmKernel::try_from(&packed).unwrap())),
        subject("2:4 bf16", on_path!(NmKernel::try_from(&half_packed).unwrap())),
        subject("ARMOR 128", on_path!(ArmorKernel::new(a, &packed, b).unwrap())),
        subject("4 bits g128", on_path!(four.clone())),
        subject("4 bits g128 x q8", on_path!(four.with_activations(Activations::Q8))),
        vector_subject("8 bits g128", on_path!(eight.clone())),
        vector_subject("8 bits g128 x q8", on_path!(eight.with_activations(Activations::Q8))),
        vector_subject("Q4_0 x q8", on_path!(blocks(BlockFormat::Q4_0, rows, cols))),
        vector_subject("Q8_0 x q8", on_path!(blocks(BlockFormat::Q8_0, rows, cols))),
        vector_subject("Q4_K x q8", on_path!(blocks(BlockFormat::Q4K, rows, cols))),
        vector_subject("Q6_K x q8", on_path!(blocks(BlockFormat::Q6K, rows, cols))),
    ]
}

/// The median seconds of one call on the threads of `pool`; `None` where the filter leaves it out.
fn measure(
    c: &mut Criterion,
    pool: &ThreadPool,
    (group, name): (&str, &str),
    bytes: u64,
    mut call: impl FnMut() + Send,
) -> Option<f64> {
    let mut samples = Vec::new();
    let mut group = c.benchmark_group(group);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .throughput(Throughput::Bytes(bytes));
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let elapsed = pool.install(|| {
                let start = Instant::now();
                (0..iterations).for_each(|_| call());
                start.elapsed()
            });
            samples.push(elapsed.as_secs_f64() / iterations as f64);
            elapsed
        });
    });
    group.finish();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

/// Bytes a second that a sum over memory reads.
fn bandwidth(c: &mut Criterion, pool: &ThreadPool, label: &str) -> Option<f64> {
    let memory = vec![1u64; COLD / 8];
    let sum = |part: &[u64]| {
        // Side by side, so that the compiler adds vectors.
        let mut sums = [0u64; 32];
        for values in part.as_chunks::<32>().0 {
            sums.iter_mut().zip(values).for_each(|(s, v)| *s = s.wrapping_add(*v));
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    };
    let seconds = measure(c, pool, (label, "read"), COLD as u64, || {
        black_box(memory.par_chunks(1 << 17).map(sum).reduce(|| 0, u64::wrapping_add));
    });
    seconds.map(|s| COLD as f64 / s)
}

fn kernels(c: &mut Criterion) {
    println!("path {}", path());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (rows, cols) in SHAPES {
        let subjects = subjects(rows, cols);
        for threads in [1, 2].into_iter().filter(|t| *t <= cores) {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let label = format!("{rows} x {cols}, {threads} threads");
            let mut limit = bandwidth(c, &pool, &label).unwrap_or(0.0);
            let mut dense = HashMap::new();
            for subject in &subjects {
                let first = (subject.operator)();
                let bytes = first.nbytes();
                let mut operators = vec![first];
                operators.extend((1..COLD.div_ceil(bytes)).map(|_| (subject.operator)()));
                for k in COLUMNS.into_iter().filter(|k| *k == 1 || !subject.vector_only) {
                    let mut stream = Seed::new(0).stream("input");
                    let x = Array2::from_shape_simple_fn((cols, k), || number(&mut stream));
                    let mut y = Array2::zeros((rows, k));
                    let mut next = 0;
                    let call = || {
                        let a = &operators[next % operators.len()];
                        next += 1;
                        match (k, x.as_slice(), y.as_slice_mut()) {
                            (1, Some(x), Some(y)) => a.matvec_into(x, y).unwrap(),
                            _ => a.matmul_into(x.view(), y.view_mut()).unwrap(),
                        }
                        black_box(&y);
                    };
                    let name = format!("{} x {k}", subject.name);
                    let seconds = measure(c, &pool, (&label, &name), bytes as u64, call);
                    let Some(seconds) = seconds else { continue };
                    let dense = *dense.entry(k).or_insert(seconds);
                    let gflop = 2e-9 * (rows * cols * k) as f64 / seconds;
                    let rate = bytes as f64 / seconds;
                    if k == 1 && subject.name == "dense f32" {
                        limit = limit.max(rate);
                    }
                    println!(
                        "{label} | {name} | {:.3} ms | {:.2}x | {gflop:.0} dense GFLOP/s | {:.1} \
                         of {:.1} GB/s, {:.0} %",
                        1e3 * seconds,
                        dense / seconds,
                        rate / 1e9,
                        limit / 1e9,
                        100.0 * rate / limit
                    );
                }
            }
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
