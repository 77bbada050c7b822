use ndarray::{Array2, Zip};
use prune_core::{Error, LayerId, LayerStats, Result};
use prune_linalg::UpperFactor;

/// What the solver needs of the layer's inputs.
pub(super) struct Hessian {
    /// Position in the solver's order -> input channel.
    pub(super) order: Vec<usize>,
    /// Channels that were 0 on every token.
    pub(super) dead: Vec<usize>,
    /// `2 XᵀX / tokens` in the solver's order, with ones for dead channels.
    matrix: Array2<f64>,
}

/// A factor of the damped matrix, and how it was damped.
pub(super) struct Factor {
    /// `R` of `H + λI = R Rᵀ`, whose inverse is the `U` of `(H + λI)⁻¹ = Uᵀ U`.
    pub(super) right: UpperFactor,
    /// λ over the mean of the diagonal of H.
    pub(super) damping: f64,
    /// How often λ was raised.
    pub(super) raised: u32,
}

/// The largest damping that is tried, in means of the diagonal: far beyond any use.
const LARGEST: f64 = 1e4;

impl Hessian {
    pub(super) fn new(
        method: &str,
        layer: &LayerId,
        stats: &LayerStats,
        cols: usize,
        by_activation: bool,
    ) -> Result<Self> {
        let gram =
            stats.gram.as_ref().filter(|g| g.count() > 0).ok_or_else(|| Error::NoStatistics {
                layer: layer.to_string(),
                method: method.to_string(),
                needed: "a Gram matrix",
            })?;
        if gram.channels() != cols {
            return Err(Error::Shape {
                what: format!("{layer} (channels of the Gram matrix)"),
                found: vec![gram.channels()],
                expected: vec![cols],
            });
        }
        let gram_matrix = gram.matrix();
        let diagonal: Vec<f64> = gram_matrix.diag().to_vec();
        let mut order: Vec<usize> = (0..cols).collect();
        if by_activation {
            // Stable: channels that are equally loud stay in their order.
            order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
        }
        let scale = 2.0 / gram.count() as f64;
        let mut matrix = Array2::zeros((cols, cols));
        Zip::indexed(&mut matrix).par_for_each(|(i, j), h| {
            let g = gram_matrix[[order[i], order[j]]];
            *h = if i == j && g == 0.0 { 1.0 } else { scale * g };
        });
        let dead = (0..cols).filter(|j| diagonal[*j] == 0.0).collect();
        Ok(Self { order, dead, matrix })
    }

    /// Factors `H + λI` with the first λ from `damping` on, in steps of ten, for which that works.
    pub(super) fn factor(mut self, layer: &LayerId, damping: f64) -> Result<Factor> {
        if !(0.0..=LARGEST).contains(&damping) {
            return Err(Error::OutOfRange {
                what: "damping of GPTQ".to_string(),
                found: damping.to_string(),
                expected: format!("0 to {LARGEST}"),
            });
        }
        let n = self.matrix.nrows();
        let diagonal = self.matrix.diag().to_owned();
        let mean = diagonal.sum() / n.max(1) as f64;
        let (mut damping, mut raised) = (damping, 0);
        loop {
            Zip::from(self.matrix.diag_mut())
                .and(&diagonal)
                .for_each(|h, d| *h = d + damping * mean);
            match UpperFactor::new(self.matrix.view()) {
                // A factor beyond f32 is as useless as none.
                Ok(right) if right.diagonal().iter().all(|r| is_usable(*r)) => {
                    return Ok(Factor { right, damping, raised });
                }
                Ok(_) => {}
                Err(prune_linalg::Error::NotPositiveDefinite { .. }) => {}
                Err(e) => return Err(Error::external(layer.as_str(), e)),
            }
            (damping, raised) = ((10.0 * damping).max(1e-6), raised + 1);
            if damping > LARGEST {
                return Err(Error::OutOfRange {
                    what: format!("{layer} (damping that makes the Gram matrix invertible)"),
                    found: damping.to_string(),
                    expected: format!("at most {LARGEST}; the matrix is damaged"),
                });
            }
        }
    }
}

/// Whether `r` and `1 / r` are finite and above 0 in f32.
fn is_usable(r: f64) -> bool {
    [r, 1.0 / r].iter().all(|v| (*v as f32).is_finite() && *v as f32 > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prune_core::GramAccumulator;

    /// Computed with numpy in f64.
    #[test]
    fn the_diagonal_and_the_order_of_activations_match_the_reference() {
        let x = Array2::from_shape_fn((16, 8), |(n, j)| {
            let (n, j) = (n as f64, j as f64);
            ((0.3 * n * (j % 3.0 + 1.0) + 0.2 * j).cos() + 0.5 * (0.9 * n).sin()) as f32
        });
        let mut gram = GramAccumulator::new(8);
        gram.update("x", x.view()).unwrap();
        let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
        let layer = LayerId::new("w");
        let diagonal =
            [1.480945, 1.552718, 0.911523, 1.210946, 1.550710, 0.393714, 1.113422, 1.432767];
        let natural = Hessian::new("gptq", &layer, &stats, 8, false).unwrap();
        assert_eq!(natural.order, [0, 1, 2, 3, 4, 5, 6, 7]);
        for (h, want) in natural.matrix.diag().iter().zip(diagonal) {
            assert!((h - want).abs() < 1e-6, "{h} {want}");
        }
        let sorted = Hessian::new("gptq", &layer, &stats, 8, true).unwrap();
        assert_eq!(sorted.order, [1, 4, 0, 7, 3, 6, 2, 5]);
        for ((i, j), h) in sorted.matrix.indexed_iter() {
            assert_eq!(*h, natural.matrix[[sorted.order[i], sorted.order[j]]]);
        }
        // The upper factor of the damped inverse: (H + λI) Uᵀ U = I.
        let mean = diagonal.iter().sum::<f64>() / 8.0;
        let mut damped = natural.matrix.clone();
        damped.diag_mut().mapv_inplace(|d| d + 0.01 * mean);
        let factor = natural.factor(&layer, 0.01).unwrap();
        assert_eq!((factor.damping, factor.raised), (0.01, 0));
        let upper = factor.right.inverse_block(0..8).mapv(f64::from);
        let product = damped.dot(&upper.t().dot(&upper));
        for ((i, j), x) in product.indexed_iter() {
            assert!((x - f64::from(u8::from(i == j))).abs() < 1e-4, "{i} {j} {x}");
            assert!(i <= j || upper[[i, j]] == 0.0);
        }
    }
}
