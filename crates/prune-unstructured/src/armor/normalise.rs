use ndarray::{Array2, ArrayView2};
use prune_core::{Error, LayerId, Result};

use super::Precision;

/// Added to every norm by NoWag, so that a row or column of zeros divides.
const EPSILON: f64 = 1e-5;

/// A weight whose columns, and then rows, have been divided by their norms, and those norms.
pub(super) struct Normalised<T> {
    pub(super) weight: Array2<T>,
    pub(super) rows: Vec<f64>,
    pub(super) columns: Vec<f64>,
}

/// NoWag's normalisation: `W̄_ij = W_ij / (c_j r_i)` with `c_j = ‖W_:j‖ + 1e-5` and `r_i` the same of
/// row `i` of `W / c`.
pub(super) fn normalise<T: Precision>(weight: ArrayView2<'_, T>) -> Normalised<T> {
    let mut columns = vec![0.0; weight.ncols()];
    for row in weight.outer_iter() {
        columns.iter_mut().zip(row).for_each(|(c, w)| *c += w.wide() * w.wide());
    }
    columns.iter_mut().for_each(|c| *c = c.sqrt() + EPSILON);
    let scaled = |row: ndarray::ArrayView1<'_, T>| -> Vec<f64> {
        row.iter().zip(&columns).map(|(w, c)| w.wide() / c).collect()
    };
    let mut rows = Vec::with_capacity(weight.nrows());
    let mut normal = Array2::zeros(weight.dim());
    for (row, mut out) in weight.outer_iter().zip(normal.outer_iter_mut()) {
        let row = scaled(row);
        let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt() + EPSILON;
        out.iter_mut().zip(row).for_each(|(o, w)| *o = T::of(w / norm));
        rows.push(norm);
    }
    Normalised { weight: normal, rows, columns }
}

/// `importance` with every number that is not finite and above zero replaced by the mean of those
/// that are, as the released code does.
///
/// # Errors
/// [`Error::Shape`] unless there is one a column; [`Error::NoStatistics`] when none is valid.
pub(super) fn valid_importance(
    importance: &[f64],
    cols: usize,
    layer: &LayerId,
) -> Result<Vec<f64>> {
    if importance.len() != cols {
        return Err(Error::Shape {
            what: format!("{layer} (importances of the columns)"),
            found: vec![importance.len()],
            expected: vec![cols],
        });
    }
    let valid = |h: &f64| h.is_finite() && *h > 0.0;
    let count = importance.iter().filter(|h| valid(h)).count();
    if count == 0 && cols > 0 {
        return Err(Error::NoStatistics {
            layer: layer.to_string(),
            method: "armor".to_string(),
            needed: "an input that is not zero",
        });
    }
    // Divided before they are summed, so that the sum cannot overflow.
    let mean = importance.iter().filter(|h| valid(h)).map(|h| h / count as f64).sum();
    Ok(importance.iter().map(|h| if valid(h) { *h } else { mean }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn norms_of_the_sine_layer_match_the_reference() {
        let weight =
            Array2::from_shape_fn((8, 8), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin());
        let n = normalise(weight.view());
        let columns =
            [2.029619, 2.002204, 1.974232, 1.947953, 1.925571, 1.909032, 1.899819, 1.898775];
        let rows = [0.783498, 0.526352, 1.133197, 1.377086, 1.027965, 0.463521, 0.907901, 1.353811];
        let second =
            [0.614986, -0.516215, 0.404341, -0.280796, 0.147877, -0.008809, -0.132355, 0.271062];
        for (found, want) in n
            .columns
            .iter()
            .chain(&n.rows)
            .chain(n.weight.row(1))
            .zip(columns.into_iter().chain(rows).chain(second))
        {
            assert_abs_diff_eq!(*found, want, epsilon = 6e-7);
        }
    }

    #[test]
    fn rows_and_columns_of_zeros_stay_zero() {
        let mut weight = Array2::<f32>::ones((3, 4));
        weight.row_mut(1).fill(0.0);
        weight.column_mut(2).fill(0.0);
        let n = normalise(weight.view());
        assert!(n.weight.iter().all(|w| w.is_finite()));
        assert!(n.weight.row(1).iter().chain(n.weight.column(2)).all(|w| *w == 0.0));
    }

    #[test]
    fn channels_without_input_get_the_mean_of_the_others() {
        let layer = LayerId::new("layer");
        let raw = [0.0, 1.0, f64::NAN, 3.0, -1.0, f64::INFINITY];
        let found = valid_importance(&raw, 6, &layer).unwrap();
        assert_eq!(found, [2.0, 1.0, 2.0, 3.0, 2.0, 2.0]);
        let error = |raw: &[f64]| valid_importance(raw, 2, &layer).unwrap_err().to_string();
        assert!(error(&[0.0, 0.0]).contains("needs an input that is not zero"));
        assert!(error(&[1.0]).contains("found shape [1], expected [2]"));
    }
}
