use std::collections::BTreeMap;
use std::path::Path;

use prune_core::{LayerId, QuantScheme, QuantizedMatrix, TensorInfo, TensorSink, TensorSource};

use super::QuantFormat;
use crate::{Checkpoint, Contents, Error, HfWriter, Result, WriterOptions};

/// How a [`QuantizedWriter`] writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizedOptions {
    /// The most bytes of tensors in one file; see [`WriterOptions::shard_size`].
    pub shard_size: u64,
    /// Whether a model directory at the output is replaced, once the new one is complete.
    pub overwrite: bool,
}

impl Default for QuantizedOptions {
    fn default() -> Self {
        Self { shard_size: WriterOptions::default().shard_size, overwrite: false }
    }
}

/// Writes a model directory whose linear layers are codes, a tensor at a time.
///
/// Configuration, tokenizer and the other files come from the source, with `quantization_config`
/// added to `config.json`.
///
/// ```
/// use prune_checkpoint::{Checkpoint, QuantizedOptions, QuantizedWriter, quant_format};
/// use prune_core::{LayerId, LayerStats, QuantScheme, QuantTarget, Quantizer, TensorSource};
/// # fn convert(model: &std::path::Path, out: &std::path::Path, quantizer: &dyn Quantizer)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// let source = Checkpoint::open(model)?;
/// let scheme: QuantScheme = "int4 g128".parse()?;
/// let linear = |name: &str| name.contains("_proj") && name.ends_with(".weight");
/// let layers: Vec<(LayerId, QuantScheme)> = source
///     .tensors()
///     .iter()
///     .filter(|t| linear(&t.name))
///     .map(|t| (LayerId::from_tensor(&t.name), scheme))
///     .collect();
/// let format = quant_format("compressed-tensors").expect("listed");
/// let options = QuantizedOptions::default();
/// let mut writer = QuantizedWriter::create(out, &source, format, layers, &options)?;
/// for tensor in source.tensors() {
///     if linear(&tensor.name) {
///         let layer = LayerId::from_tensor(&tensor.name);
///         let target = QuantTarget { layer: &layer, scheme, keep: None };
///         let weight = source.read_matrix(&tensor.name)?;
///         let done = quantizer.quantize(weight.view(), &LayerStats::default(), &target)?;
///         writer.write_quantized(&layer, &done.matrix)?;
///     } else {
///         writer.write_dense(tensor, &source.read(&tensor.name)?)?;
///     }
/// }
/// writer.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct QuantizedWriter {
    inner: HfWriter,
    format: Box<dyn QuantFormat>,
    layers: BTreeMap<LayerId, QuantScheme>,
}

impl QuantizedWriter {
    /// A writer of the directory `out` for the tensors of `source`, of which the weights of
    /// `layers` become codes.
    ///
    /// # Errors
    /// [`Error::Plan`] for a layer that the source does not have, or twice; those of
    /// [`QuantFormat::plan`], [`QuantFormat::config`] and [`HfWriter::create`].
    pub fn create(
        out: &Path,
        source: &Checkpoint,
        format: Box<dyn QuantFormat>,
        layers: Vec<(LayerId, QuantScheme)>,
        options: &QuantizedOptions,
    ) -> Result<Self> {
        let refuse = |layer: &LayerId, reason: &str| Error::Plan {
            what: layer.weight_name(),
            reason: reason.to_string(),
        };
        let mut wanted = BTreeMap::new();
        for (layer, scheme) in &layers {
            if source.info(&layer.weight_name()).is_err() {
                return Err(refuse(layer, "the source has no such tensor"));
            }
            if wanted.insert(layer.clone(), *scheme).is_some() {
                return Err(refuse(layer, "the layer is listed twice"));
            }
        }
        let mut plan = Vec::new();
        let mut dense = Vec::new();
        for tensor in source.tensors() {
            let layer = LayerId::from_tensor(&tensor.name);
            match (wanted.get(&layer), tensor.name.ends_with(".weight"), &tensor.shape[..]) {
                (Some(scheme), true, [rows, cols]) => {
                    plan.extend(format.plan(&layer, *rows, *cols, scheme)?);
                }
                (Some(_), true, _) => {
                    return Err(refuse(&layer, "only matrices can be quantised"));
                }
                (_, is_weight, shape) => {
                    if is_weight && shape.len() == 2 && !tensor.name.contains("embed") {
                        dense.push(layer);
                    }
                    plan.push(tensor.clone());
                }
            }
        }
        if !dense.contains(&LayerId::new("lm_head")) {
            // Where it shares the embedding it has no tensor, and is a linear layer all the same.
            dense.push(LayerId::new("lm_head"));
        }
        let layers: Vec<_> = wanted.iter().map(|(l, s)| (l.clone(), *s)).collect();
        let quantization = format.config(&layers, &dense)?;
        let mut inner = HfWriter::create(
            out,
            WriterOptions {
                plan,
                shard_size: options.shard_size,
                overwrite: options.overwrite,
                source: Some(source.path().to_path_buf()),
                ..WriterOptions::default()
            },
        )?;
        for file in source.auxiliary_files()? {
            if file.name != "config.json" {
                inner.copy_file(&file)?;
            }
        }
        let mut config = source.config()?;
        if let Some(fields) = config.as_object_mut() {
            fields.insert("quantization_config".to_string(), quantization);
        }
        inner.copy_file(&crate::AuxiliaryFile {
            name: "config.json".to_string(),
            contents: Contents::Bytes(format!("{config:#}\n").into_bytes()),
        })?;
        for (name, contents) in format.files(&layers)? {
            inner.add_file(name, format!("{contents:#}\n").as_bytes())?;
        }
        Ok(Self { inner, format, layers: wanted })
    }

    /// Writes the codes of a layer.
    ///
    /// # Errors
    /// [`Error::NotPlanned`] for a layer that was not to be quantised; [`Error::PlanMismatch`] for
    /// another scheme or shape than planned; those of [`QuantFormat::encode`]; [`Error::Io`].
    pub fn write_quantized(&mut self, layer: &LayerId, matrix: &QuantizedMatrix) -> Result<()> {
        let tensor = || layer.weight_name();
        let planned =
            self.layers.get(layer).ok_or_else(|| Error::NotPlanned { tensor: tensor() })?;
        if *planned != matrix.scheme() {
            return Err(Error::PlanMismatch {
                tensor: tensor(),
                field: "scheme",
                found: matrix.scheme().to_string(),
                expected: planned.to_string(),
            });
        }
        for (info, bytes) in self.format.encode(layer, matrix)? {
            self.inner.write_tensor(&info, &bytes)?;
        }
        Ok(())
    }

    /// Writes a tensor that stays as it is.
    ///
    /// # Errors
    /// As [`HfWriter::write_tensor`].
    pub fn write_dense(&mut self, info: &TensorInfo, bytes: &[u8]) -> Result<()> {
        self.inner.write_tensor(info, bytes)
    }

    /// Completes the directory; see [`HfWriter::finish`].
    ///
    /// # Errors
    /// [`Error::NotWritten`]; [`Error::OutputExists`]; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        self.inner.finish()
    }
}

impl TensorSink for QuantizedWriter {
    /// Writes a tensor that stays as it is.
    fn write(&mut self, info: &TensorInfo, bytes: &[u8]) -> prune_core::Result<()> {
        Ok(self.write_dense(info, bytes)?)
    }

    fn finish(self: Box<Self>) -> prune_core::Result<()> {
        Ok(QuantizedWriter::finish(*self)?)
    }
}
