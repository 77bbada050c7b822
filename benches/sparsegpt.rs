//! Methods that fit weights to outputs, on one layer given its Gram matrix: 1024 x 1024 for all,
//! 4096 x 4096 (an attention projection of a 7B model) for SparseGPT and for GPTQ to 4 bits in groups
//! of 128, next to a dense product of the layer's size, which is what their updates cost at the least.
//!
//! Every iteration prunes a fresh copy of the weight, which is not timed. Run with
//! `RAYON_NUM_THREADS=2 cargo bench -p prune-benches --bench sparsegpt`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ndarray::Array2;
use prune_benches as _;
use prune_core::{
    ColumnStats, GramAccumulator, LayerId, LayerStats, Pattern, QuantTarget, Quantizer, Scope,
    Seed, Target,
};
use prune_quant::Gptq;
use prune_unstructured::pruner;

/// Uniform weights.
fn weights(size: usize) -> Array2<f32> {
    let mut stream = Seed::new(0).stream("weights");
    Array2::from_shape_simple_fn((size, size), || stream.uniform() as f32 - 0.5)
}

/// Inputs of which channels j and k correlate by 0.9^|j−k| and every 256th is ten times as loud:
/// their expected Gram matrix over 1024 tokens.
fn stats(size: usize) -> LayerStats {
    let loud = |j: usize| if j % 256 == 5 { 10.0 } else { 1.0 };
    let gram = Array2::from_shape_fn((size, size), |(j, k)| {
        1024.0 * loud(j) * loud(k) * 0.9f64.powi(j.abs_diff(k) as i32)
    });
    let squares: Vec<f64> = gram.diag().to_vec();
    let zeros = vec![0.0; size];
    let columns = ColumnStats::from_parts(
        1024,
        zeros.clone(),
        squares.clone(),
        squares,
        zeros.clone(),
        zeros,
    );
    LayerStats {
        columns: Some(columns.unwrap()),
        gram: Some(GramAccumulator::from_parts(1024, gram).unwrap()),
        ..LayerStats::default()
    }
}

fn prune(c: &mut Criterion, size: usize, methods: &[&str]) {
    let weight = weights(size);
    let stats = stats(size);
    let layer = LayerId::new("model.layers.0.self_attn.q_proj");
    let mut group = c.benchmark_group(format!("{size} x {size}"));
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    group.bench_function("dense product", |b| b.iter(|| weight.dot(&weight)));
    for method in methods {
        let pruner = pruner(method).unwrap();
        for (name, pattern) in
            [("50 %", Pattern::Unstructured), ("2:4", Pattern::NM { n: 2, m: 4 })]
        {
            let stream = Seed::new(0).stream(layer.as_str());
            let (scope, remove) = (Scope::PerLayer, size * size / 2);
            let target = Target { layer: &layer, pattern, scope, remove, stream };
            group.bench_function(format!("{method} {name}"), |b| {
                b.iter_batched(
                    || weight.clone(),
                    |mut weight| {
                        let pruned = pruner.prune(weight.view_mut(), &stats, &target);
                        (weight, pruned.unwrap())
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    let scheme = "int4 g128 asym f16".parse().unwrap();
    let target = QuantTarget { layer: &layer, scheme, keep: None };
    group.bench_function("gptq 4 bits", |b| {
        b.iter(|| Gptq::default().quantize(weight.view(), &stats, &target).unwrap());
    });
    group.finish();
}

fn small(c: &mut Criterion) {
    prune(c, 1024, &["wanda", "ria", "sparsegpt", "refit", "admm", "alps"]);
}

fn large(c: &mut Criterion) {
    prune(c, 4096, &["sparsegpt"]);
}

criterion_group!(benches, small, large);
criterion_main!(benches);
