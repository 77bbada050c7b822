//! Pruners that keep the shape of a weight: from magnitude to SparseGPT and ALPS.
//!
//! Each removes an exact number of weights of one layer, in place: by row, by layer, in N:M groups,
//! in blocks or in whole columns ([`select`](prune_core::select) defines each).
//!
//! ```
//! use ndarray::array;
//! use prune_core::{ColumnStats, LayerId, LayerStats, Pattern, Scope, Seed, Target};
//!
//! let mut weight = array![[1.0, -2.0, 3.0, 0.5], [4.0, 1.0, -1.0, 2.0]];
//! let mut columns = ColumnStats::new(4);
//! columns.update("x", array![[9.0, 1.0, 1.0, 9.0]].view())?;
//! let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
//! let layer = LayerId::new("model.layers.0.mlp.up_proj");
//! let (pattern, scope) = (Pattern::Unstructured, Scope::PerRow);
//! let stream = Seed::new(0).stream(layer.as_str());
//! let target = Target { layer: &layer, pattern, scope, remove: 4, stream };
//!
//! let wanda = prune_unstructured::pruner("wanda").expect("it is in the list");
//! let pruned = wanda.prune(weight.view_mut(), &stats, &target)?;
//! assert_eq!(weight, array![[1.0, 0.0, 0.0, 0.5], [4.0, 0.0, 0.0, 2.0]]);
//! assert_eq!(pruned.mask.kept_per_row(), [2, 2]);
//! # Ok::<(), prune_core::Error>(())
//! ```
//!
//! Scores: the weights of lowest score go, the others stay as they are.
//!
//! | | score of a weight | needs |
//! |---|---|---|
//! | [`Magnitude`] | its absolute value | nothing |
//! | [`Wanda`] | its absolute value times the norm of its input channel | column statistics |
//! | [`WandaShare`] | the share of its row's Wanda scores up to its own | column statistics |
//! | [`Ria`] | its share of row and column, times a power of that norm | column statistics |
//! | [`NoWag`] | as Wanda, with rows and columns of the weight normalised | column statistics |
//! | [`Random`] | a random number | nothing |
//!
//! Fits: what stays makes up for what goes.
//!
//! | | how | needs |
//! |---|---|---|
//! | [`SparseGpt`] | column by column, later columns make up for earlier ones | Gram matrix |
//! | [`Admm`] | gradual mask, weights fitted on the way | Gram matrix |
//! | [`Alps`] | mask and weights together, then a fit | Gram matrix |
//!
//! Steps that take on the mask of any of them:
//!
//! | | what it does | needs |
//! |---|---|---|
//! | [`Dsnot`] | swaps weights until rows keep their mean output | column statistics |
//! | [`Compensated`] | one pass of SparseGPT's updates | Gram matrix |
//! | [`Refit`] | least squares on the support | Gram matrix |
//!
//! [`PRUNERS`] lists them and [`pruner`] makes one by name, `ria+refit` included. A score of your
//! own takes one method: see [`ScorePruner`](prune_core::ScorePruner). [`permute_channels`] orders
//! input channels so that N:M groups keep more. Where all layers of a model compete,
//! [`global_magnitude_counts`] says how many weights each gives up.
//!
//! [`Armor`] is no pruner but a [`Factoriser`](prune_core::Factoriser): it puts an N:M core between
//! two block-diagonal matrices; [`armor()`] is the function behind it and [`ArmorLayer`] what it
//! makes. So is [`Permuted`], whose core is N:M over channels in an order of its own.
//! [`FACTORISERS`] lists such methods and [`factoriser`] makes one by name.

mod admm;
mod armor;
mod channel_norms;
mod dsnot;
mod factorisers;
mod global;
mod gram_layer;
#[cfg(test)]
#[path = "../tests/layers/mod.rs"]
mod layers;
mod magnitude;
mod nowag;
mod permutation;
mod random;
mod refit;
mod registry;
mod ria;
mod sparsegpt;
mod unit_layer;
mod wanda;
mod wanda_share;

pub use admm::{Admm, Alps};
pub use armor::{
    AdamOptions, Armor, ArmorLayer, ArmorMethod, ArmorOptions, ArmorSolution, CoreRate, Fidelity,
    GroupChoice, Keep, Patience, Precision, Schedule, armor,
};
pub use dsnot::{Dsnot, SignCheck};
pub use factorisers::{FACTORISERS, factoriser};
pub use global::global_magnitude_counts;
pub use magnitude::Magnitude;
pub use nowag::NoWag;
pub use permutation::{
    ChannelImportance, ChannelPermutation, PermuteOptions, Permuted, PermutedNm, Refinement,
    permute_channels, prune_permuted,
};
pub use random::Random;
pub use refit::{Refit, Solver};
pub use registry::{PRUNERS, pruner};
pub use ria::Ria;
pub use sparsegpt::{ColumnOrder, Compensated, SparseGpt};
pub use wanda::Wanda;
pub use wanda_share::WandaShare;
