use ndarray::ArrayViewMut2;
use prune_core::{Error, Result};

/// Moves scales of input channels from a layer into what produces its input, so that the product
/// stays the same: `(X/s) (W·s)ᵀ = X Wᵀ`.
///
/// `producer` are the weights of the norm before the layers, or one row for each channel of the
/// linear layer before, flattened; its bias, where it has one, is folded by another call. Each of
/// its `scales.len()` equal parts is divided by a scale, and the columns of every one of
/// `consumers` are multiplied.
///
/// # Errors
/// [`Error::Shape`] when lengths do not go together; [`Error::OutOfRange`] for a scale that is not
/// finite and positive. Nothing is changed then.
///
/// ```
/// use ndarray::array;
/// use prune_quant::fold_scales;
/// let mut norm = [1.0, 1.0];
/// let mut up = array![[1.0, 2.0], [3.0, 4.0]];
/// fold_scales("mlp", &mut norm, &mut [up.view_mut()], &[2.0, 0.5])?;
/// assert_eq!(norm, [0.5, 2.0]);
/// assert_eq!(up, array![[2.0, 1.0], [6.0, 2.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn fold_scales(
    what: &str,
    producer: &mut [f32],
    consumers: &mut [ArrayViewMut2<'_, f32>],
    scales: &[f32],
) -> Result<()> {
    let channels = scales.len();
    let shape = |found: usize| Error::Shape {
        what: format!("{what} (channels)"),
        found: vec![found],
        expected: vec![channels],
    };
    if channels == 0 || !producer.len().is_multiple_of(channels) {
        return Err(shape(producer.len()));
    }
    if let Some(other) = consumers.iter().find(|w| w.ncols() != channels) {
        return Err(shape(other.ncols()));
    }
    if let Some(bad) = scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(Error::OutOfRange {
            what: format!("{what} (scale of a channel)"),
            found: bad.to_string(),
            expected: "finite and above 0".to_string(),
        });
    }
    let part = producer.len() / channels;
    for (values, s) in producer.chunks_mut(part).zip(scales) {
        values.iter_mut().for_each(|x| *x /= s);
    }
    for weight in consumers {
        for mut row in weight.outer_iter_mut() {
            row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
        }
    }
    Ok(())
}
