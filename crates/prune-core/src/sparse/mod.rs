mod bitmask;
mod block_diagonal;
mod bsr;
mod check;
mod csr;
mod element;
mod matrix;
mod nm;

pub use bitmask::Bitmask;
pub use block_diagonal::BlockDiagonal;
pub use bsr::Bsr;
pub use csr::Csr;
pub use element::Element;
pub use matrix::SparseMatrix;
pub use nm::NmPacked;
