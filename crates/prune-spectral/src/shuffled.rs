use prune_core::SeedStream;
use prune_linalg::{Real, Workspace};

use crate::decomposition::{Decomposition, squared_singular_values};
use crate::spectrum::CONV_NORM;
use crate::{Result, Spectrum, Weight};

/// The pooled spectrum of `replicas` copies of a weight, with the elements of each matrix shuffled.
///
/// What a weight of the same elements, but without correlations, would have. Memory and cost of
/// each replica are those of [`Spectrum::of`].
///
/// # Errors
/// As [`Spectrum::of`].
///
/// ```
/// use prune_core::Seed;
/// use prune_spectral::{Spectrum, shuffled_spectrum};
/// let stripes = ndarray::Array2::from_shape_fn((40, 30), |(i, _)| (i % 2) as f32);
/// let shuffled = shuffled_spectrum(stripes.view(), 1, &mut Seed::new(1).stream("stripes"))?;
/// let spectrum = Spectrum::of(stripes.view())?;
/// // The same norm, but not all of it in one direction.
/// assert!((shuffled.sum() - spectrum.sum()).abs() < 1e-9);
/// assert!(shuffled.largest() < 0.9 * spectrum.largest());
/// # Ok::<(), prune_spectral::Error>(())
/// ```
pub fn shuffled_spectrum<'a, T: Real>(
    weight: impl Into<Weight<'a, T>>,
    replicas: usize,
    stream: &mut SeedStream,
) -> Result<Spectrum> {
    let weight = weight.into();
    weight.check()?;
    let scale = match weight {
        Weight::Linear(_) => 1.0,
        Weight::Conv2d(_) => CONV_NORM,
    };
    let (longer, shorter) = (weight.longer(), weight.shorter());
    let matrices = weight.matrices();
    let mut values = Vec::with_capacity(replicas * matrices.len() * shorter);
    let mut workspace = Workspace::default();
    for _ in 0..replicas {
        for matrix in &matrices {
            let mut shuffled = matrix.as_standard_layout().into_owned();
            if let Some(elements) = shuffled.as_slice_mut() {
                for i in (1..elements.len()).rev() {
                    elements.swap(i, stream.below(i as u64 + 1) as usize);
                }
            }
            let squares =
                squared_singular_values(shuffled.view(), Decomposition::Auto, &mut workspace)?;
            values.extend(squares.iter().map(|v| v * scale));
        }
    }
    values.sort_unstable_by(f64::total_cmp);
    Ok(Spectrum::pooled(values, longer, shorter, replicas * matrices.len()))
}
