mod block_curve;
mod power;
mod released;
mod smoothing;
mod solver;

pub use block_curve::{BlockCurve, multiplications};
pub use power::balanced_beta;
pub use released::{ReleasedBisection, ReleasedLayer, ReleasedSolution};
pub use solver::{BlockSolver, Lpvit};
