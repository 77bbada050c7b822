//! Sparse tensors of the library compressed-tensors, and the 2:4 metadata of PyTorch.
//!
//! compressed-tensors removed its sparse formats after version 0.14 and vLLM its kernels for them:
//! these are conversions for files that exist, and for clients of those versions.

mod bitmask;
mod config;
mod semi_structured;

pub use bitmask::{
    CompressedKeys, NamedTensor, SparseFormat, compress, compressed_modules, decompress,
};
pub use config::SparsityConfig;
pub use semi_structured::{
    MetadataOrder, code_of_kept, kept_of_code, metadata16, metadata16_codes, metadata32,
    metadata32_codes,
};
