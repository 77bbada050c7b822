use ndarray::Array2;
use prune_core::Result;
use prune_linalg::UpperFactor;

use crate::gram_layer::{GramLayer, factor};

/// The upper factor `R` of `H = R Rᵀ`, H being the damped Gram matrix with its columns in the order
/// in which they are pruned, over its mean diagonal.
pub(super) struct Factor {
    right: UpperFactor,
    pub(super) damping: f64,
    pub(super) raised: u32,
}

impl Factor {
    pub(super) fn new(layer: &GramLayer<'_>, order: &[usize], damping: f64) -> Result<Self> {
        let n = order.len();
        let matrix = Array2::from_shape_fn((n, n), |(i, j)| {
            let (i, j) = (order[i], order[j]);
            let value = layer.gram[[i, j]] / layer.scale;
            // A dead channel touches no other and may have any positive curvature.
            if i == j && layer.is_dead(i) { 1.0 } else { value }
        });
        let found = factor(layer.id, matrix, damping, UpperFactor::new)?;
        Ok(Self { right: found.factor, damping: found.damping, raised: found.raised })
    }

    /// Rows `start..end` of R from column `start` on.
    pub(super) fn rows(&self, start: usize, end: usize) -> Array2<f32> {
        self.right.rows(start..end)
    }

    /// The block `start..end` of U on the diagonal.
    pub(super) fn inverse(&self, start: usize, end: usize) -> Array2<f32> {
        self.right.inverse_block(start..end)
    }

    /// The diagonal of R.
    pub(super) fn diagonal(&self) -> Vec<f32> {
        self.right.diagonal().iter().map(|v| *v as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Fixture;
    use approx::{assert_abs_diff_eq, assert_relative_eq};
    use ndarray::s;
    use prune_core::{GramAccumulator, LayerId, LayerStats};

    fn gram() -> Array2<f64> {
        Fixture::small().gram()
    }

    fn factor_of(gram: &Array2<f64>, order: &[usize]) -> (Factor, f64) {
        let gram = GramAccumulator::from_parts(16, gram.clone()).unwrap();
        let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
        let (weight, id) = (Array2::zeros((1, order.len())), LayerId::new("fc"));
        let layer = GramLayer::new("sparsegpt", &id, weight.view(), &stats).unwrap();
        (Factor::new(&layer, order, 0.01).unwrap(), layer.scale)
    }

    #[test]
    fn the_inverse_factor_matches_numpy() {
        let order: Vec<usize> = (0..8).collect();
        let (factor, scale) = factor_of(&gram(), &order);
        let u = factor.inverse(0, 8).mapv(|v| f64::from(v) / scale.sqrt());
        let row =
            [0.342364, 0.023475, -0.082598, -0.023213, -0.014610, -0.010606, -0.007943, -0.005736];
        let diagonal =
            [0.342364, 0.365924, 0.314341, 0.313473, 0.313964, 0.312383, 0.309330, 0.303321];
        for (found, want) in u.row(0).iter().zip(row).chain(u.diag().iter().zip(diagonal)) {
            assert_abs_diff_eq!(*found, want, epsilon = 6e-7);
        }
        // The last column has nothing after it to make up for it.
        let last = gram()[[7, 7]] + 0.01 * gram().diag().sum() / 8.0;
        assert_relative_eq!(1.0 / (u[[7, 7]] * u[[7, 7]]), last, max_relative = 1e-6);
    }

    #[test]
    fn the_factor_of_the_reversed_matrix_is_that_of_the_inverse() {
        let mut h = gram();
        let damping = 0.01 * h.diag().sum() / 8.0;
        h.diag_mut().mapv_inplace(|d| d + damping);
        let turned = prune_linalg::inverse_upper_factor(h.view()).unwrap();
        let lower = prune_linalg::cholesky(h.view()).unwrap();
        let inverse = prune_linalg::cholesky_inverse(lower.view()).unwrap();
        let factor = prune_linalg::cholesky(inverse.view()).unwrap();
        assert!((&turned - &factor.t()).iter().all(|d| d.abs() < 5e-16));
    }

    #[test]
    fn rows_and_blocks_of_any_order_belong_to_one_factor() {
        let order = [3, 0, 7, 5, 1, 6, 2, 4];
        let (factor, scale) = factor_of(&gram(), &order);
        let r = factor.rows(0, 8).mapv(f64::from);
        let back = r.dot(&r.t()) * scale;
        let damping = 0.01 * scale;
        for ((i, j), found) in back.indexed_iter() {
            let want = gram()[[order[i], order[j]]] + if i == j { damping } else { 0.0 };
            assert_relative_eq!(*found, want, epsilon = 1e-5);
        }
        assert_eq!(factor.rows(2, 5), factor.rows(0, 8).slice(s![2..5, 2..]));
        let part = factor.rows(2, 5).slice(s![.., ..3]).dot(&factor.inverse(2, 5));
        assert!((part - Array2::<f32>::eye(3)).iter().all(|d| d.abs() < 1e-6));
    }
}
