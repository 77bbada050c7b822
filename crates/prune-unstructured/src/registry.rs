use prune_core::{Pruner, ScorePruner};

use crate::{
    Admm, Alps, Compensated, Dsnot, Magnitude, NoWag, Random, Refit, Ria, SparseGpt, Wanda,
    WandaShare,
};

/// A method: its name, a line on what it does, and how to make it. Adding one adds a line here.
type Entry = (&'static str, &'static str, fn() -> Box<dyn Pruner>);

const ENTRIES: [Entry; 11] = [
    ("magnitude", "removes the weights of smallest absolute value; data-free", || {
        Box::new(ScorePruner(Magnitude))
    }),
    ("wanda", "weighs absolute values by the norms of the inputs; needs calibration data", || {
        Box::new(ScorePruner(Wanda))
    }),
    ("wanda-share", "as wanda, with the same share of its scores from every row", || {
        Box::new(ScorePruner(WandaShare))
    }),
    ("ria", "as wanda, by the share of a weight in its row and column", || {
        Box::new(ScorePruner(Ria::default()))
    }),
    ("nowag", "as wanda, on a weight whose rows and columns are normalised", || {
        Box::new(ScorePruner(NoWag))
    }),
    ("dsnot", "swaps weights of Wanda's mask until rows keep their mean output", || {
        Box::new(Dsnot::default())
    }),
    (
        "sparsegpt",
        "makes up for each removal in the columns that follow; needs Gram matrices",
        || Box::new(SparseGpt::default()),
    ),
    ("admm", "prunes gradually while the rest is fitted; needs Gram matrices", || {
        Box::new(Admm::default())
    }),
    ("alps", "chooses mask and weights together; needs Gram matrices and time", || {
        Box::new(Alps::default())
    }),
    ("refit", "fits the weights of Wanda's mask to the outputs; needs Gram matrices", || {
        Box::new(Refit::default())
    }),
    ("random", "removes weights at random, from the seed; a baseline", || {
        Box::new(ScorePruner(Random))
    }),
];

/// A step that follows a pruner, named `BASE+STEP`.
type Step = (&'static str, fn(Box<dyn Pruner>) -> Box<dyn Pruner>);

const STEPS: [Step; 3] = [
    ("dsnot", |base| Box::new(Dsnot::over(base))),
    ("obs", |base| Box::new(Compensated::new(base, SparseGpt::default()))),
    ("refit", |base| Box::new(Refit::over(base))),
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

/// The pruner of that name, or `None` when there is none.
///
/// A name is one of [`PRUNERS`], or `BASE+STEP` for a pruner whose mask a step takes on: `+dsnot`
/// improves it ([`Dsnot`]), `+obs` and `+refit` fit the weights that it keeps ([`Compensated`],
/// [`Refit`]). Steps may follow each other.
///
/// ```
/// use prune_unstructured::pruner;
/// for name in ["wanda", "ria+refit", "magnitude+dsnot+obs"] {
///     assert_eq!(pruner(name).map(|p| p.name().to_string()).as_deref(), Some(name));
/// }
/// assert!(pruner("wander").is_none() && pruner("wanda+").is_none());
/// ```
pub fn pruner(name: &str) -> Option<Box<dyn Pruner>> {
    let mut parts = name.split('+');
    let base = parts.next()?;
    let made = ENTRIES.iter().find(|(n, _, _)| *n == base).map(|(_, _, make)| make())?;
    parts.try_fold(made, |base, step| {
        STEPS.iter().find(|(n, _)| *n == step).map(|(_, follow)| follow(base))
    })
}
