use ndarray::ArrayView2;

use crate::{Error, Result, check_finite};

/// Statistics of each input channel over calibration tokens: count, mean, sum of squared
/// deviations (M2), sum of squares, sum and largest of the absolute values, all in f64.
///
/// Streaming and mergeable: chunks are summed about their own mean and joined by Chan's update, so
/// a large mean does not eat the variance. Merging the same parts in the same order gives the same
/// bits.
///
/// ```
/// use ndarray::array;
/// use prune_core::ColumnStats;
///
/// let mut stats = ColumnStats::new(2);
/// stats.update("x", array![[3.0, 1.0], [4.0, 1.0]].view())?;
/// assert_eq!(stats.count(), 2);
/// assert_eq!(stats.mean(), [3.5, 1.0]);
/// assert_eq!(stats.squared_norm(), [25.0, 2.0]);
/// assert_eq!(stats.variance(), [0.25, 0.0]);
/// assert_eq!((stats.abs_sum(), stats.abs_max()), (&[7.0, 2.0][..], &[4.0, 1.0][..]));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnStats {
    count: u64,
    mean: Vec<f64>,
    m2: Vec<f64>,
    squared_norm: Vec<f64>,
    abs_sum: Vec<f64>,
    abs_max: Vec<f64>,
}

impl ColumnStats {
    /// No tokens yet, `channels` input channels.
    pub fn new(channels: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; channels],
            m2: vec![0.0; channels],
            squared_norm: vec![0.0; channels],
            abs_sum: vec![0.0; channels],
            abs_max: vec![0.0; channels],
        }
    }

    /// Rebuilds statistics from their parts, as a file or another framework gives them.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ; [`Error::NotFinite`]; [`Error::OutOfRange`] for a
    /// negative sum or maximum of squares or absolute values.
    pub fn from_parts(
        count: u64,
        mean: Vec<f64>,
        m2: Vec<f64>,
        squared_norm: Vec<f64>,
        abs_sum: Vec<f64>,
        abs_max: Vec<f64>,
    ) -> Result<Self> {
        let positive = [
            ("m2", &m2),
            ("squared_norm", &squared_norm),
            ("abs_sum", &abs_sum),
            ("abs_max", &abs_max),
        ];
        for (what, v) in positive {
            if v.len() != mean.len() {
                return Err(Error::Shape {
                    what: format!("column statistics ({what})"),
                    found: vec![v.len()],
                    expected: vec![mean.len()],
                });
            }
            if let Some(bad) = v.iter().find(|x| **x < 0.0) {
                return Err(Error::out_of_range(
                    format!("column statistics ({what})"),
                    bad,
                    "at least 0",
                ));
            }
        }
        for (what, v) in [("mean", &mean)].into_iter().chain(positive) {
            if let Some(index) = v.iter().position(|x| !x.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("column statistics ({what})"),
                    index,
                    value: v[index].to_string(),
                });
            }
        }
        Ok(Self { count, mean, m2, squared_norm, abs_sum, abs_max })
    }

    /// Adds the rows of `inputs` (`tokens x channels`). O(tokens · channels), no allocation that
    /// grows with tokens.
    ///
    /// # Errors
    /// [`Error::Shape`] when the channels differ; [`Error::NotFinite`] naming `what`.
    pub fn update(&mut self, what: &str, inputs: ArrayView2<'_, f32>) -> Result<()> {
        let n = self.channels();
        if inputs.ncols() != n {
            return Err(Error::Shape {
                what: what.to_string(),
                found: vec![inputs.nrows(), inputs.ncols()],
                expected: vec![inputs.nrows(), n],
            });
        }
        if inputs.is_empty() {
            self.count += inputs.nrows() as u64;
            return Ok(());
        }
        let inputs = inputs.as_standard_layout();
        let Some(values) = inputs.as_slice() else { return Ok(()) };
        check_finite(what, values)?;
        let mut part = ColumnStats::new(n);
        part.count = inputs.nrows() as u64;
        for row in values.chunks_exact(n) {
            for ((sum, squares), x) in part.mean.iter_mut().zip(&mut part.squared_norm).zip(row) {
                let x = f64::from(*x);
                *sum += x;
                *squares += x * x;
            }
            for ((sum, max), x) in part.abs_sum.iter_mut().zip(&mut part.abs_max).zip(row) {
                let x = f64::from(x.abs());
                *sum += x;
                *max = max.max(x);
            }
        }
        let scale = 1.0 / part.count as f64;
        part.mean.iter_mut().for_each(|m| *m *= scale);
        for row in values.chunks_exact(n) {
            for ((m2, mean), x) in part.m2.iter_mut().zip(&part.mean).zip(row) {
                let d = f64::from(*x) - mean;
                *m2 += d * d;
            }
        }
        self.merge(&part)
    }

    /// Adds what `other` saw.
    ///
    /// # Errors
    /// [`Error::Shape`] when the channels differ.
    pub fn merge(&mut self, other: &ColumnStats) -> Result<()> {
        if self.channels() != other.channels() {
            return Err(Error::Shape {
                what: "column statistics".to_string(),
                found: vec![other.channels()],
                expected: vec![self.channels()],
            });
        }
        if other.count == 0 {
            return Ok(());
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let total = a + b;
        for j in 0..self.channels() {
            let delta = other.mean[j] - self.mean[j];
            self.mean[j] += delta * (b / total);
            self.m2[j] += other.m2[j] + delta * delta * (a * b / total);
            self.squared_norm[j] += other.squared_norm[j];
            self.abs_sum[j] += other.abs_sum[j];
            self.abs_max[j] = self.abs_max[j].max(other.abs_max[j]);
        }
        self.count += other.count;
        Ok(())
    }

    /// Tokens seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Input channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Mean of each channel.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Sum of squared deviations from the mean, each channel.
    pub fn m2(&self) -> &[f64] {
        &self.m2
    }

    /// Sum of squares of each channel: `‖X_j‖²` over all tokens. Wanda's `scaler_row` is this
    /// divided by the number of sequences, SparseGPT's diagonal twice that.
    pub fn squared_norm(&self) -> &[f64] {
        &self.squared_norm
    }

    /// Sum of absolute values of each channel. AWQ weighs channels by this divided by the count.
    pub fn abs_sum(&self) -> &[f64] {
        &self.abs_sum
    }

    /// Largest absolute value of each channel, which SmoothQuant evens out.
    pub fn abs_max(&self) -> &[f64] {
        &self.abs_max
    }

    /// Population variance of each channel; 0 before the first token.
    pub fn variance(&self) -> Vec<f64> {
        let scale = if self.count == 0 { 0.0 } else { 1.0 / self.count as f64 };
        self.m2.iter().map(|m| m * scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::{Array2, s};
    use proptest::prelude::*;

    /// Fixture S of the reference oracle: `X[t,j] = sin(0.37 (t+1)(j+1)) + 0.5 cos(t+1)`.
    fn fixture() -> Array2<f32> {
        Array2::from_shape_fn((16, 8), |(t, j)| {
            let (t, j) = (t as f64 + 1.0, j as f64 + 1.0);
            ((0.37 * t * j).sin() + 0.5 * t.cos()) as f32
        })
    }

    #[test]
    fn column_statistics_match_the_reference() {
        let x = fixture();
        let mut stats = ColumnStats::new(8);
        stats.update("x", x.slice(s![..8, ..])).unwrap();
        stats.update("x", x.slice(s![8.., ..])).unwrap();
        // numpy, f64: sum of squares over two sequences, divided by 2.
        let scaler_row =
            [4.954373, 4.154426, 8.283296, 5.975242, 5.644371, 5.495017, 5.404863, 5.377972];
        for (got, want) in stats.squared_norm().iter().zip(scaler_row) {
            assert_relative_eq!(got / 2.0, want, epsilon = 2e-6);
        }
        let mean = [
            -0.039032, -0.039241, -0.039451, -0.039662, -0.039874, -0.040087, -0.040303, -0.040521,
        ];
        for (got, want) in stats.mean().iter().zip(mean) {
            assert_relative_eq!(*got, want, epsilon = 1e-6);
        }
    }

    #[test]
    fn a_large_mean_does_not_eat_the_variance() {
        let mut stats = ColumnStats::new(1);
        for i in 0..1000u32 {
            let x = 1.0e4 + (i % 2) as f32;
            stats.update("x", Array2::from_elem((1, 1), x).view()).unwrap();
        }
        assert_relative_eq!(stats.variance()[0], 0.25, epsilon = 1e-9);
    }

    #[test]
    fn not_finite_inputs_are_refused_and_leave_no_trace() {
        let mut stats = ColumnStats::new(2);
        let bad = ndarray::array![[1.0, f32::INFINITY]];
        assert!(matches!(stats.update("x", bad.view()), Err(Error::NotFinite { index: 1, .. })));
        assert_eq!(stats, ColumnStats::new(2));
    }

    proptest! {
        #[test]
        fn merging_parts_equals_one_pass(cut in 0usize..17) {
            let x = fixture();
            let mut whole = ColumnStats::new(8);
            whole.update("x", x.view()).unwrap();
            let mut left = ColumnStats::new(8);
            left.update("x", x.slice(s![..cut, ..])).unwrap();
            let mut right = ColumnStats::new(8);
            right.update("x", x.slice(s![cut.., ..])).unwrap();
            left.merge(&right).unwrap();
            prop_assert_eq!(left.count(), 16);
            for j in 0..8 {
                prop_assert!((left.mean()[j] - whole.mean()[j]).abs() < 1e-12);
                prop_assert!((left.m2()[j] - whole.m2()[j]).abs() < 1e-10);
                prop_assert!((left.squared_norm()[j] - whole.squared_norm()[j]).abs() < 1e-10);
            }
        }
    }
}
