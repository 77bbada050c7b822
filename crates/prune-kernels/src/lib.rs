//! Products with sparse and quantized matrices, fast on any CPU.
//!
//! Every kernel holds a matrix in the layout that it multiplies best and is a [`LinearOperator`]:
//! `y = A x` for a vector, `Y = A X` for a matrix, in f32. The instructions are chosen when the
//! program runs (AVX-512 or AVX2 with FMA and F16C on x86-64, Advanced SIMD on Arm, otherwise
//! plain code), and so a binary for any processor is fast on each. Work is divided among the
//! threads of rayon's current pool by rows, and no result depends on how many there are.
//!
//! ```
//! use ndarray::array;
//! use prune_core::{Csr, NmPacked};
//! use prune_kernels::{CsrKernel, LinearOperator, NmKernel};
//!
//! let w = array![[0.0f32, 5.0, 0.0, 4.0], [1.0, 0.0, 2.0, 0.0]];
//! let layers: Vec<Box<dyn LinearOperator>> = vec![
//!     Box::new(CsrKernel::from(Csr::from_dense(w.view())?)),
//!     Box::new(NmKernel::try_from(&NmPacked::from_dense(w.view(), 2, 4)?)?),
//! ];
//! for layer in layers {
//!     assert_eq!(layer.matvec(&[1.0, 10.0, 100.0, 1000.0])?, [4050.0, 201.0]);
//!     println!("{} bytes, {}", layer.nbytes(), layer.path());
//! }
//! # Ok::<(), prune_core::Error>(())
//! ```
//!
//! | matrix | kernel | made from |
//! |---|---|---|
//! | dense f32, f16, bf16 | [`DenseKernel`] | an array |
//! | unstructured, from 75 % sparsity | [`CsrKernel`] | [`Csr`](prune_core::Csr) |
//! | unstructured, small in memory | [`BitmaskKernel`] | [`Bitmask`](prune_core::Bitmask) |
//! | blocks | [`BsrKernel`] | [`Bsr`](prune_core::Bsr) |
//! | 2:4 | [`NmKernel`] | [`NmPacked`](prune_core::NmPacked) |
//! | block-diagonal | [`BlockDiagonalKernel`] | [`BlockDiagonal`](prune_core::BlockDiagonal) |
//! | ARMOR's three factors | [`ArmorKernel`] | those and an `NmPacked` |
//! | 4 and 8 bits with scales for groups | [`GroupKernel`] | [`QuantizedMatrix`](prune_core::QuantizedMatrix), [`GroupParts`] |
//! | blocks of GGUF | [`GgufKernel`] | the bytes of a [`BlockFormat`] |
//!
//! [`Storage`] are the element types of the sparse formats, [`Activations`] what a quantised product
//! does to its right-hand side, [`KernelPath`] the instruction sets.
//!
//! This is the one crate of the workspace with `unsafe` code: the intrinsics, behind detection, and
//! the gathers of CSR, behind the checks of its constructor. Every instruction set is tested against
//! plain code, operation by operation and product by product.
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]
// Lanes of several arrays are computed with in step.
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
mod pages;
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
