//! Runnable examples: see the files beside this one. The README is tested here.

pub mod digits;

/// Training makes and drops tensors by the thousand, and the allocators of most systems give each
/// back to the kernel: with this one a step of `train_tiny_llama` takes half the time. An example
/// gets it by `use prune_examples as _`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
