//! Quantised matrices, their schemes, and the packing of codes.

mod matrix;
mod minifloat;
mod packing;
mod quantizer;
mod scheme;

pub use matrix::{QuantizedMatrix, QuantizedParts};
pub use minifloat::{
    decode_e2m1, decode_e4m3, decode_e5m2, decode_e8m0, encode_e2m1, encode_e4m3, encode_e5m2,
    encode_e8m0,
};
pub use packing::{
    AWQ_ORDER, NibbleOrder, PartOrder, dense_words, pack_awq, pack_dense, pack_hqq3, pack_lanes,
    pack_parts, pack_planar, unpack_awq, unpack_dense, unpack_hqq3, unpack_lanes, unpack_parts,
    unpack_planar,
};
pub use quantizer::{QuantReport, QuantTarget, Quantized, Quantizer};
pub use scheme::{Granularity, NF4_LEVELS, NumberFormat, QuantScheme, ScaleFormat, ZeroPoint};
