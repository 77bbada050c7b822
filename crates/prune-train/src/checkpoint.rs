//! Training state as one file: tensors as safetensors, the rest as JSON in its metadata.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};

use crate::values::with_values;
use crate::{Error, Parameters, Result};

/// The key of the JSON in the metadata; the only one, since the order of several is not fixed.
const KEY: &str = "training";

/// Writes tensors and a JSON value. The file appears whole or not at all: it is written beside its
/// place, synchronised and renamed.
pub(crate) fn write(
    path: &Path,
    tensors: Vec<(String, Tensor)>,
    state: &serde_json::Value,
) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::file(folder, e))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let views: Vec<(String, Stored)> = tensors.into_iter().map(|(n, t)| (n, Stored(t))).collect();
    let metadata = HashMap::from([(KEY.to_string(), state.to_string())]);
    serialize_to_file(views, Some(metadata), &partial)
        .map_err(|e| Error::file(&partial, std::io::Error::other(e)))?;
    let sync = || fs::File::open(&partial)?.sync_all();
    sync().map_err(|e| Error::file(&partial, e))?;
    fs::rename(&partial, path).map_err(|e| Error::file(path, e))
}

/// What [`write`] wrote.
pub(crate) fn read(path: &Path) -> Result<(BTreeMap<String, Tensor>, serde_json::Value)> {
    let bytes = fs::read(path).map_err(|e| Error::file(path, e))?;
    let broken = |e: String| Error::format(path, "file", e, "a training checkpoint");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
    let json = metadata.metadata().as_ref().and_then(|m| m.get(KEY));
    let json = json.ok_or_else(|| broken(format!("a file without `{KEY}` in its metadata")))?;
    let state = serde_json::from_str(json).map_err(|e| broken(e.to_string()))?;
    let all = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in all.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(Error::format(path, name, format!("{:?}", view.dtype()), "F32"));
        }
        let (values, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        prune_core::check_finite(name, &values)?;
        tensors.insert(name.to_string(), Tensor::from_vec(values, view.shape(), &Device::Cpu)?);
    }
    Ok((tensors, state))
}

/// The values of all parameters under a prefix.
pub(crate) fn named(prefix: &str, parameters: &Parameters) -> Vec<(String, Tensor)> {
    let tensor = |p: &crate::Parameter| (format!("{prefix}{}", p.name()), p.var().detach());
    parameters.iter().map(tensor).collect()
}

/// Takes up what [`named`] gave.
pub(crate) fn take(
    prefix: &str,
    parameters: &Parameters,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    for parameter in parameters.iter() {
        let name = format!("{prefix}{}", parameter.name());
        let missing = || Error::Core(prune_core::Error::UnknownTensor(name.clone()));
        parameters.set(parameter.name(), tensors.get(&name).ok_or_else(missing)?)?;
    }
    Ok(())
}

/// A tensor of f32 whose bytes are made when they are written, one tensor at a time.
struct Stored(Tensor);

impl View for Stored {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = with_values(&self.0, |values| {
            Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
        });
        // Only a tensor of another type fails, and all are made as f32; an empty one is then
        // refused by its length.
        Cow::Owned(bytes.unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        4 * self.0.elem_count()
    }
}

/// Writes the values of the parameters, without training state, as a safetensors file for any
/// framework.
///
/// # Errors
/// [`Error::File`].
pub fn save_weights(parameters: &Parameters, path: &Path) -> Result<()> {
    write(path, named("", parameters), &serde_json::Value::Null)
}

/// Takes up weights that [`save_weights`] or another program wrote in f32; names and shapes must
/// be those of the parameters.
///
/// # Errors
/// [`Error::File`], [`Error::Format`]; [`prune_core::Error::UnknownTensor`],
/// [`prune_core::Error::Shape`] naming the parameter.
pub fn load_weights(parameters: &Parameters, path: &Path) -> Result<()> {
    take("", parameters, &read(path)?.0)
}
