use prune_core::{Error, Result};

use super::BlockCurve;
use super::smoothing::slopes;

/// Half the width of the stencil that the released code takes for β.
const HALF_WIDTH: usize = 10;

/// The weight β at which power counts as much as the loss: the mean over layers of the steepest
/// rise of the loss, over the mean of the steepest fall of the power, both against the part of
/// the layer's blocks that goes.
///
/// `power[l][k]` is what layer `l` draws with its first `k` blocks removed. The released code's
/// choice (its command line can only switch the term on); it measures power by blocks times
/// `in_features / 16`. 0 where no layer draws anything.
///
/// # Errors
/// [`Error::Shape`] when there is not one power for each loss; [`Error::NotFinite`].
///
/// ```
/// use prune_allocate::{BlockCurve, balanced_beta};
/// use prune_core::LayerId;
/// let curve = BlockCurve::new(LayerId::new("a"), vec![0.0, 1.0, 3.0], vec![2, 1, 0])?;
/// // The second block raises the loss by 2, each lowers the power by 4.
/// assert_eq!(balanced_beta(&[curve], &[vec![8.0, 4.0, 0.0]])?, 0.5);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn balanced_beta(curves: &[BlockCurve], power: &[Vec<f64>]) -> Result<f64> {
    if power.len() != curves.len() {
        return Err(Error::Shape {
            what: "power of the layers".to_string(),
            found: vec![power.len()],
            expected: vec![curves.len()],
        });
    }
    let (mut rise, mut fall) = (0.0, 0.0);
    for (curve, power) in curves.iter().zip(power) {
        if power.len() != curve.losses().len() {
            return Err(Error::Shape {
                what: format!("{} (power by removed blocks)", curve.layer()),
                found: vec![power.len()],
                expected: vec![curve.losses().len()],
            });
        }
        if let Some(index) = power.iter().position(|p| !p.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("{} (power by removed blocks)", curve.layer()),
                index,
                value: power[index].to_string(),
            });
        }
        let steepest = |values: &mut dyn Iterator<Item = f64>| {
            let blocks = curve.blocks().max(1) as f64;
            let points: Vec<_> = values.enumerate().map(|(k, v)| (k as f64 / blocks, v)).collect();
            slopes(&points, HALF_WIDTH).into_iter().fold(0.0, f64::max)
        };
        rise += steepest(&mut curve.losses().iter().copied());
        fall += steepest(&mut power.iter().map(|p| -p));
    }
    Ok(if fall > 0.0 { rise / fall } else { 0.0 })
}
