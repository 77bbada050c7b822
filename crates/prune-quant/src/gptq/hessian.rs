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
