//! Training state as one file: tensors as safetensors, the rest as JSON in its metadata.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use prune_core::{DType, decode_f32};
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

/// The tensors of all parameters in what [`named`] gave.
///
/// # Errors
/// [`prune_core::Error::UnknownTensor`], [`prune_core::Error::Shape`].
pub(crate) fn of_parameters(
    prefix: &str,
    parameters: &Parameters,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<Vec<Tensor>> {
    let of = |parameter: &crate::Parameter| {
        let name = format!("{prefix}{}", parameter.name());
        let tensor = tensors.get(&name).cloned();
        let tensor = tensor.ok_or(prune_core::Error::UnknownTensor(name))?;
        if tensor.dims() != parameter.var().dims() {
            let (found, expected) = (tensor.dims(), parameter.var().dims());
            return Err(Error::shape(parameter.name(), found, expected));
        }
        Ok(tensor)
    };
    parameters.iter().map(of).collect()
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

/// Takes up weights from a safetensors file of any program, in F32, F16, BF16 or F64; other tensors
/// in the file are left alone. Nothing changes unless all parameters are there, in their shapes.
///
/// # Errors
/// [`Error::File`]; [`Error::Format`] for a file that is none, or a type that is not floating;
/// [`prune_core::Error::UnknownTensor`], [`prune_core::Error::Shape`],
/// [`prune_core::Error::NotFinite`] naming the parameter.
///
/// ```
/// use prune_core::Seed;
/// use prune_train::vision::Network;
/// use prune_train::{Model, load_weights, save_weights};
///
/// let folder = std::env::temp_dir().join("prune-train-load-weights");
/// let path = folder.join("model.safetensors");
/// let [trained, other] = [0, 1].map(|seed| Network::mlp(&[1, 2, 2], &[3], 2)?.build(Seed::new(seed)));
/// let (trained, other) = (trained?, other?);
/// save_weights(trained.parameters(), &path)?;
/// load_weights(other.parameters(), &path)?;
/// assert_eq!(trained.logits(&[1.0; 4])?, other.logits(&[1.0; 4])?);
/// # std::fs::remove_dir_all(folder).ok();
/// # Ok::<(), prune_train::Error>(())
/// ```
pub fn load_weights(parameters: &Parameters, path: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(|e| Error::file(path, e))?;
    let all = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::format(path, "file", e, "a safetensors file"))?;
    let mut tensors = BTreeMap::new();
    for name in parameters.iter().map(|p| p.name()) {
        let unknown = |_| prune_core::Error::UnknownTensor(name.to_string());
        let view = all.tensor(name).map_err(unknown)?;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => {
                let (found, expected) = (format!("{other:?}"), "F32, F16, BF16 or F64");
                return Err(Error::format(path, name, found, expected));
            }
        };
        let values = decode_f32(name, dtype, view.data())?;
        prune_core::check_finite(name, &values)?;
        let tensor = Tensor::from_vec(values, view.shape(), &Device::Cpu)?;
        tensors.insert(name.to_string(), tensor);
    }
    parameters.restore(&of_parameters("", parameters, &tensors)?)
}
