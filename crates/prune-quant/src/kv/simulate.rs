use ndarray::{Array2, ArrayView2, ArrayViewMut1, Axis, s};
use prune_core::{Error, Result};

use super::range::restore;
use super::{Grouping, KvBits, KvFloat, KvQuantizer, StoredFloat, out_of_range};

/// What happens to tokens that do not fill a group by channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LastGroup {
    /// They are a shorter group of their own, with their own scale.
    #[default]
    Short,
    /// The groups run on into the next channel, as in KVTuner's released code.
    Straddling,
}

/// The `(tokens, channels)` keys or values of one head as they come back from a cache of `bits`:
/// quantised and restored.
///
/// The whole matrix is quantised, without a residual window. A last group that is not full has its
/// own range. O(tokens · channels), one copy.
///
/// # Errors
/// [`Error::NotFinite`]; [`Error::OutOfRange`] for a group of 0, or a value beyond
/// [`StoredFloat::limit`].
///
/// Source: KVTuner (ICML 2025), section 3; KIVI (ICML 2024).
///
/// ```
/// use ndarray::array;
/// use prune_quant::kv::{Grouping, KvBits, KvQuantizer, LastGroup, simulate};
/// // An outlier channel spoils a group by token, not one by channel.
/// let keys = array![[0.0f64, 9.0], [0.5, 9.5], [1.0, 9.2]];
/// let two = KvBits::Two;
/// let by = |grouping| {
///     simulate("keys", keys.view(), two, grouping, KvQuantizer::Full, LastGroup::Short)
/// };
/// let token = by(Grouping::PerToken { channels: None })?;
/// let channel = by(Grouping::PerChannel { tokens: 3 })?;
/// assert_eq!(token.column(0).to_vec(), [0.0, 0.5, 1.0]);
/// assert_eq!(channel.column(1).to_vec()[..2], [9.0, 9.5]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn simulate<T: KvFloat>(
    what: &str,
    numbers: ArrayView2<'_, T>,
    bits: KvBits,
    grouping: Grouping,
    quantizer: KvQuantizer,
    last: LastGroup,
) -> Result<Array2<T>> {
    let limit = match quantizer {
        KvQuantizer::Half => f64::from(StoredFloat::F16.limit()),
        _ if bits == KvBits::Sixteen => f64::from(StoredFloat::F16.limit()),
        _ => f64::from(StoredFloat::F32.limit()),
    };
    for (index, x) in numbers.iter().enumerate() {
        let x: f64 = (*x).into();
        if !x.is_finite() {
            return Err(Error::NotFinite { what: what.to_string(), index, value: x.to_string() });
        }
        if x.abs() > limit {
            return Err(out_of_range(format!("{what}[{index}]"), x, format!("within ±{limit}")));
        }
    }
    let mut out = numbers.to_owned();
    let (tokens, channels) = out.dim();
    match grouping {
        Grouping::PerToken { channels: group } => {
            let group = positive(what, group.unwrap_or(channels.max(1)))?;
            for mut row in out.outer_iter_mut() {
                for first in (0..channels).step_by(group) {
                    let end = (first + group).min(channels);
                    in_place(row.slice_mut(s![first..end]), bits, quantizer);
                }
            }
        }
        Grouping::PerChannel { tokens: group } => {
            let group = positive(what, group)?;
            if last == LastGroup::Straddling {
                return straddling(out, group, bits, quantizer);
            }
            for mut column in out.axis_iter_mut(Axis(1)) {
                for first in (0..tokens).step_by(group) {
                    let end = (first + group).min(tokens);
                    in_place(column.slice_mut(s![first..end]), bits, quantizer);
                }
            }
        }
    }
    Ok(out)
}

fn positive(what: &str, group: usize) -> Result<usize> {
    if group == 0 {
        Err(out_of_range(format!("group of {what}"), 0, "at least 1"))
    } else {
        Ok(group)
    }
}

fn in_place<T: KvFloat>(mut group: ArrayViewMut1<'_, T>, bits: KvBits, quantizer: KvQuantizer) {
    let mut copy = group.to_vec();
    restore(&mut copy, bits, quantizer);
    group.iter_mut().zip(copy).for_each(|(x, y)| *x = y);
}

/// Groups of consecutive numbers of the transposed matrix, whichever channel they fall in.
fn straddling<T: KvFloat>(
    numbers: Array2<T>,
    group: usize,
    bits: KvBits,
    quantizer: KvQuantizer,
) -> Result<Array2<T>> {
    let (tokens, channels) = numbers.dim();
    let mut flat: Vec<T> = numbers.t().iter().copied().collect();
    flat.chunks_mut(group).for_each(|group| restore(group, bits, quantizer));
    let back = Array2::from_shape_vec((channels, tokens), flat)
        .map_err(|e| Error::external("straddling groups", e))?;
    Ok(back.reversed_axes())
}
