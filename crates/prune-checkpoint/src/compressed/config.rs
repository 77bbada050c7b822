use prune_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SparseFormat;

/// The `sparsity_config` of compressed-tensors, inside of `quantization_config` in `config.json`.
///
/// ```
/// use prune_checkpoint::{SparseFormat, SparsityConfig};
///
/// let json = serde_json::json!({"quantization_config": {
///     "quant_method": "compressed-tensors",
///     "sparsity_config": {
///         "format": "sparse-24-bitmask", "global_sparsity": 0.43, "sparsity_structure": "2:4",
///         "targets": ["Linear"], "ignore": ["lm_head"],
///     },
/// }});
/// let config = SparsityConfig::of_model(&json)?.unwrap();
/// assert_eq!(config.sparse_format()?, Some(SparseFormat::Bitmask24));
/// assert_eq!(config.ignore, ["lm_head"]);
/// assert_eq!(SparsityConfig::of_model(&serde_json::json!({}))?, None);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SparsityConfig {
    /// `sparse-bitmask`, `sparse-24-bitmask`, `marlin-24` or `dense`.
    pub format: String,
    /// The part of all parameters that is zero.
    #[serde(default)]
    pub global_sparsity: f64,
    /// `unstructured`, `2:4` or `0:0`.
    #[serde(default)]
    pub sparsity_structure: String,
    /// Class names, module names, or `re:` and a pattern.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Modules that are left out, as in `targets`.
    #[serde(default)]
    pub ignore: Vec<String>,
}

impl SparsityConfig {
    /// The configuration for weights in `format`, of which `global_sparsity` are zero.
    pub fn new(format: SparseFormat, global_sparsity: f64) -> Self {
        let structure = match format {
            SparseFormat::Bitmask => "unstructured",
            SparseFormat::Bitmask24 => "2:4",
        };
        Self {
            format: format.name().to_string(),
            global_sparsity,
            sparsity_structure: structure.to_string(),
            targets: vec!["Linear".to_string()],
            ignore: Vec::new(),
        }
    }

    /// What the `config.json` of a model says; `None` when it says nothing.
    ///
    /// # Errors
    /// [`Error::External`] when the field has another structure.
    pub fn of_model(config: &Value) -> Result<Option<Self>> {
        let field = "quantization_config.sparsity_config";
        let found = config.pointer("/quantization_config/sparsity_config");
        match found {
            None | Some(Value::Null) => Ok(None),
            // A model that is quantised only has an empty one.
            Some(Value::Object(o)) if o.is_empty() => Ok(None),
            Some(found) => Self::deserialize(found)
                .map(Some)
                .map_err(|e| Error::external(field.to_string(), e)),
        }
    }

    /// The format of the tensors; `None` for `dense`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a format that cannot be decompressed, such as `marlin-24`.
    pub fn sparse_format(&self) -> Result<Option<SparseFormat>> {
        match self.format.as_str() {
            "dense" => Ok(None),
            "sparse-bitmask" => Ok(Some(SparseFormat::Bitmask)),
            "sparse-24-bitmask" => Ok(Some(SparseFormat::Bitmask24)),
            other => Err(Error::OutOfRange {
                what: "sparsity_config.format".to_string(),
                found: format!("`{other}`"),
                expected: "`sparse-bitmask`, `sparse-24-bitmask` or `dense`".to_string(),
            }),
        }
    }
}
