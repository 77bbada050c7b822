//! An iteration of ARMOR on a 4096 x 4096 layer with blocks of 128, next to the six block-diagonal
//! products that it cannot do without, on as many threads.
//!
//! An iteration is the difference of two runs, so that normalisation and the start are not in it.
//! Run with `RAYON_NUM_THREADS=2 cargo bench -p prune-benches --bench armor`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, s};
use prune_benches as _;
use prune_core::{LayerId, Pattern, Scope, Seed, Target};
use prune_unstructured::{ArmorMethod, ArmorOptions, GroupChoice, armor};
use rayon::prelude::*;

const SIZE: usize = 4096;
const BLOCK: usize = 128;

/// Standard normal numbers by Box and Muller.
fn normal(name: &str) -> impl FnMut() -> f64 {
    let mut stream = Seed::new(0).stream(name);
    move || {
        let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * stream.uniform()).cos()
    }
}

fn iterations(c: &mut Criterion) {
    let mut random = normal("weights");
    let weight = Array2::from_shape_simple_fn((SIZE, SIZE), || random() as f32);
    let mut random = normal("inputs");
    let importance: Vec<f64> = (0..SIZE).map(|_| random().exp()).collect();
    let layer = LayerId::new("model.layers.0.self_attn.q_proj");
    let target = Target {
        layer: &layer,
        pattern: Pattern::NM { n: 2, m: 4 },
        scope: Scope::PerRow,
        remove: SIZE * SIZE / 2,
        stream: Seed::new(0).stream(layer.as_str()),
    };
    let run = |options: &ArmorOptions, iterations: usize| -> Duration {
        let options = options.clone().iterations(iterations);
        let start = Instant::now();
        black_box(armor(weight.view(), &importance, &options, &target).unwrap());
        start.elapsed()
    };
    let mut group = c.benchmark_group(format!("armor {SIZE} x {SIZE}, blocks of {BLOCK}"));
    group.sample_size(10);
    let fast = ArmorOptions::fast().block(BLOCK);
    for (name, options) in [
        ("fast", fast.clone()),
        ("as the paper", ArmorOptions::paper()),
        ("one largest gradient", {
            ArmorOptions { discrete_steps: 1, ..fast.clone().choice(GroupChoice::Greedy) }
        }),
        ("exact", fast.clone().method(ArmorMethod::Exact { core_steps: 2 })),
    ] {
        group.bench_function(name, |b| {
            b.iter_custom(|count| {
                let start = run(&options, 1);
                run(&options, 1 + count as usize).saturating_sub(start)
            });
        });
    }
    let block = Array2::<f32>::ones((BLOCK, BLOCK));
    let mut out = Array2::<f32>::zeros((SIZE, SIZE));
    group.bench_function("six products", |b| {
        b.iter(|| {
            out.as_slice_mut().unwrap().par_chunks_mut(BLOCK * SIZE).enumerate().for_each(
                |(i, out)| {
                    let shape = (BLOCK, SIZE);
                    let mut out = ndarray::ArrayViewMut2::from_shape(shape, out).unwrap();
                    let rows = i * BLOCK..(i + 1) * BLOCK;
                    for _ in 0..6 {
                        let part = weight.slice(s![rows.clone(), ..]);
                        general_mat_mul(1.0, black_box(&block), &part, 0.0, &mut out);
                    }
                },
            );
        });
    });
    group.finish();
}

criterion_group!(benches, iterations);
criterion_main!(benches);
