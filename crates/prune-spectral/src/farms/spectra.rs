use crate::Spectrum;

/// The eigenvalues of the windows of a layer, pooled.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowSpectra {
    groups: Vec<Group>,
}

/// Windows whose eigenvalues are fitted together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub(super) spectrum: Spectrum,
    /// The window of each eigenvalue.
    pub(super) windows: Vec<u32>,
    /// The number of windows.
    pub(super) count: usize,
}

impl WindowSpectra {
    pub(super) fn new(groups: Vec<Group>) -> Self {
        Self { groups }
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The pooled spectra: one for a linear layer, one for each place of a window in a convolution
    /// whose exponents are averaged.
    ///
    /// ```
    /// use ndarray::Array2;
    /// use prune_spectral::Farms;
    /// let weight = Array2::from_shape_fn((20, 40), |(i, j)| ((i * i + 3 * j) as f32).sin());
    /// let spectra = Farms::new(10, 1.0)?.spectra(weight.view())?;
    /// let pooled: Vec<usize> = spectra.pooled().map(|s| s.len()).collect();
    /// assert_eq!(pooled, [10 * spectra.windows()]);
    /// # Ok::<(), prune_spectral::Error>(())
    /// ```
    pub fn pooled(&self) -> impl Iterator<Item = &Spectrum> {
        self.groups.iter().map(|g| &g.spectrum)
    }

    /// The number of windows, each slice of a convolution counted.
    pub fn windows(&self) -> usize {
        self.groups.iter().map(|g| g.count).sum()
    }
}

impl Group {
    /// Pools the eigenvalues of windows of one shape, in order.
    pub(super) fn new(windows: Vec<Vec<f64>>, longer: usize, shorter: usize) -> Self {
        let count = windows.len();
        let mut pairs: Vec<(f64, u32)> = windows
            .into_iter()
            .enumerate()
            .flat_map(|(w, values)| values.into_iter().map(move |v| (v, w as u32)))
            .collect();
        // Already in order within each window: a merge sort finds the runs.
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (values, windows) = pairs.into_iter().unzip();
        Self { spectrum: Spectrum::pooled(values, longer, shorter, count), windows, count }
    }
}
