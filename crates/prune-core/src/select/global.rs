use rayon::prelude::*;

use super::order;
use super::radix::{Histogram, Radix};
use super::row::Cut;
use crate::{Error, LayerId, Result};

/// Counts how many weights each layer gives up when exactly `remove` of all layers go: those of
/// the lowest scores, earlier layers and lower indices first among equals.
///
/// The scores pass by three times and are never held: two passes of a histogram find the threshold
/// exactly, a third counts what lies below it. Each pass feeds every layer all its scores in
/// order, in chunks of any size; chunks of different layers may interleave. Memory is 512 KiB, and
/// as much again a thread for chunks of a million scores and more.
///
/// A layer that then removes its count at scope `layer` removes just the weights that the global
/// threshold would.
///
/// ```
/// use prune_core::{GlobalSelector, LayerId};
/// let layers = [vec![0.3, 0.1, 0.2], vec![0.1, 0.1, 0.9]];
/// let mut selector =
///     GlobalSelector::new(vec![(LayerId::new("a"), 3), (LayerId::new("b"), 3)], 3)?;
/// while !selector.is_done() {
///     for (i, scores) in layers.iter().enumerate() {
///         selector.feed(i, scores)?;
///     }
///     selector.end_pass()?;
/// }
/// let selection = selector.finish()?;
/// assert_eq!(selection.removed, [1, 2]);
/// assert_eq!(selection.threshold, Some(0.1));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct GlobalSelector {
    layers: Vec<Layer>,
    pass: Pass,
}

/// What [`GlobalSelector`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalSelection {
    /// How many weights each layer removes, in the order of the layers.
    pub removed: Vec<usize>,
    /// The highest score that is removed; `None` when nothing is.
    pub threshold: Option<f32>,
}

#[derive(Debug, Clone)]
struct Layer {
    id: LayerId,
    len: usize,
    fed: usize,
    below: usize,
    tied: usize,
}

#[derive(Debug, Clone)]
enum Pass {
    Seek(Radix, Histogram),
    Count(Cut),
    Done(Option<Cut>),
}

/// Scores that one thread counts alone.
const PART: usize = 1 << 20;

impl GlobalSelector {
    /// A selection of `remove` weights among layers of the given sizes. The order of the layers
    /// decides between equal scores.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when the layers have fewer than `remove` weights.
    pub fn new(layers: Vec<(LayerId, usize)>, remove: usize) -> Result<Self> {
        let total = layers.iter().try_fold(0usize, |sum, (_, len)| sum.checked_add(*len));
        if total.is_none_or(|total| remove > total) {
            let all = total.map_or("more than fit the address space".into(), |t| t.to_string());
            return Err(Error::out_of_range(
                "weights to remove from all layers",
                remove,
                format!("at most all weights ({all})"),
            ));
        }
        let layers = layers
            .into_iter()
            .map(|(id, len)| Layer { id, len, fed: 0, below: 0, tied: 0 })
            .collect();
        let pass = match remove {
            0 => Pass::Done(None),
            _ => {
                let radix = Radix::new(remove);
                let histogram = radix.histogram();
                Pass::Seek(radix, histogram)
            }
        };
        Ok(Self { layers, pass })
    }

    /// Whether no pass is left: [`GlobalSelector::finish`] has the result.
    pub fn is_done(&self) -> bool {
        matches!(self.pass, Pass::Done(_))
    }

    /// The next scores of layer number `layer`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming the layer and the index; [`Error::Shape`] for more scores than
    /// the layer has; [`Error::OutOfRange`] when there is no such layer.
    pub fn feed(&mut self, layer: usize, scores: &[f32]) -> Result<()> {
        let count = self.layers.len();
        let layer = self
            .layers
            .get_mut(layer)
            .ok_or_else(|| Error::out_of_range("layer number", layer, format!("below {count}")))?;
        if scores.len() > layer.len - layer.fed {
            return Err(layer.wrong_length(layer.fed.saturating_add(scores.len())));
        }
        if let Some(i) = order::first_not_finite(scores) {
            return Err(Error::NotFinite {
                what: format!("{} (scores)", layer.id),
                index: layer.fed + i,
                value: scores[i].to_string(),
            });
        }
        layer.fed += scores.len();
        match &mut self.pass {
            Pass::Seek(_, histogram) if scores.len() <= PART => histogram.add(scores),
            Pass::Seek(radix, histogram) => {
                let parts = scores.par_chunks(PART).map(|part| {
                    let mut counts = radix.histogram();
                    counts.add(part);
                    counts
                });
                let sum = parts.reduce_with(|mut a, b| {
                    a.merge(&b);
                    a
                });
                sum.iter().for_each(|sum| histogram.merge(sum));
            }
            Pass::Count(cut) => {
                layer.below += scores.iter().filter(|s| **s < cut.at).count();
                layer.tied += scores.iter().filter(|s| **s == cut.at).count();
            }
            Pass::Done(_) => {}
        }
        Ok(())
    }

