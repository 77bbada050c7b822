use std::collections::HashMap;
use std::path::{Path, PathBuf};

use prune_core::{DType, QuantizedMatrix, TensorInfo, TensorSink, decode_f32, encode_f32};
use serde_json::Value;

use super::super::names::gguf_name;
use super::super::permutation::HeadOrder;
use super::super::rope::Llama3Scaling;
use super::super::types::GgufType;
use super::choice::GgufTypes;
use super::file::{GgufTensor, GgufValue, GgufWriter};
use super::metadata::{Config, Shape};
use super::tokenizer::Sources;
use super::transcode;
use crate::{Contents, Error, GgufOptions, ModelSource, Result};

/// Writes a model as a GGUF file for llama.cpp, a tensor at a time, under its Hugging Face names.
///
/// Metadata and tokenizer come from the source's `config.json`, `tokenizer.json` and
/// `tokenizer_config.json`; models of type `llama`, `mistral`, `qwen2` and `qwen3` are known. Rows
/// of queries and keys are permuted as llama.cpp wants them for `llama`.
///
/// ```
/// use prune_checkpoint::{
///     BlockType, Checkpoint, GgufExport, GgufOptions, GgufType, GgufTypes,
/// };
/// use prune_core::TensorSource;
/// # fn convert(model: &std::path::Path, out: &std::path::Path)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// let source = Checkpoint::open(model)?;
/// let types = GgufTypes::standard(GgufType::Blocks(BlockType::Q4_0));
/// let export = GgufExport::create(out, &source, &types, &GgufOptions::default())?;
/// for tensor in source.tensors() {
///     export.write(&tensor.name, &source.read_f32(&tensor.name)?)?;
/// }
/// export.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GgufExport {
    writer: GgufWriter,
    places: HashMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    tensor: GgufTensor,
    order: Option<HeadOrder>,
}

const ROPE_FACTORS: &str = "rope_freqs.weight";

impl GgufExport {
    /// A writer of the file `out` for the tensors of `source`.
    ///
    /// # Errors
    /// [`Error::Field`] for a configuration or tokenizer that cannot be said in llama.cpp's terms;
    /// [`Error::Unsupported`] for a tensor that it does not know; those of [`GgufWriter::create`].
    pub fn create(
        out: &Path,
        source: &dyn ModelSource,
        types: &GgufTypes,
        options: &GgufOptions,
    ) -> Result<GgufExport> {
        let path = source.path();
        let json = source.config()?;
        let config = Config { path, json: &json };
        let shape = config.shape()?;
        let tied = source.info("lm_head.weight").is_err();
        let embedding = source.info("model.embed_tokens.weight").map_err(|_| {
            config.wrong("model_type", "a model with a tensor `model.embed_tokens.weight`")
        })?;
        let vocabulary = embedding.shape.first().copied().unwrap_or(0);
        let mut found = Vec::new();
        for tensor in source.tensors() {
            found.push(place(path, tensor, &shape, types, tied)?);
        }
        found.sort_by_cached_key(|(_, p)| order_in_file(&p.tensor.name));

        let mut metadata = vec![
            ("general.architecture".into(), GgufValue::String(shape.architecture.into())),
            ("general.type".into(), GgufValue::String("model".into())),
            ("general.name".into(), GgufValue::String(name_of(&json))),
            ("general.alignment".into(), GgufValue::U32(32)),
            ("general.quantization_version".into(), GgufValue::U32(2)),
            ("general.file_type".into(), GgufValue::U32(types.file_type())),
        ];
        metadata.extend(config.metadata(&shape, vocabulary)?);
        metadata.extend(tokenizer_metadata(source, &json, vocabulary)?);

        let mut tensors: Vec<GgufTensor> = found.iter().map(|(_, p)| p.tensor.clone()).collect();
        let factors = match config.is_llama3_scaled() {
            true => Some(llama3_factors(&config, &shape)?),
            false => None,
        };
        if let Some(factors) = &factors {
            tensors.push(GgufTensor {
                name: ROPE_FACTORS.to_string(),
                shape: vec![factors.len()],
                kind: GgufType::Plain(DType::F32),
            });
        }
        let writer = GgufWriter::create(out, metadata, tensors, options)?;
        if let Some(factors) = &factors {
            writer.write(ROPE_FACTORS, &plain(ROPE_FACTORS, DType::F32, factors)?)?;
        }
        Ok(GgufExport { writer, places: found.into_iter().collect() })
    }

    /// How the tensor with this Hugging Face name is stored.
    pub fn kind(&self, name: &str) -> Option<GgufType> {
        self.places.get(name).map(|p| p.tensor.kind)
    }

