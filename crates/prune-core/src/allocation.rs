use std::collections::HashMap;

use crate::{Error, LayerId, LayerInfo, Result};

/// What a fraction times a count may be short of a whole number and still count as it: 1 − 0.9 is
/// a little less than 0.1, and a tenth of 1000 weights is still 100.
const WHOLE: f64 = 1e-9;

/// How much of all layers together may stay, and the least that each layer keeps.
///
/// ```
/// use prune_core::Budget;
/// let budget = Budget::sparsity(0.9)?;
/// assert_eq!((budget.keep_total(1000), budget.remove_total(1000)), (100, 900));
/// // No layer loses more than 99 %, and none loses everything.
/// assert_eq!((budget.min_keep(5000), budget.min_keep(7), budget.min_keep(0)), (50, 1, 0));
/// let strict = budget.with_max_layer_sparsity(0.95)?.with_min_keep(16);
/// assert_eq!((strict.min_keep(5000), strict.min_keep(7)), (250, 7));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    sparsity: f64,
    max_layer_sparsity: f64,
    min_keep: usize,
}

impl Budget {
    /// The fraction of all weights to remove, `0 <= sparsity < 1`.
    ///
    /// No layer loses more than 99 % of its weights (no such limit where the budget itself is
    /// above that), and every layer keeps at least one.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn sparsity(sparsity: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&sparsity) {
            return Err(Error::out_of_range("sparsity", sparsity, "0 <= sparsity < 1"));
        }
        let max_layer_sparsity = if sparsity <= 0.99 { 0.99 } else { 1.0 };
        Ok(Self { sparsity, max_layer_sparsity, min_keep: 1 })
    }

    /// The same budget where no layer loses more than the fraction `cap` of its weights, to within
    /// one weight.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless the sparsity of the budget `<= cap <= 1`.
    pub fn with_max_layer_sparsity(self, cap: f64) -> Result<Self> {
        if !(self.sparsity..=1.0).contains(&cap) {
            return Err(Error::out_of_range(
                "max layer sparsity",
                cap,
                format!("{} (the sparsity of the budget) to 1", self.sparsity),
            ));
        }
        Ok(Self { max_layer_sparsity: cap, ..self })
    }

    /// The same budget where every layer keeps at least `weights` weights, or all it has.
    #[must_use]
    pub fn with_min_keep(self, weights: usize) -> Self {
        Self { min_keep: weights, ..self }
    }

    /// The fraction of all weights that stays: 1 − sparsity.
    pub fn density(&self) -> f64 {
        1.0 - self.sparsity
    }

    /// The fraction of all weights that goes.
    pub fn target_sparsity(&self) -> f64 {
        self.sparsity
    }

    /// The fraction of its weights that a layer loses at most.
    pub fn max_layer_sparsity(&self) -> f64 {
        self.max_layer_sparsity
    }

    /// How many of `total` weights go: ⌊sparsity · total⌋.
    pub fn remove_total(&self, total: usize) -> usize {
        ((self.sparsity * total as f64 + WHOLE) as usize).min(total)
    }

    /// How many of `total` weights stay.
    pub fn keep_total(&self, total: usize) -> usize {
        total - self.remove_total(total)
    }

    /// How many weights a layer of `weights` weights keeps at least.
    pub fn min_keep(&self, weights: usize) -> usize {
        // Rounded down, so that these minima never exceed a budget at the cap.
        let by_cap = ((1.0 - self.max_layer_sparsity) * weights as f64 + WHOLE) as usize;
        self.min_keep.max(by_cap).min(weights)
    }

    /// Whole kept counts near the real-valued `targets` for layers of `sizes` weights; they sum to
    /// [`Budget::keep_total`] of all weights, and each is at least its [`Budget::min_keep`]. See
    /// [`round_to_budget`].
    ///
    /// # Errors
    /// As [`round_to_budget`].
    ///
    /// ```
    /// use prune_core::Budget;
    /// let kept = Budget::sparsity(0.5)?.round(&[2.5, 2.5, 1.0], &[5, 5, 2])?;
    /// assert_eq!(kept, [3, 2, 1]);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn round(&self, targets: &[f64], sizes: &[usize]) -> Result<Vec<usize>> {
        let floors: Vec<usize> = sizes.iter().map(|&n| self.min_keep(n)).collect();
        round_to_budget(targets, sizes, self.keep_total(checked_sum("sizes", sizes)?), &floors)
    }
}

