//! Orders of input channels under which N:M groups lose less.

mod assignment;
mod channels;
mod prune;

pub use channels::{
    ChannelImportance, ChannelPermutation, PermuteOptions, Refinement, permute_channels,
};
pub use prune::{PermutedNm, prune_permuted};