    /// Ends a pass in which every layer was fed whole.
    ///
    /// # Errors
    /// [`Error::Shape`] naming a layer that was not fed all its scores.
    pub fn end_pass(&mut self) -> Result<()> {
        if let Some(layer) = self.layers.iter().find(|layer| layer.fed != layer.len) {
            return Err(layer.wrong_length(layer.fed));
        }
        self.layers.iter_mut().for_each(|layer| layer.fed = 0);
        match &mut self.pass {
            Pass::Seek(radix, histogram) => match radix.end_pass(histogram) {
                None => *histogram = radix.histogram(),
                Some(cut) => self.pass = Pass::Count(cut),
            },
            Pass::Count(cut) => self.pass = Pass::Done(Some(*cut)),
            Pass::Done(_) => {}
        }
        Ok(())
    }

    /// How many weights each layer removes.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] before [`GlobalSelector::is_done`].
    pub fn finish(self) -> Result<GlobalSelection> {
        let Pass::Done(cut) = self.pass else {
            return Err(Error::out_of_range("passes over the scores", "too few", "three"));
        };
        let mut left = cut.map_or(0, |cut| cut.ties);
        let removed = self.layers.iter().map(|layer| {
            let ties = layer.tied.min(left);
            left -= ties;
            layer.below + ties
        });
        Ok(GlobalSelection { removed: removed.collect(), threshold: cut.map(|cut| cut.at) })
    }
}

impl Layer {
    fn wrong_length(&self, found: usize) -> Error {
        Error::Shape {
            what: format!("{} (scores)", self.id),
            found: vec![found],
            expected: vec![self.len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(layers: &[Vec<f32>], remove: usize, chunk: usize) -> GlobalSelection {
        let sizes = layers.iter().enumerate();
        let sizes = sizes.map(|(i, s)| (LayerId::new(format!("l{i}")), s.len())).collect();
        let mut selector = GlobalSelector::new(sizes, remove).unwrap();
        while !selector.is_done() {
            for (i, scores) in layers.iter().enumerate() {
                scores.chunks(chunk).for_each(|part| selector.feed(i, part).unwrap());
            }
            selector.end_pass().unwrap();
        }
        selector.finish().unwrap()
    }

    fn by_sorting(layers: &[Vec<f32>], remove: usize) -> GlobalSelection {
        let mut all: Vec<(f32, usize)> = Vec::new();
        for (i, scores) in layers.iter().enumerate() {
            all.extend(scores.iter().map(|s| (*s, i)));
        }
        all.sort_by(|a, b| a.0.partial_cmp(&b.0).unwrap());
        let mut removed = vec![0; layers.len()];
        all[..remove].iter().for_each(|(_, i)| removed[*i] += 1);
        let threshold = remove.checked_sub(1).map(|last| all[last].0);
        GlobalSelection { removed, threshold }
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_full_sort(
            layers in proptest::collection::vec(
                proptest::collection::vec(
                    prop_oneof![
                        (-4i8..4).prop_map(|v| f32::from(v) * 0.25),
                        any::<f32>().prop_filter("finite", |v| v.is_finite()),
                        (1.0f32..1.001),
                    ],
                    0..40,
                ),
                1..6,
            ),
            part in 0.0..=1.0f64,
            chunk in 1usize..50,
        ) {
            let total: usize = layers.iter().map(Vec::len).sum();
            let remove = (part * total as f64) as usize;
            prop_assert_eq!(run(&layers, remove, chunk), by_sorting(&layers, remove));
        }
    }

    #[test]
    fn large_chunks_count_as_small_ones() {
        let mut stream = crate::Seed::new(5).stream("large");
        let layers = vec![(0..PART + 77).map(|_| stream.uniform() as f32).collect::<Vec<f32>>()];
        let one = run(&layers, 500_000, usize::MAX);
        assert_eq!(one, run(&layers, 500_000, 10_007));
        assert_eq!(one, by_sorting(&layers, 500_000));
    }

    #[test]
    fn misuse_is_refused_by_name() {
        let sizes = || vec![(LayerId::new("a"), 2), (LayerId::new("b"), 1)];
        let text = |r: Result<()>| r.unwrap_err().to_string();
        assert!(GlobalSelector::new(sizes(), 4).is_err());
        let mut s = GlobalSelector::new(sizes(), 2).unwrap();
        assert_eq!(text(s.feed(2, &[])), "layer number is 2; expected below 2");
        s.feed(0, &[1.0]).unwrap();
        let nan = text(s.feed(0, &[f32::NAN]));
        assert_eq!(nan, "a (scores): element 1 is NaN; every value must be finite");
        assert_eq!(text(s.end_pass()), "a (scores): found shape [1], expected [2]");
        assert_eq!(text(s.feed(1, &[1.0; 2])), "b (scores): found shape [2], expected [1]");
        assert!(s.finish().is_err());
        let nothing = GlobalSelector::new(sizes(), 0).unwrap().finish().unwrap();
        assert_eq!(nothing, GlobalSelection { removed: vec![0, 0], threshold: None });
    }
}
