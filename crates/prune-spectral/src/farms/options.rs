use prune_linalg::Real;

use super::measure::{self, FarmsMeasure};
use super::spectra::WindowSpectra;
use super::windows::{Placement, WindowPlan};
use crate::{Error, Result, TailFit, Weight};

/// How far apart the windows of a linear layer lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// This many windows along each dimension, or as many as have different places.
    Count(usize),
    /// A window every so many rows and columns.
    Stride(usize),
}

/// What is averaged over the windows of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ConvAverage {
    /// Their spectra: one fit over the pooled eigenvalues of all windows, as for linear layers.
    #[default]
    Spectra,
    /// Their exponents: one fit for the windows at one place in all slices, and the mean of the
    /// fits, as the released code does.
    Exponents,
}

/// Fixed-aspect-ratio matrix subsampling: the heavy-tail exponent of a layer from windows of one
/// shape, so that layers of different shapes can be compared.
///
/// The spectrum of even a random matrix depends on its aspect ratio, and so does any exponent
/// fitted to it. FARMS cuts windows of `window` rows and `window · aspect` columns, pools their
/// eigenvalues, and fits once. A convolution is cut into its k_h · k_w slices, turned so that rows
/// are the longer side; windows then are as large as the shorter side allows.
///
/// Windows are worked on side by side on all rayon threads, each on one thread, and results do not
/// depend on how many there are. Memory: one window per thread and its Gram matrix in f64, and the
/// pooled eigenvalues.
///
/// Source: Hu et al., "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias", 2025.
///
/// ```
/// use ndarray::Array2;
/// use prune_core::Seed;
/// use prune_spectral::{Farms, Spectrum, TailFit};
///
/// let mut stream = Seed::new(3).stream("layer");
/// let mut noise = |r, c| Array2::from_shape_simple_fn((r, c), || stream.uniform() - 0.5);
/// let (square, wide) = (noise(64, 64), noise(64, 512));
/// let plain = |w: &Array2<f64>| TailFit::median().fit(&Spectrum::of(w.view())?);
/// let farms = Farms::new(32, 1.0)?.fit(TailFit::median());
/// let spread = |a: f64, b: f64| (a - b).abs();
/// // The same noise, another shape, another exponent, but for FARMS.
/// assert!(spread(plain(&square)?.alpha, plain(&wide)?.alpha) > 1.0);
/// let (a, b) = (farms.measure(square.view())?, farms.measure(wide.view())?);
/// assert!(spread(a.alpha, b.alpha) < 0.2);
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Farms {
    pub(super) window: usize,
    pub(super) aspect: f64,
    pub(super) spacing: Spacing,
    pub(super) placement: Placement,
    pub(super) conv: ConvAverage,
    pub(super) fit: TailFit,
}

impl Default for Farms {
    /// Square windows of 128 rows, ten along each dimension or more where they would leave gaps,
    /// covering all rows and columns, and the peak fit.
    fn default() -> Self {
        Self {
            window: 128,
            aspect: 1.0,
            spacing: Spacing::Count(10),
            placement: Placement::default(),
            conv: ConvAverage::default(),
            fit: TailFit::peak(),
        }
    }
}

impl Farms {
    /// Windows of `window` rows and `window · aspect` columns; both shrink, keeping the aspect,
    /// for layers that are smaller.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a window of no rows, or an aspect that is not a positive number.
    pub fn new(window: usize, aspect: f64) -> Result<Self> {
        if window == 0 {
            return Err(Error::OutOfRange {
                what: "the number of rows of a window",
                found: window.to_string(),
                expected: "1 or more",
            });
        }
        if !(aspect.is_finite() && aspect > 0.0) {
            return Err(Error::OutOfRange {
                what: "the aspect ratio of a window",
                found: aspect.to_string(),
                expected: "a finite number above 0",
            });
        }
        Ok(Self { window, aspect, ..Self::default() })
    }

    /// Where the windows lie.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0.
    pub fn spacing(self, spacing: Spacing) -> Result<Self> {
        let (Spacing::Count(n) | Spacing::Stride(n)) = spacing;
        if n == 0 {
            return Err(Error::OutOfRange {
                what: "the spacing of windows",
                found: n.to_string(),
                expected: "1 or more",
            });
        }
        Ok(Self { spacing, ..self })
    }

    /// Whether windows cover the whole weight or lie where the released code puts them.
    pub fn placement(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// What is averaged over the windows of a convolution.
    pub fn conv_average(self, conv: ConvAverage) -> Self {
        Self { conv, ..self }
    }

    /// The fit to the pooled eigenvalues.
    pub fn fit(self, fit: TailFit) -> Self {
        Self { fit, ..self }
    }

    /// The released code's windows, average and fit of these sizes: the peak fit of its language
    /// model pruning.
    pub fn released(self) -> Self {
        self.placement(Placement::Released)
            .conv_average(ConvAverage::Exponents)
            .fit(TailFit::released_peak())
    }

    /// The windows that a weight is cut into.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::TooFewEigenvalues`] when all windows together have fewer than
    /// two eigenvalues.
    pub fn plan<'a, T: Real>(&self, weight: impl Into<Weight<'a, T>>) -> Result<WindowPlan> {
        WindowPlan::new(self, &weight.into())
    }

    /// The eigenvalues of all windows of a weight.
    ///
    /// # Errors
    /// As [`Farms::plan`]; [`Error::Linalg`] for NaN and infinity.
    pub fn spectra<'a, T: Real>(&self, weight: impl Into<Weight<'a, T>>) -> Result<WindowSpectra> {
        measure::spectra(self, weight.into())
    }

    /// The exponent of a weight, and what goes with it.
    ///
    /// # Errors
    /// As [`Farms::spectra`] and [`TailFit::fit`].
    pub fn measure<'a, T: Real>(&self, weight: impl Into<Weight<'a, T>>) -> Result<FarmsMeasure> {
        measure::measure(self, weight.into())
    }
}
