use prune_core::{Error, Result};

use super::out_of_range;

/// The cluster of each point, `None` for noise: density-based clustering as scikit-learn does it.
///
/// A point is a core point when `min_points` points, itself included, lie within `eps` (Euclidean,
/// inclusive). Clusters are numbered in the order of their first core point; a border point joins
/// the first cluster that reaches it. O(n² · dimensions).
///
/// # Errors
/// [`Error::OutOfRange`] for a negative `eps` or no `min_points`; [`Error::Shape`] for points of
/// different dimensions; [`Error::NotFinite`].
///
/// Source: Ester et al., "A density-based algorithm for discovering clusters", 1996.
///
/// ```
/// use prune_quant::kv::dbscan;
/// let points = [vec![0.0], vec![0.1], vec![5.0]];
/// assert_eq!(dbscan(&points, 0.2, 2)?, [Some(0), Some(0), None]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn dbscan(points: &[Vec<f64>], eps: f64, min_points: usize) -> Result<Vec<Option<usize>>> {
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(out_of_range("DBSCAN eps", eps, "finite and at least 0"));
    }
    if min_points == 0 {
        return Err(out_of_range("DBSCAN min_points", min_points, "at least 1"));
    }
    let dimensions = points.first().map_or(0, Vec::len);
    for (index, point) in points.iter().enumerate() {
        if point.len() != dimensions {
            return Err(Error::Shape {
                what: format!("DBSCAN point {index}"),
                found: vec![point.len()],
                expected: vec![dimensions],
            });
        }
        if let Some(x) = point.iter().find(|x| !x.is_finite()) {
            let what = "DBSCAN points".to_string();
            return Err(Error::NotFinite { what, index, value: x.to_string() });
        }
    }
    let near = |a: &[f64], b: &[f64]| distance(a, b) <= eps;
    let neighbours: Vec<Vec<usize>> = points
        .iter()
        .map(|p| (0..points.len()).filter(|i| near(p, &points[*i])).collect())
        .collect();
    let core = |i: usize| neighbours[i].len() >= min_points;
    let mut labels = vec![None; points.len()];
    let mut clusters = 0;
    for seed in 0..points.len() {
        if labels[seed].is_some() || !core(seed) {
            continue;
        }
        let mut reached = vec![seed];
        while let Some(point) = reached.pop() {
            if labels[point].is_some() {
                continue;
            }
            labels[point] = Some(clusters);
            if core(point) {
                reached.extend(neighbours[point].iter().filter(|i| labels[**i].is_none()));
            }
        }
        clusters += 1;
    }
    Ok(labels)
}
/// Euclidean.
pub(super) fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}
