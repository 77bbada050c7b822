use ndarray::{Array, ArrayView, Dimension, Zip};
use prune_core::{Error, Result};

use crate::checks::{finite, same_shape};

/// `f(w, g)` of every weight and its gradient, or the error that names what is no number.
pub(super) fn each<D: Dimension>(
    what: &str,
    weight: ArrayView<'_, f32, D>,
    gradient: ArrayView<'_, f32, D>,
    f: impl Fn(f64, f64) -> f64,
) -> Result<Array<f32, D>> {
    same_shape(&format!("gradient of `{what}`"), weight.shape(), gradient.shape())?;
    finite(&format!("weight of `{what}`"), &weight)?;
    finite(&format!("gradient of `{what}`"), &gradient)?;
    let scores = Zip::from(&weight)
        .and(&gradient)
        .map_collect(|w, g| f(f64::from(*w), f64::from(*g)) as f32);
    finite(&format!("score of `{what}`"), &scores.view())?;
    Ok(scores)
}

/// SNIP's saliency of every weight, `|g · w|`: how much the loss changes when a mask is moved.
///
/// `gradient` is that of the loss by the weight, summed over batches *before* this is called, at
/// initialisation with a variance-scaling scheme. The weights of highest saliency in the whole
/// network stay, in one step. Dividing by the sum over all layers, as the paper does, changes no
/// order.
///
/// # Errors
/// [`Error::Shape`], [`Error::NotFinite`], naming `what`.
///
/// Source: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection
/// Sensitivity", 2019.
///
/// ```
/// use ndarray::array;
/// use prune_importance::snip;
/// let saliency = snip("fc", array![[2.0, -3.0]].view(), array![[0.5, 0.25]].view())?;
/// assert_eq!(saliency, array![[1.0, 0.75]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn snip<D: Dimension>(
    what: &str,
    weight: ArrayView<'_, f32, D>,
    gradient: ArrayView<'_, f32, D>,
) -> Result<Array<f32, D>> {
    each(what, weight, gradient, |w, g| (w * g).abs())
}

/// GraSP's importance of every weight, `w · Hg`, higher is kept: what its removal takes from the
/// norm of the gradient. (The paper prunes the highest `−w · Hg`.)
///
/// `hessian_gradient` is the product of the Hessian of the loss with its gradient, by automatic
/// differentiation or by [`hessian_gradient`]. The loss is a cross-entropy of logits divided by a
/// temperature of 200, over ten samples a class. The weights of highest importance in the whole
/// network stay.
///
/// # Errors
/// As [`snip`].
///
/// Source: Wang, Zhang, Grosse, "Picking Winning Tickets Before Training by Preserving Gradient
/// Flow", 2020.
///
/// ```
/// use ndarray::array;
/// use prune_importance::grasp;
/// let importance = grasp("fc", array![[2.0, -3.0]].view(), array![[0.5, 0.25]].view())?;
/// assert_eq!(importance, array![[1.0, -0.75]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn grasp<D: Dimension>(
    what: &str,
    weight: ArrayView<'_, f32, D>,
    hessian_gradient: ArrayView<'_, f32, D>,
) -> Result<Array<f32, D>> {
    each(what, weight, hessian_gradient, |w, hg| w * hg)
}

/// The product of the Hessian with the gradient g by central differences: from the gradients at
/// `w + εg` and `w − εg`, for frameworks without second derivatives.
///
/// The error is O(ε²) plus rounding over ε; ε of 1e-4 to 1e-2 of the weights' size over the
/// gradient's is a fair choice in f32.
///
/// # Errors
/// As [`snip`]; [`Error::OutOfRange`] unless `epsilon` is finite and above 0.
///
/// ```
/// use ndarray::array;
/// use prune_importance::hessian_gradient;
/// // L = 3 w² at w = 1: the gradient is 6, at 1 ± 6ε it is 6 ± 36ε; the Hessian is 6.
/// let (epsilon, above, below) = (0.125, array![6.0 + 4.5], array![6.0 - 4.5]);
/// assert_eq!(hessian_gradient("fc", above.view(), below.view(), epsilon)?, array![36.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn hessian_gradient<D: Dimension>(
    what: &str,
    above: ArrayView<'_, f32, D>,
    below: ArrayView<'_, f32, D>,
    epsilon: f64,
) -> Result<Array<f32, D>> {
    if !(epsilon.is_finite() && epsilon > 0.0) {
        return Err(Error::OutOfRange {
            what: format!("step between the gradients of `{what}`"),
            found: epsilon.to_string(),
            expected: "finite and above 0".to_string(),
        });
    }
    each(what, above, below, |a, b| (a - b) / (2.0 * epsilon))
}

/// SynFlow's saliency of every weight, `|w| · ∂R/∂|w|`, where R is the sum of the outputs of the
/// network with all weights replaced by their absolute values, for an input of ones.
///
/// Needs no data. The sums over any layer are equal, so that iterated pruning
/// ([`SynFlow`](crate::SynFlow)) empties none. In deep networks R overflows f32: let the framework
/// compute in f64 and scale all layers' gradients by one number.
///
/// # Errors
/// As [`snip`].
///
/// Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively
/// conserving synaptic flow", 2020.
///
/// ```
/// use ndarray::array;
/// use prune_importance::synflow;
/// let saliency = synflow("fc", array![[2.0, -3.0]].view(), array![[0.5, 1.0]].view())?;
/// assert_eq!(saliency, array![[1.0, 3.0]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn synflow<D: Dimension>(
    what: &str,
    weight: ArrayView<'_, f32, D>,
    gradient: ArrayView<'_, f32, D>,
) -> Result<Array<f32, D>> {
    each(what, weight, gradient, |w, g| w.abs() * g.abs())
}

/// The first-order Taylor importance of every weight, `(g · w)²`.
///
/// # Errors
/// As [`snip`].
///
/// Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019.
///
/// ```
/// use ndarray::array;
/// use prune_importance::taylor;
/// let importance = taylor("fc", array![[2.0, -3.0]].view(), array![[0.5, 0.5]].view())?;
/// assert_eq!(importance, array![[1.0, 2.25]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn taylor<D: Dimension>(
    what: &str,
    weight: ArrayView<'_, f32, D>,
    gradient: ArrayView<'_, f32, D>,
) -> Result<Array<f32, D>> {
    each(what, weight, gradient, |w, g| (w * g) * (w * g))
}

/// The second-order importance of every weight, `½ h w²`, of a diagonal h: optimal brain damage
/// with that of the Hessian, empirical Fisher with [`FisherDiagonal`](crate::FisherDiagonal).
///
/// Entries of a Hessian may be negative, and then so is the importance: the loss falls without the
/// weight, as far as the second order knows.
///
/// # Errors
/// As [`snip`].
///
/// Source: LeCun, Denker, Solla, "Optimal Brain Damage", 1989.
///
/// ```
/// use ndarray::array;
/// use prune_importance::second_order;
/// let importance = second_order("fc", array![[2.0, -3.0]].view(), array![[0.5, -1.0]].view())?;
/// assert_eq!(importance, array![[1.0, -4.5]]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn second_order<D: Dimension>(
    what: &str,
    weight: ArrayView<'_, f32, D>,
    diagonal: ArrayView<'_, f32, D>,
) -> Result<Array<f32, D>> {
    each(what, weight, diagonal, |w, h| 0.5 * h * w * w)
}
