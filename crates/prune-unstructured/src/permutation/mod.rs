//! Orders of input channels under which N:M groups lose less.

mod assignment;
mod channels;
mod factoriser;
mod prune;

pub use channels::{
    ChannelImportance, ChannelPermutation, PermuteOptions, Refinement, permute_channels,
};
pub use factoriser::Permuted;
pub use prune::{PermutedNm, prune_permuted};
