use std::path::{Path, PathBuf};

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
    /// The kind of processor that ran the model, see [`processor`](crate::processor); absent for
    /// data-free work, whose bytes depend on nothing but the source and the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
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
    /// SHA-256 of the bytes that were written; where codes, scales and so on are tensors of their
    /// own, of all of them in the order in which the format names them.
    pub digest: String,
    /// The figures of a pruned tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<PrunedRecord>,
    /// The figures of a quantised tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<QuantizedRecord>,
}

impl TensorRecord {
    pub(crate) fn new(name: &str, source_digest: String, digest: String) -> Self {
        Self { name: name.into(), source_digest, digest, pruned: None, quantized: None }
    }

    pub(crate) fn pruned(self, record: PrunedRecord) -> Self {
        Self { pruned: Some(record), ..self }
    }

    pub(crate) fn quantized(self, record: QuantizedRecord) -> Self {
        Self { quantized: Some(record), ..self }
    }

    /// Fallbacks taken and whatever else is worth knowing, in words.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        let pruned = self.pruned.iter().flat_map(|p| &p.notes);
        pruned.chain(self.quantized.iter().flat_map(|q| &q.notes)).map(String::as_str)
    }
}

/// The figures of a quantised tensor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizedRecord {
    /// Bytes of codes, scales and zero points.
    pub bytes: usize,
    /// Their bits over the weights.
    pub bits_per_weight: f64,
    /// Calibration tokens that reached the layer; 0 without calibration.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens: u64,
    /// Relative squared error of the layer's output on the calibration data, as in
    /// [`PrunedRecord::relative_error`].
    pub relative_error: f64,
    /// What the method minimised, at its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The damping that the method added, as a part of the mean diagonal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// How often the damping was raised because a factorisation failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub damping_raised: u32,
    /// Input channels that were 0 for every token.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dead_columns: usize,
    /// Fallbacks taken and whatever else is worth knowing, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The figures of a pruned tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunedRecord {
    /// The part of the weights that was to be removed.
    pub target_sparsity: f64,
    /// Zeros in the result over all weights: those removed, and kept weights that were zero before.
    pub sparsity: f64,
    /// Zeros in the result.
    pub zeros: usize,
    /// Calibration tokens that reached the layer; 0 without calibration.
    pub tokens: u64,
    /// Relative squared error of the layer's output on the calibration data with the removed
    /// weights at 0 and the others as they were: `tr(D G Dᵀ) / tr(W G Wᵀ)`, with `G` the Gram
    /// matrix of the input where the method has one, else its diagonal (correlations between
    /// channels left out), or the identity without calibration.
    pub mask_error: f64,
    /// The same of what was written; differs where a method also changes the weights that stay.
    pub relative_error: f64,
    /// The damping that the method added, as a part of the mean diagonal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// How often the damping was raised because a factorisation failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub damping_raised: u32,
    /// Input channels that were 0 for every token.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dead_columns: usize,
    /// Iterations of an iterative method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iterations: Option<u32>,
    /// Fallbacks taken and whatever else is worth knowing, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    /// Where the manifest of an output is: in a directory, beside a file.
    ///
    /// ```
    /// let path = prune_pipeline::Manifest::path("out/model.gguf".as_ref());
    /// assert_eq!(path, std::path::Path::new("out/model.gguf.prune-manifest.json"));
    /// ```
    pub fn path(out: &Path) -> PathBuf {
        let is_file = out.is_file() || out.extension().is_some_and(|e| e == "gguf");
        if !is_file || out.is_dir() {
            return out.join(MANIFEST);
        }
        let mut name = out.file_name().unwrap_or_default().to_os_string();
        name.push(".");
        name.push(MANIFEST);
        out.with_file_name(name)
    }

    /// The manifest of a checkpoint directory or file.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, [`Error::Plan`] when it does not parse.
    pub fn read(out: &Path) -> Result<Self> {
        let path = Self::path(out);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
        Self::from_json(&text)
    }

    /// The manifest that a JSON text states.
    ///
    /// # Errors
    /// [`Error::Plan`].
    pub fn from_json(text: &str) -> Result<Self> {
        let manifest: Self = serde_json::from_str(text).map_err(|e| Error::plan(MANIFEST, e))?;
        if manifest.format != "prune-manifest/1" {
            let reason = format!("format `{}` is unknown", manifest.format);
            return Err(Error::plan(MANIFEST, reason));
        }
        Ok(manifest)
    }

    /// The manifest as indented JSON.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::plan(MANIFEST, e))
    }
}
