//! Model checkpoints as streams of tensors: safetensors and GGUF, dense and quantised, both ways.
//!
//! A checkpoint is never whole in memory. [`Checkpoint`] reads headers when it is opened and
//! fetches tensors, or parts of them, by ranged reads of the files, without memory maps;
//! [`HfWriter`] puts every tensor in its place as it comes and gives the finished directory its
//! name at the end. Files are not trusted: lengths, shapes, offsets and names are checked before
//! they are used, and what is wrong is named in a typed [`Error`].
//!
//! ```
//! use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
//! use prune_core::{TensorSink, TensorSource};
//! # fn convert(model: &std::path::Path, out: &std::path::Path)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let source = Checkpoint::open(model)?;
//! let plan = source.tensors().to_vec();
//! let origin = Some(source.path().to_path_buf());
//! let options = WriterOptions { plan, source: origin, ..WriterOptions::default() };
//! let mut writer = HfWriter::create(out, options)?;
//! for tensor in source.tensors() {
//!     writer.write(tensor, &source.read(&tensor.name)?)?;
//! }
//! for file in source.auxiliary_files()? {
//!     writer.copy_file(&file)?;
//! }
//! writer.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! | what | where |
//! |---|---|
//! | a model to read, in any format | [`Checkpoint`], [`Format`] |
//! | its configuration, tokenizer and other files | [`Checkpoint::config`], [`Checkpoint::tokenizer_json`], [`AuxiliaryFile`], [`Contents`] |
//! | a model directory to write | [`HfWriter`], [`WriterOptions`] |
//! | a GGUF file to write | [`GgufExport`], [`GgufTypes`], [`GgufWriter`], [`GgufOptions`], [`BlockType`], [`transcode`] |
//! | a quantised model to read | [`QuantizedCheckpoint`], [`QuantizedLayer`], [`decode_layer`] |
//! | either, whatever it is stored as | [`open_model`], [`ModelSource`] |
//! | the bytes as they are stored | [`StoredTensors`] |
//! | a quantised model to write | [`QuantizedWriter`], [`QuantFormat`], [`quant_format`], [`QUANT_FORMATS`] |
//! | fingerprints of tensors, states of files | [`digest`], [`Hasher`], [`tensor_digest`], [`FileState`] |
//! | a file shared by threads | [`read_exact_at`], [`write_all_at`] |
//! | legacy sparse tensors of compressed-tensors | [`compress`], [`decompress`], [`compressed_modules`], [`SparsityConfig`] |
//! | 2:4 metadata as PyTorch keeps it | [`metadata16`], [`metadata32`], [`MetadataOrder`] |
//! | what can go wrong | [`Error`], [`Result`] |

mod auxiliary;
mod awq;
mod checkpoint;
mod compressed;
mod compressed_tensors;
mod digest;
mod error;
mod gguf;
mod gptq;
mod layout;
mod limits;
mod model_source;
mod positional;
mod quantized;
mod ranged_file;
mod safetensors;
mod staging;
mod state;
mod stored;
mod writer;

pub use auxiliary::{AuxiliaryFile, Contents};
pub use awq::AwqFormat;
pub use checkpoint::{Checkpoint, Format};
pub use compressed::{
    CompressedKeys, MetadataOrder, NamedTensor, SparseFormat, SparsityConfig, code_of_kept,
    compress, compressed_modules, decompress, kept_of_code, metadata16, metadata16_codes,
    metadata32, metadata32_codes,
};
pub use compressed_tensors::CompressedTensors;
pub use digest::{Hasher, digest, tensor_digest};
pub use error::{Error, Result};
pub use gguf::{
    BlockType, GgufExport, GgufOptions, GgufTensor, GgufType, GgufTypes, GgufValue, GgufWriter,
    transcode,
};
pub use gptq::GptqFormat;
pub use model_source::{ModelSource, open_model};
pub use positional::{read_exact_at, write_all_at};
pub use quantized::{
    QUANT_FORMATS, QuantFormat, QuantizedCheckpoint, QuantizedLayer, QuantizedOptions,
    QuantizedWriter, decode_layer, quant_format,
};
pub use state::FileState;
pub use stored::StoredTensors;
pub use writer::{HfWriter, WriterOptions};
