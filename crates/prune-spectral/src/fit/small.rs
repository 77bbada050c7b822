use super::search::{Best, search};
use super::tail::Tail;

/// Below this many eigenvalues WeightWatcher corrects for bias.
pub(super) const LIMIT: usize = 20;
/// The shortest tail that it then considers.
const SHORTEST: usize = 8;

/// The tail of eight eigenvalues or more with the least D, with the exponent 1 + (n − 1) / Σ; the
/// whole spectrum when it has fewer.
///
/// WeightWatcher documents another criterion, D − 0.868 / √n, but what it returns is the tail of
/// least D: the choice is made twice, and the second overwrites the first.
pub(super) fn fit(tail: &Tail<'_>) -> Option<Best> {
    let end = (tail.len() + 1).saturating_sub(SHORTEST).max(1);
    search(tail, 0..end, |start| {
        let n = (tail.len() - start) as f64;
        let sum = tail.log_sum(start).filter(|s| *s > 1e-12)?;
        let alpha = 1.0 + (n - 1.0) / sum;
        alpha.is_finite().then_some(alpha)
    })
}
