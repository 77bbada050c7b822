//! Quantizers for weights and KV caches, bit packing, and layer-wise bit widths.

pub mod kv;
