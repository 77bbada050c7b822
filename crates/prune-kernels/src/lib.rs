//! Products with sparse and quantized matrices, fast on any CPU.
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]
#![allow(clippy::needless_range_loop)]

mod activations;
mod armor;
mod bitmask;
mod block_diagonal;
mod bsr;
mod csr;
mod dense;
mod gguf;
mod groups;
mod nm;
mod operator;
mod simd;
mod slabs;
mod storage;
mod tiles;

pub use activations::Activations;
pub use armor::ArmorKernel;
pub use bitmask::BitmaskKernel;
pub use block_diagonal::BlockDiagonalKernel;
pub use bsr::BsrKernel;
pub use csr::CsrKernel;
pub use dense::DenseKernel;
pub use gguf::{BlockFormat, GgufKernel};
pub use groups::{GroupKernel, GroupParts};
pub use nm::NmKernel;
pub use operator::LinearOperator;
pub use simd::KernelPath;
pub use storage::Storage;