/// Whole counts near the real-valued `targets` that sum to exactly `keep_total`.
///
/// Every count is at least `min_keep[l]` and at most `sizes[l]`. Each starts at its target rounded
/// down (a target short of a whole number by 1e-9 is that number); what is missing is given, one
/// by one, to the layers with the largest fractions, ties to the lower index; what is too much, for
/// lack of room at the minima, is taken from those with the smallest. When the targets sum to
/// `keep_total` and no minimum binds, every count is within one of its target. All allocators of
/// weights round here. O(L log L) then.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; [`Error::NotFinite`] with the index of the layer;
/// [`Error::OutOfRange`] for a minimum above its size; [`Error::Infeasible`] when the minima exceed
/// `keep_total` or `keep_total` exceeds the sizes.
///
/// ```
/// use prune_core::round_to_budget;
/// assert_eq!(round_to_budget(&[1.6, 2.6, 0.8], &[4, 4, 4], 5, &[0, 0, 0])?, [2, 2, 1]);
/// assert_eq!(round_to_budget(&[0.0, 5.0], &[4, 8], 5, &[1, 1])?, [1, 4]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn round_to_budget(
    targets: &[f64],
    sizes: &[usize],
    keep_total: usize,
    min_keep: &[usize],
) -> Result<Vec<usize>> {
    same_length("targets", targets.len(), sizes.len())?;
    same_length("min_keep", min_keep.len(), sizes.len())?;
    finite("targets", targets)?;
    if let Some(l) = (0..sizes.len()).find(|&l| min_keep[l] > sizes[l]) {
        return Err(Error::out_of_range(
            format!("min_keep of layer {l}"),
            min_keep[l],
            format!("at most its size, {}", sizes[l]),
        ));
    }
    let (least, most) = (checked_sum("min_keep", min_keep)?, checked_sum("sizes", sizes)?);
    if keep_total < least || keep_total > most {
        return Err(Error::Infeasible(format!(
            "{keep_total} weights are to be kept, but the layers keep at least {least} and at most \
             {most}"
        )));
    }
    // A float beyond usize converts to its maximum.
    let mut kept: Vec<usize> = (0..sizes.len())
        .map(|l| ((targets[l] + WHOLE).floor() as usize).clamp(min_keep[l], sizes[l]))
        .collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    let fraction = |l: usize| targets[l] - kept[l] as f64;
    // Stable: ties stay in the order of the layers.
    order.sort_by(|&a, &b| fraction(b).total_cmp(&fraction(a)));
    let sum: usize = kept.iter().sum();
    if sum <= keep_total {
        deal(keep_total - sum, &order, |l, share| {
            let given = share.min(sizes[l] - kept[l]);
            kept[l] += given;
            given
        });
    } else {
        order.reverse();
        deal(sum - keep_total, &order, |l, share| {
            let taken = share.min(kept[l] - min_keep[l]);
            kept[l] -= taken;
            taken
        });
    }
    Ok(kept)
}

/// Deals `rest` out in rounds, in `order`: one each while fewer are left than there are layers,
/// equal shares before. `take` is offered a share and says how much it took.
fn deal(mut rest: usize, order: &[usize], mut take: impl FnMut(usize, usize) -> usize) {
    let mut open = order.to_vec();
    while rest > 0 && !open.is_empty() {
        let share = (rest / open.len()).max(1);
        open.retain(|&l| {
            let offered = share.min(rest);
            let taken = take(l, offered);
            rest -= taken;
            // Nothing left to offer says nothing about the room of a layer.
            taken == offered
        });
    }
}

/// Sparsities proportional to `base`, none above `cap`, whose mean weighted by `sizes` is exactly
/// `sparsity`.
///
/// Layers that proportionality would push beyond `cap` stay there and the others take what is left
/// in the same proportions; a layer with a larger base never gets a smaller sparsity. O(L log L).
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; [`Error::NotFinite`]; [`Error::OutOfRange`] for a
/// negative base or `cap` outside 0..=1; [`Error::Infeasible`] when `sparsity` exceeds `cap`, or
/// layers of base 0 would have to lose weights.
///
/// ```
/// use prune_core::scale_with_cap;
/// let s = scale_with_cap(&[0.7, 0.7, 0.7, 1.3], &[10, 10, 10, 10], 0.8, 1.0)?;
/// assert_eq!(s[3], 1.0);
/// assert!((s[0] - 2.2 / 3.0).abs() < 1e-12);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn scale_with_cap(base: &[f64], sizes: &[usize], sparsity: f64, cap: f64) -> Result<Vec<f64>> {
    same_length("base", base.len(), sizes.len())?;
    finite("base", base)?;
    if let Some(l) = base.iter().position(|b| *b < 0.0) {
        return Err(Error::out_of_range(format!("base of layer {l}"), base[l], "at least 0"));
    }
    if !(0.0..=1.0).contains(&cap) {
        return Err(Error::out_of_range("cap", cap, "0 to 1"));
    }
    if !(0.0..=cap).contains(&sparsity) {
        return Err(Error::Infeasible(format!(
            "a sparsity of {sparsity} with no layer above {cap}"
        )));
    }
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|&a, &b| base[b].total_cmp(&base[a]));
    let size = |l: usize| sizes[l] as f64;
    // Suffix sums, so that the last layers are not what rounding leaves of the whole.
    let mut free = vec![0.0; order.len() + 1];
    for (i, &l) in order.iter().enumerate().rev() {
        free[i] = free[i + 1] + size(l) * base[l];
    }
    let mut remove = sparsity * order.iter().map(|&l| size(l)).sum::<f64>();
    let mut scale = 0.0;
    let mut fixed = 0;
    for (i, &l) in order.iter().enumerate() {
        scale = if free[i] > 0.0 { remove / free[i] } else { 0.0 };
        if scale * base[l] <= cap {
            break;
        }
        remove -= cap * size(l);
        fixed = i + 1;
    }
    let reached = if fixed == order.len() { 0.0 } else { scale * free[fixed] };
    if remove - reached > WHOLE * remove.max(1.0) {
        return Err(Error::Infeasible(format!(
            "a sparsity of {sparsity} with no layer above {cap}, where base 0 loses nothing"
        )));
    }
    let mut sparsities = vec![cap; order.len()];
    order[fixed..].iter().for_each(|&l| sparsities[l] = (scale * base[l]).clamp(0.0, cap));
    Ok(sparsities)
}

