use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use prune_core::TensorInfo;
use serde_json::Value;

use super::block::dequantize;
use super::header::{Header, Stored};
use super::metadata::Metadata;
use super::names::hugging_face_name;
use super::permutation::HeadOrder;
use super::rope::Llama3Scaling;
use super::types::GgufType;
use super::{config, tokenizer, tokenizer_config};
use crate::ranged_file::RangedFile;
use crate::{Error, Result};

/// The tensors of a GGUF file under their Hugging Face names and in Hugging Face row order.
#[derive(Debug)]
pub(crate) struct GgufSource {
    file: RangedFile,
    metadata: Metadata,
    rope: Option<Llama3Scaling>,
    tensors: Vec<TensorInfo>,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    storage: GgufType,
    start: u64,
    /// Elements of a row, the innermost dimensions of a permuted tensor.
    row: usize,
    order: Option<HeadOrder>,
}

/// Stored bytes read at a time while blocks are expanded: enough to make the call cheap, little
/// enough to stay in the cache.
const PIECE: usize = 256 << 10;
/// Above this size the rows of a head are fetched one by one.
const HEAD: usize = 8 << 20;
const ROPE_FACTORS: &str = "rope_freqs.weight";

impl GgufSource {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = RangedFile::open(path)?;
        let Header { metadata, tensors: stored } = Header::read(&file)?;
        let architecture = config::architecture(&metadata)?;
        if metadata.integer("split.count")?.unwrap_or(1) > 1 {
            return Err(metadata.unsupported(
                "a GGUF file split over several files",
                "merge the parts with `llama-gguf-split --merge` first",
            ));
        }
        let blocks = metadata.required(&format!("{architecture}.block_count"))?;
        let mut rope = None;
        let mut seen = HashSet::new();
        let mut found = Vec::with_capacity(stored.len());
        for tensor in stored {
            if tensor.name == ROPE_FACTORS {
                rope = Some(recover_scaling(&file, &metadata, architecture, &tensor)?);
                continue;
            }
            let Some(name) = hugging_face_name(&tensor.name, blocks) else {
                return Err(metadata.unsupported(
                    format!("tensor `{}`", tensor.name),
                    "only the tensors of dense Llama, Mistral, Qwen2 and Qwen3 models are read",
                ));
            };
            if !seen.insert(name.clone()) {
                let path = path.to_path_buf();
                return Err(Error::DuplicateTensor { path, tensor: name });
            }
            let order = head_order(&metadata, architecture, &tensor, &file)?;
            let place = Place {
                storage: tensor.storage,
                start: tensor.start,
                row: tensor.shape.iter().skip(1).product(),
                order,
            };
            let dtype = tensor.storage.delivered();
            found.push((TensorInfo { name, dtype, shape: tensor.shape }, place));
        }
        found.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (tensors, places) = found.into_iter().unzip();
        Ok(GgufSource { file, metadata, rope, tensors, places })
    }

    pub(crate) fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The configuration of the model as `config.json` would hold it.
    pub(crate) fn config(&self) -> Result<Value> {
        config::rebuild(&self.metadata, &self.tensors, self.rope)
    }

    /// The bytes of `tokenizer.json`; `None` when the file has no vocabulary.
    pub(crate) fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        tokenizer::rebuild(&self.metadata)
    }

    /// The contents of `tokenizer_config.json`; `None` when the file has no vocabulary.
    pub(crate) fn tokenizer_config(&self) -> Result<Option<Value>> {
        tokenizer_config::rebuild(&self.metadata)
    }

    /// The contents of `generation_config.json`.
    pub(crate) fn generation_config(&self) -> Result<Value> {
        tokenizer_config::generation(&self.metadata)
    }

    /// Fills `buf` from byte `offset` of the tensor numbered `index`; the range was checked.
    pub(crate) fn read_at(&self, index: usize, offset: usize, buf: &mut [u8]) -> Result<()> {
        let place = self.places[index];
        let name = &self.tensors[index].name;
        match place.order {
            None => self.read_span(name, place.storage, place.start, offset, buf),
            Some(order) => self.read_permuted(name, place, order, offset, buf),
        }
    }

    /// How the tensor numbered `index` is stored.
    pub(crate) fn kind(&self, index: usize) -> GgufType {
        self.places[index].storage
    }

    /// Fills `buf` with stored bytes of the tensor numbered `index` from `offset` on, its rows in
    /// the order in which they are delivered; the range was checked.
    pub(crate) fn read_stored(&self, index: usize, offset: usize, buf: &mut [u8]) -> Result<()> {
        let place = self.places[index];
        let what = format_args!("tensor `{}`", self.tensors[index].name);
        let Some(order) = place.order else {
            return self.file.read_at(what, place.start + offset as u64, buf);
        };
        let row_bytes = place.row / place.storage.elements() * place.storage.bytes();
        order.pieces(offset, buf.len(), row_bytes, |stored, here| {
            self.file.read_at(what, place.start + stored as u64, &mut buf[here])
        })
    }

    /// Delivers bytes `offset..` of the stored run that starts at `start`.
    fn read_span(
        &self,
        name: &str,
        storage: GgufType,
        start: u64,
        offset: usize,
        mut buf: &mut [u8],
    ) -> Result<()> {
        let what = format_args!("tensor `{name}`");
        let GgufType::Blocks(block) = storage else {
            return self.file.read_at(what, start + offset as u64, buf);
        };
        let delivered = 4 * block.elements();
        let per_piece = PIECE / block.bytes();
        let mut first = offset / delivered;
        let mut skip = offset % delivered;
        let mut raw = Vec::new();
        while !buf.is_empty() {
            let blocks = (skip + buf.len()).div_ceil(delivered).min(per_piece);
            raw.resize(blocks * block.bytes(), 0);
            self.file.read_at(what, start + (first * block.bytes()) as u64, &mut raw)?;
            let take = (blocks * delivered - skip).min(buf.len());
            let (now, later) = buf.split_at_mut(take);
            dequantize(block, &raw, skip, now);
            buf = later;
            first += blocks;
            skip = 0;
        }
        Ok(())
    }

    /// As [`GgufSource::read_span`], gathering rows from the order in which they are stored.
    fn read_permuted(
        &self,
        name: &str,
        place: Place,
        order: HeadOrder,
        offset: usize,
        mut buf: &mut [u8],
    ) -> Result<()> {
        let storage = place.storage;
        let stored_row = place.row / storage.elements() * storage.bytes();
        let delivered_row = place.row * storage.delivered().size();
        let head_bytes = order.head_rows().saturating_mul(stored_row);
        let mut at = offset;
        let mut raw = Vec::new();
        let mut held: Option<Range<usize>> = None;
        while !buf.is_empty() {
            let row = at / delivered_row;
            let skip = at % delivered_row;
            let take = (delivered_row - skip).min(buf.len());
            let wanted = order.stored_row(row);
            let (now, later) = buf.split_at_mut(take);
            let last_of_head = (row + 1).is_multiple_of(order.head_rows());
            if !held.as_ref().is_some_and(|rows| rows.contains(&wanted))
                && (head_bytes > HEAD || later.is_empty() || last_of_head)
            {
                // One row of this head alone, or too much to hold: no need for its neighbours.
                let start = place.start + (wanted * stored_row) as u64;
                self.read_span(name, storage, start, skip, now)?;
            } else {
                let head = row / order.head_rows() * order.head_rows();
                let rows = head..head + order.head_rows();
                if held.as_ref() != Some(&rows) {
                    raw.resize(head_bytes, 0);
                    let start = place.start + (head * stored_row) as u64;
                    self.file.read_at(format_args!("tensor `{name}`"), start, &mut raw)?;
                    held = Some(rows);
                }
                let row = &raw[(wanted - head) * stored_row..][..stored_row];
                match storage {
                    GgufType::Plain(_) => now.copy_from_slice(&row[skip..skip + take]),
                    GgufType::Blocks(block) => dequantize(block, row, skip, now),
                }
            }
            at += take;
            buf = later;
        }
        Ok(())
    }
}

