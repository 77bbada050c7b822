use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Plan, Result};

/// The name of the manifest beside the weights.
pub const MANIFEST: &str = "prune-manifest.json";

/// What a run did: the plan, and for each tensor the digests before and after and the figures.
/// Holds no times and no paths, so that two runs of the same plan write the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this format: `prune-manifest/1`.
    pub format: String,
    /// The version of this crate.
    pub version: String,
    /// The plan that was executed.
    pub plan: Plan,
    /// Digest of the calibration token ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_digest: Option<String>,
    /// Every tensor, by name.
    pub tensors: Vec<TensorRecord>,
    /// The files beside the weights.
    pub files: Vec<FileRecord>,
}

/// One tensor of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// SHA-256 of the source's bytes.
    pub source_digest: String,
    /// SHA-256 of the bytes that were written.
    pub digest: String,
    /// The figures of a pruned tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<PrunedRecord>,
}

/// The figures of a pruned tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunedRecord {
    /// Zeros in the result: those removed, and kept weights that were zero before.
    pub zeros: usize,
    /// Zeros in the result over all weights.
    pub sparsity: f64,
    /// Calibration tokens that reached the layer.
    pub tokens: u64,
    /// Relative squared error of the output, `Σ ΔW²a / Σ W²a`, with `a` the squared norms of the
    /// input channels (correlations between channels left out), or all 1 without calibration.
    pub relative_error: f64,
}

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its name.
    pub name: String,
    /// SHA-256 of its bytes.
    pub digest: String,
}

impl Manifest {
    /// The manifest of a checkpoint directory.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, [`Error::Plan`] when it does not parse.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
        let manifest: Self = serde_json::from_str(&text).map_err(|e| Error::plan(MANIFEST, e))?;
        if manifest.format != "prune-manifest/1" {
            let reason = format!("format `{}` is unknown", manifest.format);
            return Err(Error::plan(MANIFEST, reason));
        }
        Ok(manifest)
    }
}
