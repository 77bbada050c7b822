use ndarray::{ArrayView2, s};
use prune_linalg::{Real, Workspace};
use rayon::prelude::*;

use super::options::Farms;
use super::spectra::{Group, WindowSpectra};
use super::windows::{Window, WindowPlan};
use super::workspaces::Workspaces;
use crate::decomposition::{Decomposition, gram_error, squared_singular_values};
use crate::spectrum::CONV_NORM;
use crate::{PowerLaw, Result, Weight};

/// The exponent of a layer from its windows.
///
/// Where the windows of a convolution have fits of their own, every number is their mean.
#[derive(Debug, Clone, PartialEq)]
pub struct FarmsMeasure {
    /// The exponent α.
    pub alpha: f64,
    /// The distance D of the fit.
    pub distance: f64,
    /// Largest pooled eigenvalue.
    pub spectral_norm: f64,
    /// Sum of the pooled eigenvalues.
    pub norm: f64,
    /// Sum over largest.
    pub stable_rank: f64,
    /// α · log₁₀ of the spectral norm.
    pub alpha_weighted: f64,
    /// The fits: one, or one for each place of a window in a convolution.
    pub fits: Vec<PowerLaw>,
    /// What they were fitted to.
    pub spectra: WindowSpectra,
}

/// Relative error of the first eigenvalue of a tail up to which Gram matrices are good enough. It
/// bounds that of α − 1.
const ACCEPTED: f64 = 1e-8;

pub(super) fn measure<T: Real>(farms: &Farms, weight: Weight<'_, T>) -> Result<FarmsMeasure> {
    let plan = WindowPlan::new(farms, &weight)?;
    let mut spectra = decompose(&plan, weight, Decomposition::Auto)?;
    let fit = |spectra: &WindowSpectra| -> Result<Vec<PowerLaw>> {
        spectra.pooled().map(|s| farms.fit.fit(s)).collect()
    };
    let mut fits = fit(&spectra)?;
    let exact = fits.iter().zip(spectra.pooled()).all(|(fit, spectrum)| {
        gram_error(spectrum.shorter(), spectrum.largest()) <= ACCEPTED * fit.xmin
    });
    if !exact {
        spectra = decompose(&plan, weight, Decomposition::SingularValues)?;
        fits = fit(&spectra)?;
    }
    let count = fits.len() as f64;
    let mean = |of: &dyn Fn(&PowerLaw, &crate::Spectrum) -> f64| {
        fits.iter().zip(spectra.pooled()).map(|(f, s)| of(f, s)).sum::<f64>() / count
    };
    Ok(FarmsMeasure {
        alpha: mean(&|f, _| f.alpha),
        distance: mean(&|f, _| f.distance),
        spectral_norm: mean(&|_, s| s.largest()),
        norm: mean(&|_, s| s.sum()),
        stable_rank: mean(&|_, s| s.stable_rank()),
        alpha_weighted: mean(&|f, s| s.weighted_alpha(f.alpha)),
        spectra,
        fits,
    })
}

pub(super) fn spectra<T: Real>(farms: &Farms, weight: Weight<'_, T>) -> Result<WindowSpectra> {
    decompose(&WindowPlan::new(farms, &weight)?, weight, Decomposition::Auto)
}

/// Factor of the error bound of a Gram matrix below which an eigenvalue may as well be zero.
const DOUBTFUL: f64 = 4.0;

fn decompose<T: Real>(
    plan: &WindowPlan,
    weight: Weight<'_, T>,
    decomposition: Decomposition,
) -> Result<WindowSpectra> {
    let scale = match weight {
        Weight::Linear(_) => 1.0,
        Weight::Conv2d(_) => CONV_NORM,
    };
    let matrices = weight.matrices();
    let places = plan.windows();
    let workspaces = Workspaces::default();
    let spectrum = |job: usize| -> Result<Vec<f64>> {
        let (place, matrix) = (places[job / matrices.len()], matrices[job % matrices.len()]);
        let matrix = if plan.transposed { matrix.reversed_axes() } else { matrix };
        let mut values = workspaces.lend(|w| window_spectrum(place, matrix, decomposition, w))?;
        values.iter_mut().for_each(|v| *v *= scale);
        Ok(values)
    };
    let mut windows: Vec<Vec<f64>> =
        (0..places.len() * matrices.len()).into_par_iter().map(spectrum).collect::<Result<_>>()?;
    let side = |of: fn(usize, usize) -> usize| places.first().map_or(0, |w| of(w.rows, w.cols));
    let (longer, shorter) = (side(Ord::max), side(Ord::min));
    let groups = if plan.separate {
        let mut groups = Vec::with_capacity(places.len());
        while !windows.is_empty() {
            let rest = windows.split_off(matrices.len().min(windows.len()));
            groups.push(Group::new(std::mem::replace(&mut windows, rest), longer, shorter));
        }
        groups
    } else {
        vec![Group::new(windows, longer, shorter)]
    };
    Ok(WindowSpectra::new(groups))
}

fn window_spectrum<T: Real>(
    place: Window,
    matrix: ArrayView2<'_, T>,
    decomposition: Decomposition,
    workspace: &mut Workspace,
) -> Result<Vec<f64>> {
    let Window { row, col, rows, cols } = place;
    let window = matrix.slice(s![row..row + rows, col..col + cols]);
    if decomposition == Decomposition::Auto {
        // Small eigenvalues may have few digits: whether the tail has enough is decided when it is
        // known. But which are zero must be clear.
        let values = squared_singular_values(window, Decomposition::Gram, workspace)?;
        let largest = values.last().copied().unwrap_or(0.0);
        if values.first().is_none_or(|v| *v > DOUBTFUL * gram_error(values.len(), largest)) {
            return Ok(values);
        }
    }
    squared_singular_values(window, Decomposition::SingularValues, workspace)
}
