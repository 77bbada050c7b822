use prune_core::{Error, Result};

/// The kept weights of each group as the released code computes them: rounds of proportional
/// additions, each rounded up, and an excess that is added to the fullest groups once more.
///
/// Where that code divides by a sum of scores of 0, the budget is refused.
pub(super) fn released_counts(
    scores: &[f64],
    weights: &[f64],
    keep: f64,
    cap: f64,
) -> Result<Vec<f64>> {
    let mut scores = scores.to_vec();
    let mut kept: Vec<f64> = weights.iter().map(|n| (n * (1.0 - cap)).ceil()).collect();
    while kept.iter().sum::<f64>() < keep {
        let total: f64 = scores.iter().sum();
        if total <= 0.0 {
            return Err(Error::Infeasible(
                "the released ECoFLaP code has no group of score above 0 left to fill".to_string(),
            ));
        }
        let rest = keep - kept.iter().sum::<f64>();
        for ((k, s), n) in kept.iter_mut().zip(&mut scores).zip(weights) {
            *k += (*s / total * rest).ceil();
            if *k >= *n {
                *s = 0.0;
            }
            *k = k.min(*n);
        }
        let mut excess = kept.iter().sum::<f64>() - keep;
        let mut fullest: Vec<usize> = (0..kept.len()).collect();
        fullest.sort_by(|&a, &b| kept[b].total_cmp(&kept[a]));
        for g in fullest {
            if excess <= 0.0 {
                break;
            }
            let above_floor = kept[g] - (weights[g] * (1.0 - cap)).floor();
            let more = excess.min(above_floor);
            kept[g] += more;
            excess -= more;
        }
    }
    Ok(kept)
}
