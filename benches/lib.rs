//! Criterion benchmarks, one file a subject:
//!
//! - `wanda_select`: scoring, selecting and zeroing of a 4096 x 11008 matrix, next to the time to
//!   copy it.
//! - `sparsegpt`: methods that fit weights to outputs on 1024 x 1024, SparseGPT on 4096 x 4096, next
//!   to a dense product.
//! - `kernels`: products with sparse and quantised matrices of 4096 x 4096 and 4096 x 11008, next to
//!   the dense product and the rate at which memory can be read.
//!
//! They allocate as the command does: each has `use prune_benches as _`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