/// How the rows of `tensor` have to be reordered; architecture `llama` alone permutes them.
fn head_order(
    metadata: &Metadata,
    architecture: &str,
    tensor: &Stored,
    file: &RangedFile,
) -> Result<Option<HeadOrder>> {
    let heads = config::Heads::of(metadata, architecture)?;
    let heads = match tensor.name.split('.').nth(2) {
        Some("attn_q") if architecture == "llama" => heads.query,
        Some("attn_k") if architecture == "llama" => heads.key_value,
        _ => return Ok(None),
    };
    let wrong = |field, found: String, expected: String| Error::Tensor {
        path: file.path().to_path_buf(),
        tensor: tensor.name.clone(),
        field,
        found,
        expected,
    };
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let row: usize = tensor.shape.iter().skip(1).product();
    if !row.is_multiple_of(tensor.storage.elements()) {
        return Err(wrong("the type", tensor.storage.name().into(), "F32, F16 or BF16".into()));
    }
    let order = HeadOrder::new(rows, usize::try_from(heads).unwrap_or(0)).ok_or_else(|| {
        wrong(
            "the number of rows",
            rows.to_string(),
            format!("an even number for each of {heads} heads"),
        )
    })?;
    Ok(Some(order))
}

fn recover_scaling(
    file: &RangedFile,
    metadata: &Metadata,
    architecture: &str,
    tensor: &Stored,
) -> Result<Llama3Scaling> {
    let theta = config::rope_theta(metadata, architecture)?;
    let head = config::Heads::of(metadata, architecture)?.size;
    // One factor for every two rows of a head: a real file has 32 to 128.
    if tensor.storage == GgufType::Plain(prune_core::DType::F32)
        && tensor.shape == [head as usize / 2]
    {
        let mut bytes = vec![0; tensor.bytes as usize];
        file.read_at(ROPE_FACTORS, tensor.start, &mut bytes)?;
        let factors: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(scaling) = Llama3Scaling::recover(&factors, theta) {
            return Ok(scaling);
        }
    }
    Err(metadata.unsupported(
        format!("tensor `{ROPE_FACTORS}` with factors other than those of Llama 3"),
        "config.json can only describe the scaling of Llama 3.1 to 3.3",
    ))
}
