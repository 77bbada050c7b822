use prune_core::{Error, Result};

/// The natural logarithm of the synaptic expectation: the mean, over weights and masks, of the
/// synaptic flow of a network of layers in a row whose weights are drawn as N(0, 2 / fan-in) and
/// kept with the given densities.
///
/// ```text
/// E[R] = outputs · Π p · (2/√π) · √fan_in
/// ```
///
/// `fan_in` is the number of inputs of one output of each layer: input channels times kernel size
/// for a convolution. The mean does not depend on whether weights, rows or columns are removed;
/// the spread does.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; [`Error::OutOfRange`] for a fan-in of 0, no outputs,
/// or a density that is negative or no number.
///
/// ```
/// use prune_allocate::log_syn_exp;
/// // 5-7-6-4 neurons.
/// let log = log_syn_exp(&[5, 7, 6], &[0.6, 0.4, 0.8], 4)?;
/// assert!((log.exp() - 15.989543).abs() < 1e-6);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn log_syn_exp(fan_in: &[usize], densities: &[f64], outputs: usize) -> Result<f64> {
    if fan_in.len() != densities.len() {
        return Err(Error::Shape {
            what: "densities of the layers".to_string(),
            found: vec![densities.len()],
            expected: vec![fan_in.len()],
        });
    }
    let fits = outputs > 0 && fan_in.iter().all(|n| *n > 0) && densities.iter().all(|p| *p >= 0.0);
    if !fits {
        return Err(super::densities::out_of_range(
            "a chain of layers",
            format!("fan-in {fan_in:?}, densities {densities:?}, {outputs} outputs"),
            "all above 0",
        ));
    }
    // √(2/π) is the mean of |N(0, 1)|, √2 the deviation times √fan_in.
    let c = std::f64::consts::FRAC_2_SQRT_PI;
    let terms = fan_in.iter().zip(densities).map(|(&n, p)| (p * c * (n as f64).sqrt()).ln());
    Ok((outputs as f64).ln() + terms.sum::<f64>())
}
