use crate::{Error, LayerId, Result};

/// How much of all layers together may stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    sparsity: f64,
}

impl Budget {
    /// The fraction of all weights to remove, `0 <= sparsity < 1`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn sparsity(sparsity: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&sparsity) {
            return Err(Error::out_of_range("sparsity", sparsity, "0 <= sparsity < 1"));
        }
        Ok(Self { sparsity })
    }
}

/// What each layer was given, in the order of the layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation<S> {
    /// Layer and share.
    pub shares: Vec<(LayerId, S)>,
}