    /// Writes a tensor, quantising it to its type: its elements in the order of the source.
    ///
    /// # Errors
    /// [`Error::NotPlanned`]; [`Error::PlanMismatch`] for another number of elements;
    /// [`Error::WrittenTwice`]; [`Error::Tensor`] for elements that cannot be stored;
    /// [`Error::Io`].
    pub fn write(&self, name: &str, values: &[f32]) -> Result<()> {
        let place = self.place(name)?;
        let count = place.tensor.shape.iter().product::<usize>();
        if values.len() != count {
            return Err(Error::PlanMismatch {
                tensor: name.to_string(),
                field: "number of elements",
                found: values.len().to_string(),
                expected: count.to_string(),
            });
        }
        let bytes = match place.tensor.kind {
            GgufType::Plain(dtype) => plain(name, dtype, values)?,
            GgufType::Blocks(block) => block.encode(name, values)?,
        };
        self.writer.write(&place.tensor.name, &place.permuted(bytes))
    }

    /// Writes a matrix that is quantised already, with the codes that it has; see [`transcode`].
    /// A type that is no block type gets its dequantised weights.
    ///
    /// # Errors
    /// As [`GgufExport::write`] and [`transcode`].
    pub fn write_quantized(&self, name: &str, matrix: &QuantizedMatrix) -> Result<()> {
        let place = self.place(name)?;
        let shape = [matrix.rows(), matrix.cols()];
        if place.tensor.shape != shape {
            return Err(Error::PlanMismatch {
                tensor: name.to_string(),
                field: "shape",
                found: format!("{shape:?}"),
                expected: format!("{:?}", place.tensor.shape),
            });
        }
        let bytes = match place.tensor.kind {
            GgufType::Blocks(block) => transcode(name, matrix, block)?,
            GgufType::Plain(dtype) => {
                plain(name, dtype, matrix.dequantize().as_slice().unwrap_or_default())?
            }
        };
        self.writer.write(&place.tensor.name, &place.permuted(bytes))
    }

    /// Stored bytes of the tensor with this Hugging Face name.
    pub fn nbytes(&self, name: &str) -> Option<usize> {
        self.places.get(name).and_then(|p| self.writer.nbytes(&p.tensor.name))
    }

    /// Writes stored bytes of a tensor from byte `offset` on, its rows in the order of the source;
    /// see [`GgufWriter::write_part`].
    ///
    /// # Errors
    /// As there.
    pub fn write_part(&self, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        let place = self.place(name)?;
        let stored = &place.tensor.name;
        match place.order {
            None => self.writer.write_part(stored, offset, bytes),
            Some(order) => order.pieces(offset, bytes.len(), place.row_bytes(), |at, here| {
                self.writer.write_part(stored, at, &bytes[here])
            }),
        }
    }

    /// Fills `buf` with what stands in the incomplete file, from stored byte `offset` of a tensor
    /// on, its rows in the order of the source; see [`GgufWriter::read_part`].
    ///
    /// # Errors
    /// As there.
    pub fn read_part(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
        let place = self.place(name)?;
        let stored = &place.tensor.name;
        match place.order {
            None => self.writer.read_part(stored, offset, buf),
            Some(order) => order.pieces(offset, buf.len(), place.row_bytes(), |at, here| {
                self.writer.read_part(stored, at, &mut buf[here])
            }),
        }
    }

    /// Declares a tensor complete; see [`GgufWriter::seal`].
    ///
    /// # Errors
    /// As there.
    pub fn seal(&self, name: &str) -> Result<()> {
        self.writer.seal(&self.place(name)?.tensor.name)
    }

    /// See [`GgufWriter::scratch`].
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.writer.scratch(name)
    }

    /// See [`GgufWriter::keep`].
    pub fn keep(&mut self) {
        self.writer.keep();
    }

    /// See [`GgufWriter::add_beside`].
    ///
    /// # Errors
    /// As there.
    pub fn add_beside(&mut self, ending: &str, bytes: &[u8]) -> Result<()> {
        self.writer.add_beside(ending, bytes)
    }

    /// Completes the file; see [`GgufWriter::finish`].
    ///
    /// # Errors
    /// [`Error::NotWritten`]; [`Error::OutputExists`]; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        self.writer.finish()
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.places.get(name).ok_or_else(|| Error::NotPlanned { tensor: name.to_string() })
    }
}

impl TensorSink for GgufExport {
    fn write(&mut self, info: &TensorInfo, bytes: &[u8]) -> prune_core::Result<()> {
        let values = decode_f32(&info.name, info.dtype, bytes)?;
        Ok(GgufExport::write(self, &info.name, &values)?)
    }

    fn finish(self: Box<Self>) -> prune_core::Result<()> {
        Ok(GgufExport::finish(*self)?)
    }
}

impl Place {
    /// Stored bytes of a row.
    fn row_bytes(&self) -> usize {
        let row = self.tensor.shape.last().copied().unwrap_or(0);
        row / self.tensor.kind.elements() * self.tensor.kind.bytes()
    }

    /// The rows in the order of the file.
    fn permuted(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(order) = self.order else { return bytes };
        let rows = self.tensor.shape.first().copied().unwrap_or(0);
        let row = bytes.len() / rows.max(1);
        let mut out = vec![0; bytes.len()];
        for (r, from) in bytes.chunks_exact(row.max(1)).enumerate() {
            let at = order.stored_row(r) * row;
            out[at..at + row].copy_from_slice(from);
        }
        out
    }
}

