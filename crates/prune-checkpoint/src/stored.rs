use std::path::Path;

use prune_core::{DType, TensorInfo, TensorSource};

use crate::{Checkpoint, GgufType, Result};

/// The tensors of a checkpoint as their bytes lie on the disk, without dequantising: what digests
/// are taken of.
///
/// Those of safetensors files are as [`Checkpoint`] gives them. Those of a GGUF file are bytes
/// (`U8`, one dimension) under their Hugging Face names, rows of queries and keys in Hugging Face
/// order.
///
/// ```no_run
/// use prune_checkpoint::{StoredTensors, tensor_digest};
/// let file = StoredTensors::open("model.gguf".as_ref())?;
/// let name = "model.layers.0.mlp.up_proj.weight";
/// println!("{:?} {}", file.kind(name), tensor_digest(&file, name)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StoredTensors {
    checkpoint: Checkpoint,
    tensors: Vec<TensorInfo>,
}

impl StoredTensors {
    /// The checkpoint at `path`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let tensors = match checkpoint.gguf() {
            None => checkpoint.tensors().to_vec(),
            Some(source) => {
                let stored = |(i, t): (usize, &TensorInfo)| {
                    let kind = source.kind(i);
                    let bytes = t.numel() / kind.elements() * kind.bytes();
                    TensorInfo { name: t.name.clone(), dtype: DType::U8, shape: vec![bytes] }
                };
                source.tensors().iter().enumerate().map(stored).collect()
            }
        };
        Ok(Self { checkpoint, tensors })
    }

    /// The checkpoint that delivers the same tensors as numbers.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How a tensor of a GGUF file is stored; `None` for other checkpoints and unknown names.
    pub fn kind(&self, name: &str) -> Option<GgufType> {
        let source = self.checkpoint.gguf()?;
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        Some(source.kind(at))
    }
}

impl TensorSource for StoredTensors {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let Some(source) = self.checkpoint.gguf() else {
            return self.checkpoint.read_at(name, offset, buf);
        };
        let index = self
            .tensors
            .binary_search_by(|t| t.name.as_str().cmp(name))
            .map_err(|_| prune_core::Error::UnknownTensor(name.to_string()))?;
        let size = self.tensors[index].nbytes();
        if offset.checked_add(buf.len()).is_none_or(|end| end > size) {
            return Err(prune_core::Error::OutOfRange {
                what: format!("the range read from tensor `{name}`"),
                found: format!("{} bytes from byte {offset} on", buf.len()),
                expected: format!("a range within its {size} bytes"),
            });
        }
        Ok(source.read_stored(index, offset, buf)?)
    }
}
