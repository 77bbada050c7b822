use prune_core::{Error, Result};

/// The indices of the points that no other point beats, by falling cost.
///
/// A point stays when no other has at most its cost and at most its error, one of them less. Of
/// points that tie in both, the first stays. O(n²).
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; [`Error::NotFinite`].
///
/// ```
/// use prune_quant::kv::pareto_front;
/// let front = pareto_front(&[8.0, 6.0, 6.0, 4.0], &[0.1, 0.2, 0.05, 0.3])?;
/// assert_eq!(front, [2, 3]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn pareto_front(costs: &[f64], errors: &[f64]) -> Result<Vec<usize>> {
    if costs.len() != errors.len() {
        return Err(Error::Shape {
            what: "errors of a Pareto front".to_string(),
            found: vec![errors.len()],
            expected: vec![costs.len()],
        });
    }
    for (what, values) in [("costs", costs), ("errors", errors)] {
        if let Some((index, x)) = values.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("{what} of a Pareto front"),
                index,
                value: x.to_string(),
            });
        }
    }
    let beaten = |p: usize| {
        (0..costs.len()).any(|q| {
            let no_worse = costs[q] <= costs[p] && errors[q] <= errors[p];
            let tie = costs[q] == costs[p] && errors[q] == errors[p];
            no_worse && (!tie || q < p)
        })
    };
    let mut front: Vec<usize> = (0..costs.len()).filter(|p| !beaten(*p)).collect();
    front.sort_by(|a, b| costs[*b].total_cmp(&costs[*a]).then(a.cmp(b)));
    Ok(front)
}