/// What each layer was given, in the order of the layers: kept weights, bits, channels, a fraction.
///
/// ```
/// use prune_core::{Allocation, LayerId, LayerInfo};
///
/// let layers = [LayerInfo::linear("a", 2, 5), LayerInfo::linear("b", 5, 6)];
/// let kept = Allocation::new(vec![(layers[0].id.clone(), 4), (layers[1].id.clone(), 15)])?;
/// assert_eq!(kept.get(&LayerId::new("b")), Some(&15));
/// assert_eq!(kept.total(), 19);
/// let sparsities = kept.sparsities(&layers)?;
/// assert_eq!(sparsities.get(&layers[0].id), Some(&0.6));
/// assert_eq!(sparsities.get(&layers[1].id), Some(&0.5));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation<S> {
    shares: Vec<(LayerId, S)>,
    places: HashMap<LayerId, usize>,
}

impl<S> Allocation<S> {
    /// An allocation of these shares.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when a layer stands twice.
    pub fn new(shares: Vec<(LayerId, S)>) -> Result<Self> {
        let mut places = HashMap::with_capacity(shares.len());
        for (i, (id, _)) in shares.iter().enumerate() {
            if places.insert(id.clone(), i).is_some() {
                return Err(Error::out_of_range(
                    "allocation",
                    format!("the layer `{id}` twice"),
                    "every layer once",
                ));
            }
        }
        Ok(Self { shares, places })
    }

    /// The share of a layer; `None` for a layer that was given none.
    pub fn get(&self, layer: &LayerId) -> Option<&S> {
        self.places.get(layer).map(|&i| &self.shares[i].1)
    }

    /// Layers and shares, in the order of the layers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&LayerId, &S)> {
        self.shares.iter().map(|(id, s)| (id, s))
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.shares.len()
    }

    /// Whether there is no layer.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// The sum of all shares.
    pub fn total(&self) -> S
    where
        S: Copy + std::iter::Sum<S>,
    {
        self.shares.iter().map(|(_, s)| *s).sum()
    }

    /// The same layers with other shares.
    pub fn map<T>(&self, mut share: impl FnMut(&LayerId, &S) -> T) -> Allocation<T> {
        let shares = self.shares.iter().map(|(id, s)| (id.clone(), share(id, s))).collect();
        Allocation { shares, places: self.places.clone() }
    }
}

impl<S> IntoIterator for Allocation<S> {
    type Item = (LayerId, S);
    type IntoIter = std::vec::IntoIter<(LayerId, S)>;

    fn into_iter(self) -> Self::IntoIter {
        self.shares.into_iter()
    }
}

impl Allocation<usize> {
    /// The fraction that each layer loses when the shares are kept weights; 0 for a layer without
    /// weights. `layers` may stand in any order and hold more layers.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] naming a layer that `layers` lacks, or that is to keep more weights
    /// than it has.
    pub fn sparsities(&self, layers: &[LayerInfo]) -> Result<Allocation<f64>> {
        let sizes: HashMap<&LayerId, usize> = layers.iter().map(|l| (&l.id, l.numel())).collect();
        let mut shares = Vec::with_capacity(self.len());
        for (id, &kept) in self.iter() {
            let size = sizes.get(id).copied().ok_or_else(|| {
                Error::out_of_range("allocation", format!("`{id}`"), "a layer of the network")
            })?;
            if kept > size {
                return Err(Error::out_of_range(
                    format!("kept weights of `{id}`"),
                    kept,
                    format!("at most its size, {size}"),
                ));
            }
            let lost = if size == 0 { 0.0 } else { (size - kept) as f64 / size as f64 };
            shares.push((id.clone(), lost));
        }
        Ok(Allocation { shares, places: self.places.clone() })
    }
}

fn same_length(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { what: what.to_string(), found: vec![found], expected: vec![expected] })
}

fn finite(what: &str, values: &[f64]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite {
            what: what.to_string(),
            index,
            value: values[index].to_string(),
        }),
    }
}

fn checked_sum(what: &str, counts: &[usize]) -> Result<usize> {
    counts.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)).ok_or_else(|| {
        Error::out_of_range(format!("the sum of {what}"), "an overflow", "at most 2^64 - 1")
    })
}
