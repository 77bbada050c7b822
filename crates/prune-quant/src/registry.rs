use prune_core::Quantizer;

use crate::{Awq, ColumnOrder, Gptq, GroupParams, Hqq, MseSearch, Range, Rtn, SmoothQuant};

/// A method: its name, a line on what it does, and how to make it. Adding one adds a line here.
type Entry = (&'static str, &'static str, fn() -> Box<dyn Quantizer>);

const ENTRIES: [Entry; 8] = [
    ("rtn", "rounds every weight to the nearest code; data-free", || Box::<Rtn>::default()),
    ("rtn-mse", "rtn over the part of the range that gives the least error; data-free", || {
        Box::new(Rtn::default().range(Range::Mse(MseSearch::default())))
    }),
    ("hqq", "seeks float zero points that make errors sparse; data-free", || Box::<Hqq>::default()),
    ("gptq", "lets later columns make up for rounding; needs calibration data", || {
        Box::<Gptq>::default()
    }),
    ("gptq-act", "gptq, loudest input channel first; needs calibration data", || {
        Box::new(Gptq::default().order(ColumnOrder::Activation))
    }),
    (
        "gptq-static",
        "gptq-act with groups of neighbouring channels; needs calibration data",
        || {
            let gptq = Gptq::default().order(ColumnOrder::Activation);
            Box::new(gptq.groups(GroupParams::Static))
        },
    ),
    ("awq", "scales channels by their inputs, clips, rounds; needs calibration data", || {
        Box::<Awq>::default()
    }),
    ("smoothquant", "evens out activations for 8 bits; needs calibration data", || {
        Box::<SmoothQuant>::default()
    }),
];

/// Name and summary of every quantizer of this crate, as [`quantizer`] takes them.
///
/// ```
/// use prune_quant::{QUANTIZERS, quantizer};
/// for (name, summary) in QUANTIZERS {
///     println!("{name:12} {summary}");
///     assert!(quantizer(name).is_some());
/// }
/// ```
pub const QUANTIZERS: &[(&str, &str)] = &{
    let mut list = [("", ""); ENTRIES.len()];
    let mut i = 0;
    while i < list.len() {
        list[i] = (ENTRIES[i].0, ENTRIES[i].1);
        i += 1;
    }
    list
};

/// The quantizer of that name, or `None` when [`QUANTIZERS`] does not list it.
///
/// ```
/// use prune_quant::quantizer;
/// assert_eq!(quantizer("gptq").map(|q| q.name().to_string()).as_deref(), Some("gptq"));
/// assert!(quantizer("gtpq").is_none());
/// ```
pub fn quantizer(name: &str) -> Option<Box<dyn Quantizer>> {
    ENTRIES.iter().find(|(n, _, _)| *n == name).map(|(_, _, make)| make())
}
