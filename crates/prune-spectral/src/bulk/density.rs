/// Density estimates of sorted values with the triangular kernel of half width `bandwidth`.
///
/// Prefix sums make each point O(log N).
pub(super) struct Density<'a> {
    sorted: &'a [f64],
    prefix: Vec<f64>,
    bandwidth: f64,
}

impl<'a> Density<'a> {
    pub(super) fn new(sorted: &'a [f64], bandwidth: f64) -> Self {
        let mut prefix = Vec::with_capacity(sorted.len() + 1);
        let mut sum = 0.0;
        prefix.push(sum);
        for v in sorted {
            sum += v;
            prefix.push(sum);
        }
        Self { sorted, prefix, bandwidth }
    }

    pub(super) fn at(&self, x: f64) -> f64 {
        let h = self.bandwidth;
        let from = self.sorted.partition_point(|v| *v <= x - h);
        let middle = self.sorted.partition_point(|v| *v <= x);
        let to = self.sorted.partition_point(|v| *v < x + h);
        let sum = |a: usize, b: usize| self.prefix[b] - self.prefix[a];
        let below = (middle - from) as f64 * (1.0 - x / h) + sum(from, middle) / h;
        let above = (to - middle) as f64 * (1.0 + x / h) - sum(middle, to) / h;
        (below + above).max(0.0) / (h * self.sorted.len() as f64)
    }
}
