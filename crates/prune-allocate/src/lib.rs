//! Allocators: one global sparsity divided over the layers of a network.
