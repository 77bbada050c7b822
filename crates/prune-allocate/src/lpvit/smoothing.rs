//! What the released code does to a curve before it looks at its slopes.

/// The moving average that TensorBoard draws: `last ← w · last + (1 − w) · y`, divided by
/// `1 − w^(i+1)` so that it does not start at 0.
pub(super) fn smooth(values: &[f64], weight: f64) -> Vec<f64> {
    let (mut last, mut left) = (0.0, 1.0);
    let mut next = |y: &f64| {
        last = weight * last + (1.0 - weight) * y;
        left *= weight;
        if weight == 1.0 { last } else { last / (1.0 - left) }
    };
    values.iter().map(&mut next).collect()
}

/// The slope at every point but the last, by a stencil of five points that are `half_width / 2`
/// apart; narrower near the ends, where it becomes a difference of two.
pub(super) fn slopes(points: &[(f64, f64)], half_width: usize) -> Vec<f64> {
    let n = points.len();
    let (x, y) = (|i: usize| points[i].0, |i: usize| points[i].1);
    (0..n.saturating_sub(1))
        .map(|i| {
            let h = half_width.min(i).min(n - 1 - i);
            match h {
                0 | 1 if i < 2 => (y(i + 1) - y(i)) / (x(i + 1) - x(i)),
                0 | 1 if n - i < 3 => (y(i + 1) - y(i - 1)) / (x(i + 1) - x(i - 1)),
                _ => {
                    let near = 8.0 * (y(i + h / 2) - y(i - h / 2));
                    (near - y(i + h) + y(i - h)) / (6.0 * (x(i + h) - x(i)))
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn smoothed_values_and_slopes_match_the_reference() {
        // The second-order curve of the 8 x 8 sine layer in blocks of 2 x 2, 20 steps (numpy).
        let raw = [
            0.000000000000,
            0.001875489150,
            0.000100264468,
            0.001194973462,
            0.000180211778,
            0.000180211778,
            0.003904605426,
            0.014464236710,
            0.003891804418,
            0.004058653351,
            0.004058653351,
            0.004069850820,
            0.002425024813,
            0.036638140185,
            0.002842211721,
            0.002842211721,
            0.037402641549,
            0.064675488840,
            0.006328615731,
            0.065367034443,
            0.065367034443,
        ];
        let smoothed = [
            0.0,
            0.001250326,
            0.000593148,
            0.000914122,
            0.000535329,
            0.000354952,
            0.002143754,
            0.008328153,
            0.006105638,
            0.005081145,
            0.004569649,
            0.004319689,
            0.003372241,
            0.020006206,
            0.011423947,
            0.007133014,
            0.022267943,
            0.043471797,
            0.024900171,
            0.045133622,
            0.055250333,
        ];
        for (found, want) in smooth(&raw, 0.5).iter().zip(smoothed) {
            assert_abs_diff_eq!(*found, want, epsilon = 1e-9);
        }
        let points: Vec<_> =
            smoothed.iter().enumerate().map(|(d, y)| (d as f64 / 20.0, *y)).collect();
        let want = [
            0.025007, -0.013144, -0.005375, -0.002896, 0.005249, 0.046235, 0.033822, 0.028670,
            0.013809, -0.043099, -0.025956, 0.100496, 0.032227, -0.013237, 0.109029, 0.122426,
            0.046610, -0.025298, -0.032813, 0.303502,
        ];
        let found = slopes(&points, 4);
        assert_eq!(found.len(), 20);
        for (found, want) in found.iter().zip(want) {
            assert_abs_diff_eq!(*found, want, epsilon = 1e-6);
        }
    }

    #[test]
    fn short_curves_have_short_slopes() {
        assert!(slopes(&[], 4).is_empty() && slopes(&[(0.0, 1.0)], 4).is_empty());
        assert_eq!(slopes(&[(0.0, 1.0), (0.5, 2.0)], 4), [2.0]);
        assert_eq!(smooth(&[3.0, 3.0], 1.0), [0.0, 0.0]);
    }
}
