use std::collections::BTreeMap;

use prune_core::{Error, Factoriser, Result};

use crate::{Armor, ArmorOptions, PermuteOptions, Permuted, Refinement, Ria};

/// Name and summary of every factoriser of this crate, as [`factoriser`] takes them.
pub const FACTORISERS: &[(&str, &str)] = &[
    ("armor", "an N:M core between two block-diagonal matrices; needs calibration data"),
    ("ria-permuted", "ria on channels in an order of its own, N:M there; needs calibration data"),
];

/// The factoriser of that name with these options, or `None` when there is none.
///
/// `armor` takes those of [`ArmorOptions::from_text`]; `ria-permuted` takes `refinement`: `whole`
/// (default), `none`, or a number of parts ([`Refinement`]).
///
/// # Errors
/// [`Error::OutOfRange`] for options that the method does not know.
///
/// ```
/// use std::collections::BTreeMap;
/// use prune_unstructured::{FACTORISERS, factoriser};
/// let none = BTreeMap::new();
/// for (name, _) in FACTORISERS {
///     assert_eq!(factoriser(name, &none)?.expect("listed").name(), *name);
/// }
/// assert!(factoriser("wanda", &none)?.is_none());
/// let some = BTreeMap::from([("block".to_string(), "0x".to_string())]);
/// assert!(factoriser("armor", &some).is_err());
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn factoriser(
    name: &str,
    options: &BTreeMap<String, String>,
) -> Result<Option<Box<dyn Factoriser>>> {
    Ok(match name {
        "armor" => Some(Box::new(Armor(ArmorOptions::from_text(options)?))),
        "ria-permuted" => {
            let permute = permutation(options)?;
            Some(Box::new(Permuted::new(Ria::default(), permute)))
        }
        _ => None,
    })
}

fn permutation(options: &BTreeMap<String, String>) -> Result<PermuteOptions> {
    let mut permute = PermuteOptions::default();
    for (key, value) in options {
        let bad = |expected: &str| Error::OutOfRange {
            what: format!("ria-permuted option `{key}`"),
            found: value.clone(),
            expected: expected.to_string(),
        };
        if key != "refinement" {
            return Err(bad("no such option; refinement is the only one"));
        }
        permute.refinement = match value.as_str() {
            "whole" => Refinement::Whole,
            "none" => Refinement::None,
            parts => Refinement::Parts(
                parts.parse().map_err(|_| bad("whole, none or a number of parts"))?,
            ),
        };
    }
    Ok(permute)
}
