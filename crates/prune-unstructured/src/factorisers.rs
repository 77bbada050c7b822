use prune_core::Factoriser;

use crate::Armor;

/// Name and summary of every factoriser of this crate, as [`factoriser`] takes them.
pub const FACTORISERS: &[(&str, &str)] =
    &[("armor", "an N:M core between two block-diagonal matrices; needs calibration data")];

/// The factoriser of that name with its default options, or `None` when there is none.
///
/// ```
/// use prune_unstructured::{FACTORISERS, factoriser};
/// for (name, _) in FACTORISERS {
///     assert_eq!(factoriser(name).expect("listed").name(), *name);
/// }
/// assert!(factoriser("wanda").is_none());
/// ```
pub fn factoriser(name: &str) -> Option<Box<dyn Factoriser>> {
    match name {
        "armor" => Some(Box::new(Armor::default())),
        _ => None,
    }
}
