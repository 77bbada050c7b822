use super::options::MIN_EIGENVALUES;
use crate::{PowerLaw, Result};

/// WeightWatcher stops at this exponent: the tail is heavy without clipping.
const HEAVY: f64 = 2.0;

/// The fit without the fewest of the largest eigenvalues, 2 to `max_fingers − 1`, that lowers α by
/// more than `threshold`; the fit of all when none does.
pub(super) fn fit(
    values: &[f64],
    max_fingers: usize,
    threshold: f64,
    fit: impl Fn(&[f64]) -> Result<PowerLaw>,
) -> Result<PowerLaw> {
    let first = fit(values)?;
    for clipped in 2..max_fingers {
        if values.len() < clipped + MIN_EIGENVALUES {
            break;
        }
        let next = fit(&values[..values.len() - clipped])?;
        if next.alpha + threshold < first.alpha {
            return Ok(PowerLaw { clipped, raw_alpha: first.alpha, ..next });
        }
        if next.alpha <= HEAVY {
            break;
        }
    }
    Ok(first)
}
