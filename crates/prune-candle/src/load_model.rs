use prune_core::{BlockModel, TensorSource};
use serde_json::Value;

use crate::{BertModel, ENCODER_FAMILIES, LlamaModel, Result};

/// The model that `config` describes, of whichever family its `model_type` is, with its tensors in
/// `weights`.
///
/// ```no_run
/// use prune_checkpoint::Checkpoint;
/// let checkpoint = Checkpoint::open("all-MiniLM-L6-v2".as_ref())?;
/// let model = prune_candle::load_model(&checkpoint.config()?, &checkpoint)?;
/// assert_eq!(model.kind(), prune_core::ModelKind::Encoder);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::UnsupportedModel`](crate::Error::UnsupportedModel) for a family that this crate does
/// not run; those of [`LlamaModel::new`] and [`BertModel::new`].
pub fn load_model(config: &Value, weights: &dyn TensorSource) -> Result<Box<dyn BlockModel>> {
    let family = config.get("model_type").and_then(Value::as_str);
    if family.is_some_and(|family| ENCODER_FAMILIES.contains(&family)) {
        return Ok(Box::new(BertModel::new(config, weights)?));
    }
    // Names the families when it is none of them either.
    Ok(Box::new(LlamaModel::new(config, weights)?))
}
