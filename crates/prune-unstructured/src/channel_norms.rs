use prune_core::{Error, LayerStats, Result, Target};

/// Root mean square of each input channel over the calibration tokens.
///
/// # Errors
/// [`Error::NoStatistics`]; [`Error::Shape`] when the statistics have another number of channels
/// than the weight has columns.
pub(crate) fn channel_norms(
    method: &str,
    target: &Target<'_>,
    cols: usize,
    stats: &LayerStats,
) -> Result<Vec<f64>> {
    let columns = stats.require_columns(target.layer, method)?;
    if columns.channels() != cols {
        return Err(Error::Shape {
            what: format!("{} (channels of the column statistics)", target.layer),
            found: vec![columns.channels()],
            expected: vec![cols],
        });
    }
    let tokens = columns.count() as f64;
    Ok(columns.squared_norm().iter().map(|s| (s / tokens).sqrt()).collect())
}
