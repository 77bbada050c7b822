use std::path::Path;

use ndarray::{Array4, ArrayView4, Axis};
use prune_checkpoint::{Checkpoint, Hasher};
use prune_core::{TensorSource, decode_f32};

use crate::{Error, Result};

/// Images of one size, normalised as the model was trained: calibration samples.
///
/// ```
/// use prune_pipeline::Images;
/// let images = Images::new(ndarray::Array4::zeros((2, 3, 8, 8)))?;
/// assert_eq!((images.len(), images.shape()), (2, [3, 8, 8]));
/// # Ok::<(), prune_pipeline::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    values: Array4<f32>,
}

/// The names under which a file may hold images.
const NAMES: [&str; 2] = ["images", "pixel_values"];

impl Images {
    /// Images `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// [`Error::Plan`] when there is no image or no pixel, or a value is not finite.
    pub fn new(values: Array4<f32>) -> Result<Self> {
        Self::checked(values).map_err(|reason| Error::plan("images", reason))
    }

    /// The images of a safetensors file: its tensor `images` or `pixel_values` of shape `(batch,
    /// channels, height, width)` in F32, F16 or BF16. The first `count` when given and there are
    /// more. Tensors of other names are ignored.
    ///
    /// # Errors
    /// [`Error::Images`] saying what was found and expected; [`Error::Checkpoint`] for a file that
    /// is no safetensors file or is damaged.
    pub fn from_safetensors(path: &Path, count: Option<usize>) -> Result<Self> {
        let bad = |reason: String| Error::Images { path: path.into(), reason };
        let file = Checkpoint::open(path)?;
        let found: Vec<_> =
            file.tensors().iter().filter(|t| NAMES.contains(&t.name.as_str())).collect();
        let info = match found[..] {
            [info] => info,
            [] => {
                let names: Vec<&str> =
                    file.tensors().iter().map(|t| t.name.as_str()).take(8).collect();
                let found = if names.is_empty() { "none".to_string() } else { names.join(", ") };
                return Err(bad(format!(
                    "no tensor `images` or `pixel_values`; the tensors are: {found}"
                )));
            }
            _ => return Err(bad("holds both `images` and `pixel_values`; expected one".into())),
        };
        let [all, channels, height, width] = info.shape[..] else {
            return Err(bad(format!(
                "`{}` has the shape {:?}; expected (batch, channels, height, width)",
                info.name, info.shape
            )));
        };
        if !info.dtype.is_float() {
            return Err(bad(format!(
                "`{}` is {}; expected normalised pixels in F32, F16 or BF16",
                info.name, info.dtype
            )));
        }
        let images = count.map_or(all, |count| count.min(all));
        // The header was checked against the size of the file: this is less.
        let mut bytes = vec![0; images * (info.nbytes() / all.max(1))];
        file.read_at(&info.name, 0, &mut bytes)?;
        let values = decode_f32(&info.name, info.dtype, &bytes)?;
        let values = Array4::from_shape_vec((images, channels, height, width), values)
            .map_err(|e| bad(e.to_string()))?;
        Self::checked(values).map_err(|reason| bad(format!("`{}`: {reason}", info.name)))
    }

    fn checked(values: Array4<f32>) -> Result<Self, String> {
        if values.is_empty() {
            return Err(format!("the shape {:?} holds no pixel", values.shape()));
        }
        let image = values.len() / values.len_of(Axis(0));
        if let Some((i, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(format!("element {} of image {} is {value}", i % image, i / image));
        }
        Ok(Self { values: values.as_standard_layout().into_owned() })
    }

    /// The number of images; at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.values.len_of(Axis(0))
    }

    /// Channels, height and width of an image.
    pub fn shape(&self) -> [usize; 3] {
        let (_, channels, height, width) = self.values.dim();
        [channels, height, width]
    }

    /// Batches of `count` images, in order; the last may be smaller.
    pub(crate) fn batches(&self, count: usize) -> impl Iterator<Item = ArrayView4<'_, f32>> {
        self.values.axis_chunks_iter(Axis(0), count.max(1))
    }

    /// Bytes that the images take.
    pub(crate) fn nbytes(&self) -> u64 {
        4 * self.values.len() as u64
    }

    /// A digest of the shape and all pixels.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Hasher::default();
        for size in self.values.shape() {
            hash.update(&(*size as u64).to_le_bytes());
        }
        for image in self.values.outer_iter() {
            let bytes: Vec<u8> = image.iter().flat_map(|v| v.to_le_bytes()).collect();
            hash.update(&bytes);
        }
        hash.finish()
    }
}
