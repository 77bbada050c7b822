use std::path::PathBuf;

use prune_core::{BlockModel, ImageModel};

use crate::calibrate::TokenCalibration;
use crate::gradients::ImageCalibration;
use crate::plan::CalibrationShape;
use crate::{Error, Images, MemoryBudget, Result, TokenWindows};

/// A model that can be run, and what to run it on: token windows a block at a time, or images
/// through the whole network for its gradients.
///
/// ```no_run
/// # use prune_core::BlockModel;
/// # use prune_pipeline::{Calibration, TokenWindows};
/// # fn f(model: &dyn BlockModel, windows: &TokenWindows) -> prune_pipeline::Result<()> {
/// let calibration = Calibration::new(model, windows).memory("2GiB".parse()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Calibration<'a>(Data<'a>);

#[derive(Clone)]
enum Data<'a> {
    Tokens(TokenCalibration<'a>),
    Images(ImageCalibration<'a>),
}

impl<'a> Calibration<'a> {
    /// A model and its token windows. Without a memory budget nothing is spilled.
    pub fn new(model: &'a dyn BlockModel, windows: &'a TokenWindows) -> Self {
        Self(Data::Tokens(TokenCalibration::new(model, windows)))
    }

    /// A model and the images over which its gradients are averaged, once: what `lpvit` reads.
    ///
    /// ```no_run
    /// # use prune_core::ImageModel;
    /// # use prune_pipeline::{Calibration, Images};
    /// # fn f(model: &dyn ImageModel) -> prune_pipeline::Result<()> {
    /// let images = Images::from_safetensors("images.safetensors".as_ref(), Some(512))?;
    /// let calibration = Calibration::on_images(model, &images);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_images(model: &'a dyn ImageModel, images: &'a Images) -> Self {
        Self(Data::Images(ImageCalibration::new(model, images)))
    }

    /// Keeps to this budget: hidden states go to a temporary file where they must.
    pub fn memory(mut self, budget: MemoryBudget) -> Self {
        match &mut self.0 {
            Data::Tokens(tokens) => tokens.memory = budget,
            Data::Images(images) => images.memory = budget,
        }
        self
    }

    /// The directory of that temporary file; the system's by default.
    pub fn spill_to(mut self, directory: impl Into<PathBuf>) -> Self {
        if let Data::Tokens(tokens) = &mut self.0 {
            tokens.spill = directory.into();
        }
        self
    }

    /// The token windows and their model, for `what`, which reads them.
    pub(crate) fn tokens(&self, what: &str) -> Result<&TokenCalibration<'a>> {
        match &self.0 {
            Data::Tokens(tokens) => Ok(tokens),
            Data::Images(_) => Err(Error::OtherData {
                what: what.into(),
                needed: "a text or token windows",
                found: "images",
            }),
        }
    }

    /// The images and their model, for `what`, which reads them.
    pub(crate) fn images(&self, what: &str) -> Result<&ImageCalibration<'a>> {
        match &self.0 {
            Data::Images(images) => Ok(images),
            Data::Tokens(_) => Err(Error::OtherData {
                what: what.into(),
                needed: "images, as a .safetensors file,",
                found: "token windows",
            }),
        }
    }

    /// Whether the model sends tokens to some of its layers only.
    pub(crate) fn is_routed(&self) -> bool {
        matches!(&self.0, Data::Tokens(tokens) if tokens.model.is_routed())
    }

    /// How much data there is.
    pub(crate) fn shape(&self) -> CalibrationShape {
        match &self.0 {
            Data::Tokens(tokens) => CalibrationShape::Tokens {
                samples: tokens.samples(),
                seqlen: tokens.windows.length(),
            },
            Data::Images(images) => {
                let size = images.images.shape();
                CalibrationShape::Images { images: images.images.len(), size }
            }
        }
    }

    /// A digest of the data.
    pub(crate) fn digest(&self) -> String {
        match &self.0 {
            Data::Tokens(tokens) => prune_checkpoint::digest(&tokens.windows.bytes()),
            Data::Images(images) => images.images.digest(),
        }
    }
}
