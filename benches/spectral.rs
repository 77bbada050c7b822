//! Spectra and fits: one window next to one product of its size, fits over the pooled eigenvalues
//! of 225 windows of 2000 rows next to a pass over them, and a layer from weight to exponent.
//!
//! Run with `RAYON_NUM_THREADS=2 cargo bench -p prune-benches --bench spectral`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ndarray::Array2;
use prune_benches as _;
use prune_core::Seed;
use prune_linalg::{Workspace, eigenvalues_symmetric, gram_eigenvalues, squared_singular_values};
use prune_spectral::{DiagnoseOptions, Farms, Spacing, Spectrum, TailFit, diagnose};

/// Standard normal weights by Box and Muller.
fn weights(rows: usize, cols: usize) -> Array2<f32> {
    let mut stream = Seed::new(0).stream("weights");
    Array2::from_shape_simple_fn((rows, cols), || {
        let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * stream.uniform()).cos()) as f32
    })
}

/// A quarter circle's bulk and a heavy tail: 225 windows of 2000 rows.
fn pooled() -> Spectrum {
    let mut stream = Seed::new(1).stream("pooled");
    let eigenvalues = (0..450_000)
        .map(|k| {
            let u = stream.uniform();
            if k % 20 == 0 { 2.0 * (1.0 - u).powf(-0.6) } else { 4.0 * u * u }
        })
        .collect();
    Spectrum::from_eigenvalues(eigenvalues).unwrap()
}

fn eigenvalues(c: &mut Criterion) {
    let mut group = c.benchmark_group("eigenvalues, one thread");
    group.sample_size(10);
    for n in [128, 1024, 2048] {
        let single = weights(n, n);
        let double = single.mapv(f64::from);
        let (symmetric_single, symmetric_double) = (&single + &single.t(), &double + &double.t());
        group.bench_function(BenchmarkId::new("symmetric f32", n), |b| {
            b.iter(|| eigenvalues_symmetric(black_box(symmetric_single.view())).unwrap());
        });
        group.bench_function(BenchmarkId::new("symmetric f64", n), |b| {
            b.iter(|| eigenvalues_symmetric(black_box(symmetric_double.view())).unwrap());
        });
        let mut workspace = Workspace::default();
        group.bench_function(BenchmarkId::new("squares through the Gram matrix", n), |b| {
            b.iter(|| gram_eigenvalues(black_box(single.view()), &mut workspace).unwrap());
        });
        group.bench_function(BenchmarkId::new("squares of singular values", n), |b| {
            b.iter(|| squared_singular_values(black_box(single.view()), &mut workspace).unwrap());
        });
        group.bench_function(BenchmarkId::new("product f64", n), |b| {
            b.iter(|| black_box(&double).dot(&double));
        });
    }
    group.finish();
}

fn fits(c: &mut Criterion) {
    let spectrum = pooled();
    let mut group = c.benchmark_group("fits over 450000 eigenvalues");
    group.sample_size(10);
    group.bench_function("sum of logarithms", |b| {
        b.iter(|| black_box(&spectrum).eigenvalues().iter().map(|v| v.ln()).sum::<f64>());
    });
    for (name, fit) in [
        ("median", TailFit::median()),
        ("peak", TailFit::peak()),
        ("released peak", TailFit::released_peak()),
        ("goodness of fit", TailFit::goodness_of_fit()),
    ] {
        group.bench_function(name, |b| b.iter(|| fit.fit(black_box(&spectrum)).unwrap()));
    }
    group.finish();
}

fn layers(c: &mut Criterion) {
    let weight = weights(1536, 576);
    let mut group = c.benchmark_group("a layer of 1536 x 576");
    group.sample_size(10);
    let options = DiagnoseOptions::weightwatcher();
    group.bench_function("diagnose", |b| {
        b.iter(|| diagnose("layer", black_box(weight.view()), &options).unwrap());
    });
    let farms = Farms::new(128, 1.0).unwrap().spacing(Spacing::Count(10)).unwrap();
    for (name, fit) in [("median", TailFit::median()), ("peak", TailFit::peak())] {
        group.bench_function(BenchmarkId::new("farms", name), |b| {
            b.iter(|| farms.fit(fit).measure(black_box(weight.view())).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, eigenvalues, fits, layers);
criterion_main!(benches);