/// Name, type and order of one tensor of the source.
fn place(
    path: &Path,
    tensor: &TensorInfo,
    shape: &Shape,
    types: &GgufTypes,
    tied: bool,
) -> Result<(String, Place)> {
    let hf = tensor.name.as_str();
    let name = gguf_name(hf).ok_or_else(|| Error::Unsupported {
        path: path.to_path_buf(),
        what: format!("tensor `{hf}`"),
        instead: "only the tensors of dense Llama, Mistral, Qwen2 and Qwen3 models have names in \
                  llama.cpp that are known here"
            .to_string(),
    })?;
    let kind = match tensor.shape[..] {
        [_, cols] if tied && hf == "model.embed_tokens.weight" => types.of_tied(hf, cols),
        [_, cols] => types.of(hf, cols),
        _ => GgufType::Plain(DType::F32),
    };
    let heads = match hf.rsplit('.').nth(1) {
        Some("q_proj") if shape.architecture == "llama" => Some(shape.heads),
        Some("k_proj") if shape.architecture == "llama" => Some(shape.key_value_heads),
        _ => None,
    };
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let order = match heads {
        None => None,
        Some(heads) => {
            let order = HeadOrder::new(rows, usize::try_from(heads).unwrap_or(0));
            Some(order.ok_or_else(|| Error::Tensor {
                path: path.to_path_buf(),
                tensor: hf.to_string(),
                field: "the number of rows",
                found: rows.to_string(),
                expected: format!("an even number for each of {heads} heads"),
            })?)
        }
    };
    let tensor = GgufTensor { name, shape: tensor.shape.clone(), kind };
    Ok((hf.to_string(), Place { tensor, order }))
}

/// Embeddings, blocks by number, the end.
fn order_in_file(name: &str) -> (u8, u64, String) {
    let block = name.strip_prefix("blk.").and_then(|n| n.split_once('.'));
    match (name, block) {
        ("token_embd.weight", _) => (0, 0, String::new()),
        (_, Some((number, rest))) => (1, number.parse().unwrap_or(0), rest.to_string()),
        _ => (2, 0, name.to_string()),
    }
}

fn plain(name: &str, dtype: DType, values: &[f32]) -> Result<Vec<u8>> {
    encode_f32(name, dtype, values).map_err(|e| Error::Tensor {
        path: Default::default(),
        tensor: name.to_string(),
        field: "an element",
        found: e.to_string(),
        expected: format!("numbers that {dtype} holds"),
    })
}

/// What the configuration calls the model; nothing of paths, so that the same model gives the same
/// bytes.
fn name_of(config: &Value) -> String {
    let text = |field: &str| config[field].as_str().filter(|s| !s.is_empty());
    let name = text("_name_or_path").or(text("model_type")).unwrap_or("model");
    name.rsplit(['/', '\\']).next().unwrap_or(name).to_string()
}

fn tokenizer_metadata(
    source: &dyn ModelSource,
    config: &Value,
    vocabulary: usize,
) -> Result<Vec<(String, GgufValue)>> {
    let Some(bytes) = source.tokenizer_json()? else {
        return Ok(vec![(
            "tokenizer.ggml.model".to_string(),
            GgufValue::String("no_vocab".to_string()),
        )]);
    };
    let parse = |what, bytes: &[u8]| {
        serde_json::from_slice::<Value>(bytes).map_err(|e| Error::Json {
            path: source.path().to_path_buf(),
            what,
            reason: e.to_string(),
        })
    };
    let tokenizer = parse("tokenizer", &bytes)?;
    let mut settings = Value::Null;
    let mut chat_template = None;
    for file in source.auxiliary_files()? {
        if file.name != "tokenizer_config.json" && file.name != "chat_template.jinja" {
            continue;
        }
        let bytes = match file.contents {
            Contents::Bytes(bytes) => bytes,
            Contents::Path(path) => {
                let file = crate::ranged_file::RangedFile::open(&path)?;
                file.read_all("tokenizer configuration", crate::limits::JSON_BYTES)?
            }
        };
        match file.name.as_str() {
            "chat_template.jinja" => chat_template = String::from_utf8(bytes).ok(),
            _ => settings = parse("tokenizer configuration", &bytes)?,
        }
    }
    let sources = Sources {
        path: source.path(),
        tokenizer: &tokenizer,
        settings: &settings,
        config,
        chat_template,
        vocabulary,
    };
    sources.metadata()
}

fn llama3_factors(config: &Config<'_>, shape: &Shape) -> Result<Vec<f32>> {
    let scaling = Llama3Scaling {
        factor: config.rope_number("factor")?,
        low_freq_factor: config.rope_number("low_freq_factor")?,
        high_freq_factor: config.rope_number("high_freq_factor")?,
        original_context: config.rope_number("original_max_position_embeddings")? as u64,
    };
    let size = usize::try_from(shape.head_size).unwrap_or(0);
    Ok(scaling.divisors(config.rope_theta()?, size))
}
