//! Wanda on the largest matrix of a 7B model: score every weight, select, build the mask and zero
//! the removed, next to the time that reading and writing the matrix once takes.
//!
//! Every iteration works on a fresh copy of the matrix; making it is not timed. Run with
//! `RAYON_NUM_THREADS=2 cargo bench -p prune-benches --bench wanda_select`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use prune_benches as _;
use prune_core::{
    ColumnStats, LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target,
};
use prune_unstructured::Wanda;
use rayon::prelude::*;

const ROWS: usize = 4096;
const COLS: usize = 11008;

/// Standard normal weights by Box and Muller.
fn weights() -> Array2<f32> {
    let mut stream = Seed::new(0).stream("weights");
    Array2::from_shape_simple_fn((ROWS, COLS), || {
        let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * stream.uniform()).cos()) as f32
    })
}

/// Squared norms between 0.001 and 10.
fn stats() -> LayerStats {
    let mut stream = Seed::new(0).stream("inputs");
    let input =
        Array2::from_shape_simple_fn((1, COLS), || (stream.uniform() * 10.0 + 1e-3).sqrt() as f32);
    let mut columns = ColumnStats::new(COLS);
    columns.update("x", input.view()).unwrap();
    LayerStats { columns: Some(columns), ..LayerStats::default() }
}

fn wanda_select(c: &mut Criterion) {
    let weight = weights();
    let stats = stats();
    let layer = LayerId::new("model.layers.0.mlp.down_proj");
    let mut group = c.benchmark_group(format!("wanda {ROWS} x {COLS}"));
    group.sample_size(20).throughput(Throughput::Elements((ROWS * COLS) as u64));

    // The same fresh matrix as below, each weight read and written once in its place.
    group.bench_function("read and write", |b| {
        b.iter_batched(
            || weight.clone(),
            |mut weight| {
                weight.as_slice_mut().unwrap().par_chunks_mut(COLS).for_each(|row| {
                    row.iter_mut().for_each(|w| *w = -*w);
                });
                weight
            },
            BatchSize::PerIteration,
        );
    });

    // What the memory gives at its best: a copy between two matrices that stay.
    let mut copy = weight.clone();
    group.bench_function("copy", |b| {
        b.iter(|| {
            let (to, from) = (copy.as_slice_mut().unwrap(), weight.as_slice().unwrap());
            to.par_chunks_mut(COLS)
                .zip(from.par_chunks(COLS))
                .for_each(|(to, from)| to.copy_from_slice(black_box(from)));
        });
    });

    for (name, pattern, scope) in [
        ("50 % by row", Pattern::Unstructured, Scope::PerRow),
        ("2:4", Pattern::NM { n: 2, m: 4 }, Scope::PerRow),
        ("50 % by layer", Pattern::Unstructured, Scope::PerLayer),
    ] {
        let stream = Seed::new(0).stream(layer.as_str());
        let target = Target { layer: &layer, pattern, scope, remove: ROWS * COLS / 2, stream };
        group.bench_function(name, |b| {
            b.iter_batched(
                || weight.clone(),
                |mut weight| {
                    let pruned = ScorePruner(Wanda).prune(weight.view_mut(), &stats, &target);
                    (weight, pruned.unwrap())
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, wanda_select);
criterion_main!(benches);
