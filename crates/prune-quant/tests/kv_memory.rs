//! What a cache says it takes is what the allocator gave it.

#![allow(clippy::unwrap_used)]

use std::alloc::System;

use ndarray::Array2;
use prune_quant::kv::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes on the heap that `make` leaves behind.
fn allocated<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let region = Region::new(ALLOCATOR);
    let value = make();
    let change = region.change();
    // What `realloc` adds or gives back is counted in these two as well.
    (value, change.bytes_allocated - change.bytes_deallocated)
}

// A program without the test harness, whose own thread would allocate in between.
fn main() {
    let shape = KvShape { layers: 3, kv_heads: 3, head_dim: 64 };
    let rows = Array2::from_shape_fn((512, shape.width()), |(t, c)| ((t * 7 + c) as f32).sin());
    let fill = |store: &mut dyn KvStore| {
        for layer in 0..shape.layers {
            for first in (0..512).step_by(32) {
                let part = rows.slice(ndarray::s![first..first + 32, ..]);
                store.append(layer, part, part).unwrap();
            }
        }
    };
    for scheme in [
        KvScheme::kivi(),
        KvScheme::per_token(),
        KvScheme::per_token().residual(100).numbers(StoredFloat::F32),
    ] {
        for pair in ["KV16", "KV8", "K8V4", "KV4", "KV2"] {
            let config = KvConfig::uniform(shape.layers, pair.parse().unwrap(), scheme).unwrap();
            let (cache, heap) = allocated(|| {
                let mut cache = KvCache::new(shape, &config).unwrap();
                fill(&mut cache);
                cache
            });
            assert_eq!(cache.bytes(), heap + size_of::<KvCache>(), "{pair}");
            // Per token close to the formula: blocks, windows and bookkeeping cost little.
            let window = 2 * shape.layers * scheme.residual * shape.width() * scheme.numbers.size();
            let sealed: usize = (0..shape.layers)
                .flat_map(|l| [Side::Key, Side::Value].map(|s| cache.quantized(l, s).unwrap()))
                .sum();
            let share = sealed as f64 / (2 * shape.layers) as f64;
            let formula = config.bytes_per_token(shape) * share;
            let got = (cache.bytes() - window) as f64;
            assert!(got >= formula && got < 1.25 * formula + 8192.0, "{pair}: {got} {formula}");
        }
    }
    let (dense, heap) = allocated(|| {
        let mut dense = DenseKv::new(shape).unwrap();
        fill(&mut dense);
        dense
    });
    assert_eq!(dense.bytes(), heap + size_of::<DenseKv>());
}
