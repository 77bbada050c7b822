use ndarray::{Array2, ArrayView2};
use prune_core::{Error, LayerId, LayerStats, Result, check_finite};

/// Refuses a weight with a NaN or an infinity, naming its tensor.
pub(crate) fn check_weight(layer: &LayerId, weight: ArrayView2<'_, f32>) -> Result<()> {
    let name = layer.weight_name();
    check_finite(&name, weight.as_standard_layout().as_slice().unwrap_or_default())
}

/// What methods that look at correlations between inputs read of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GramLayer<'a> {
    pub(crate) id: &'a LayerId,
    /// `XᵀX`.
    pub(crate) gram: ArrayView2<'a, f64>,
    /// The mean of its diagonal over the channels that are not dead; above 0.
    pub(crate) scale: f64,
    /// Channels whose diagonal is 0.
    pub(crate) dead: usize,
}

impl<'a> GramLayer<'a> {
    /// # Errors
    /// [`Error::NoStatistics`] when there is no Gram matrix, or only zeros in it: then every mask
    /// is as good as any other; [`Error::Shape`] when it has another number of channels than the
    /// weight has columns; [`Error::NotFinite`] for a weight.
    pub(crate) fn new(
        method: &str,
        id: &'a LayerId,
        weight: ArrayView2<'_, f32>,
        stats: &'a LayerStats,
    ) -> Result<Self> {
        check_weight(id, weight)?;
        let found = stats.require_gram(id, method)?;
        if found.channels() != weight.ncols() {
            return Err(Error::Shape {
                what: format!("{id} (channels of the Gram matrix)"),
                found: vec![found.channels()],
                expected: vec![weight.ncols()],
            });
        }
        let gram = found.matrix();
        let live: Vec<f64> = gram.diag().iter().copied().filter(|d| *d > 0.0).collect();
        let scale = live.iter().sum::<f64>() / live.len() as f64;
        if live.is_empty() || scale < f64::MIN_POSITIVE {
            return Err(Error::NoStatistics {
                layer: id.to_string(),
                method: method.to_string(),
                needed: "a Gram matrix that is not all 0",
            });
        }
        if !scale.is_finite() {
            return Err(Error::NotFinite {
                what: format!("{id} (mean of the diagonal of the Gram matrix)"),
                index: 0,
                value: scale.to_string(),
            });
        }
        Ok(Self { id, gram, scale, dead: gram.nrows() - live.len() })
    }

    /// Whether an input channel was 0 on every token.
    pub(crate) fn is_dead(&self, channel: usize) -> bool {
        self.gram[[channel, channel]] <= 0.0
    }
}

/// A factor of `A + damping · I` and the damping that it took.
#[derive(Debug)]
pub(crate) struct Damped<F> {
    pub(crate) factor: F,
    pub(crate) damping: f64,
    pub(crate) raised: u32,
}

/// What `factorise` makes of a matrix of mean diagonal about 1 with `damping` added to its
/// diagonal, tenfold as much as often as it takes, up to 10. From 0 the first step is 10⁻⁸.
pub(crate) fn factor<F>(
    layer: &LayerId,
    mut matrix: Array2<f64>,
    damping: f64,
    factorise: impl Fn(ArrayView2<'_, f64>) -> prune_linalg::Result<F>,
) -> Result<Damped<F>> {
    const LIMIT: f64 = 10.0;
    let diagonal = matrix.diag().to_owned();
    let (mut tried, mut raised) = (damping, 0);
    loop {
        matrix.diag_mut().iter_mut().zip(&diagonal).for_each(|(to, d)| *to = d + tried);
        match factorise(matrix.view()) {
            Ok(factor) => return Ok(Damped { factor, damping: tried, raised }),
            Err(prune_linalg::Error::NotPositiveDefinite { .. }) => {
                let next = if tried == 0.0 { 1e-8 } else { tried * 10.0 };
                if next > LIMIT {
                    return Err(Error::Indefinite { layer: layer.to_string(), damping: tried });
                }
                (tried, raised) = (next, raised + 1);
            }
            Err(e) => return Err(Error::external(layer.as_str(), e)),
        }
    }
}

/// Checks a damping that a caller asks for.
pub(crate) fn check_damping(method: &str, damping: f64) -> Result<f64> {
    if (0.0..=1.0).contains(&damping) {
        return Ok(damping);
    }
    Err(Error::OutOfRange {
        what: format!("damping of {method}"),
        found: damping.to_string(),
        expected: "0 to 1 times the mean diagonal".to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use prune_linalg::cholesky;

    #[test]
    fn damping_is_raised_step_by_step_until_a_factor_exists() {
        let id = LayerId::new("fc");
        // Its eigenvalues are 2.05 and -0.05.
        let matrix = array![[1.0, 1.05], [1.05, 1.0]];
        let found = factor(&id, matrix.clone(), 0.001, cholesky).unwrap();
        assert_eq!(found.raised, 2);
        assert!((found.damping - 0.1).abs() < 1e-15);
        let back = found.factor.dot(&found.factor.t());
        assert!((back[[0, 0]] - 1.1).abs() < 1e-12 && (back[[0, 1]] - 1.05).abs() < 1e-12);

        let singular = array![[1.0, 1.0], [1.0, 1.0]];
        let found = factor(&id, singular, 0.0, cholesky).unwrap();
        assert_eq!((found.damping, found.raised), (1e-8, 1));

        let hopeless = array![[1.0, 100.0], [100.0, 1.0]];
        let error = factor(&id, hopeless, 0.01, cholesky).unwrap_err();
        assert!(
            matches!(error, Error::Indefinite { damping, .. } if (damping - 10.0).abs() < 1e-9)
        );
    }
}
