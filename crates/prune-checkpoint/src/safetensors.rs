//! Reading safetensors files, alone or as the shards of an index.

mod header;
mod index;
mod source;

pub(crate) use source::SafetensorsSource;
