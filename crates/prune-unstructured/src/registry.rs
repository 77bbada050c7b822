use prune_core::{Pruner, ScorePruner};

use crate::{Magnitude, Random, Wanda};

/// A method: its name, a line on what it does, and how to make it. Adding one adds a line here.
type Entry = (&'static str, &'static str, fn() -> Box<dyn Pruner>);

const ENTRIES: [Entry; 3] = [
    ("magnitude", "removes the weights of smallest absolute value; data-free", || {
        Box::new(ScorePruner(Magnitude))
    }),
    ("wanda", "weighs absolute values by the norms of the inputs; needs calibration data", || {
        Box::new(ScorePruner(Wanda))
    }),
    ("random", "removes weights at random, from the seed; a baseline", || {
        Box::new(ScorePruner(Random))
    }),
];

/// Name and summary of every pruner of this crate, as [`pruner`] takes them.
///
/// ```
/// use prune_unstructured::{PRUNERS, pruner};
/// for (name, summary) in PRUNERS {
///     println!("{name:10} {summary}");
///     assert_eq!(pruner(name).expect("listed").name(), *name);
/// }
/// ```
pub const PRUNERS: &[(&str, &str)] = &{
    let mut list = [("", ""); ENTRIES.len()];
    let mut i = 0;
    while i < list.len() {
        list[i] = (ENTRIES[i].0, ENTRIES[i].1);
        i += 1;
    }
    list
};

/// The pruner of that name, or `None` when [`PRUNERS`] does not list it.
///
/// ```
/// use prune_unstructured::pruner;
/// assert_eq!(pruner("wanda").map(|p| p.name().to_string()).as_deref(), Some("wanda"));
/// assert!(pruner("wander").is_none());
/// ```
pub fn pruner(name: &str) -> Option<Box<dyn Pruner>> {
    ENTRIES.iter().find(|(n, _, _)| *n == name).map(|(_, _, make)| make())
}
