//! The largest values accepted from a file, each well above what real checkpoints hold.

/// Bytes of a safetensors header (the limit of the reference implementation).
pub(crate) const HEADER_BYTES: u64 = 100_000_000;
/// Bytes of a JSON file.
pub(crate) const JSON_BYTES: u64 = 100_000_000;
/// Tensors in a checkpoint.
pub(crate) const TENSORS: u64 = 1_000_000;
/// Dimensions of a tensor.
pub(crate) const DIMS: usize = 8;
/// Bytes of everything before the tensors of a GGUF file.
pub(crate) const GGUF_HEADER_BYTES: u64 = 256 << 20;
/// Bytes of one string of a GGUF file.
pub(crate) const GGUF_STRING_BYTES: u64 = 64 << 20;
/// Metadata entries of a GGUF file.
pub(crate) const GGUF_FIELDS: u64 = 100_000;
/// Dimensions of a GGUF tensor (`GGML_MAX_DIMS`).
pub(crate) const GGUF_DIMS: u32 = 4;
