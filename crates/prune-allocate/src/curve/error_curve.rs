use prune_core::{Error, Result};

/// The measured error of one layer at some sparsities, straight lines in between.
///
/// Any error will do as long as the layers' errors add up to something worth minimising: the
/// squared error of the layer's output, or what the loss of the network rises by when this layer
/// alone is pruned.
///
/// ```
/// use prune_allocate::ErrorCurve;
/// let curve = ErrorCurve::new(vec![(0.0, 0.0), (0.5, 1.0), (0.9, 3.0)])?;
/// assert_eq!(curve.error_at(0.25), 0.5);
/// assert_eq!(curve.error_at(0.95), 3.0);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorCurve {
    points: Vec<(f64, f64)>,
}

impl ErrorCurve {
    /// A curve through these points `(sparsity, error)`: sparsities rise from 0 to at most 1.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for sparsities that do not; [`Error::NotFinite`] for an error that is
    /// NaN or infinite.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self> {
        if let Some(index) = points.iter().position(|p| !p.1.is_finite()) {
            return Err(Error::NotFinite {
                what: "error curve".to_string(),
                index,
                value: points[index].1.to_string(),
            });
        }
        let starts = points.first().is_some_and(|p| p.0 == 0.0);
        let rises = points.windows(2).all(|w| w[0].0 < w[1].0);
        if !(starts && rises && points.last().is_some_and(|p| p.0 <= 1.0)) {
            return Err(Error::OutOfRange {
                what: "sparsities of an error curve".to_string(),
                found: format!("{:?}", points.iter().map(|p| p.0).collect::<Vec<_>>()),
                expected: "numbers that rise from 0 to at most 1".to_string(),
            });
        }
        Ok(Self { points })
    }

    /// The points `(sparsity, error)`.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// The error at a sparsity; that of the last point beyond it.
    pub fn error_at(&self, sparsity: f64) -> f64 {
        let after = self.points.partition_point(|p| p.0 <= sparsity);
        let (Some(a), b) = (self.points.get(after.max(1) - 1), self.points.get(after)) else {
            return 0.0;
        };
        match b {
            Some(b) if after > 0 => a.1 + (b.1 - a.1) * ((sparsity - a.0) / (b.0 - a.0)),
            _ => a.1,
        }
    }

    /// The curve up to `sparsity`, where a point is added.
    pub(super) fn up_to(&self, sparsity: f64) -> Vec<(f64, f64)> {
        let mut points: Vec<_> =
            self.points.iter().copied().filter(|p| p.0 < sparsity || p.0 == 0.0).collect();
        let end = self.points.last().map_or(0.0, |p| p.0.min(sparsity));
        if points.last().is_some_and(|p| p.0 < end) {
            points.push((end, self.error_at(end)));
        }
        points
    }
}

/// The lower convex hull of points with rising first coordinates.
pub(crate) fn lower_hull(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut hull: Vec<(f64, f64)> = Vec::with_capacity(points.len());
    for &p in points {
        while let [.., a, b] = hull[..] {
            // b is on or above the line from a to p.
            if (b.1 - a.1) * (p.0 - a.0) < (p.1 - a.1) * (b.0 - a.0) {
                break;
            }
            hull.pop();
        }
        hull.push(p);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_hull_drops_points_above_it() {
        let points = [(0.0, 0.0), (1.0, 5.0), (2.0, 1.0), (3.0, 2.0), (4.0, 3.0)];
        assert_eq!(lower_hull(&points), [(0.0, 0.0), (2.0, 1.0), (4.0, 3.0)]);
        assert!(lower_hull(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_hull_is_convex_below_the_points_and_through_the_ends(
            ys in proptest::collection::vec(-5.0f64..5.0, 1..12),
        ) {
            let points: Vec<_> = ys.iter().enumerate().map(|(x, &y)| (x as f64, y)).collect();
            let hull = lower_hull(&points);
            prop_assert_eq!(hull[0], points[0]);
            prop_assert_eq!(hull.last(), points.last());
            let slopes: Vec<_> =
                hull.windows(2).map(|w| (w[1].1 - w[0].1) / (w[1].0 - w[0].0)).collect();
            prop_assert!(slopes.windows(2).all(|s| s[0] < s[1]));
            for w in hull.windows(2) {
                for p in points.iter().filter(|p| w[0].0 <= p.0 && p.0 <= w[1].0) {
                    let line = w[0].1 + (w[1].1 - w[0].1) * (p.0 - w[0].0) / (w[1].0 - w[0].0);
                    prop_assert!(line <= p.1 + 1e-9);
                }
            }
        }
    }
}
