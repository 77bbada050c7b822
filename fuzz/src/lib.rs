//! Everything in the workspace that reads untrusted bytes, one function an input format.
//!
//! Each function takes the bytes of one input, does all that a caller could do with it and returns;
//! it panics when the code under test does or when that code holds more memory than the input
//! justifies. libFuzzer calls the functions from `fuzz_targets/`, `cargo test` from the
//! `tests/untrusted.rs` of the crates, which include these files by path.

pub mod bounded;
pub mod checkpoint;
pub mod corpus;
pub mod damage;
pub mod damage_text;
pub mod parts;
pub mod pipeline;
pub mod quantized;
pub mod sparse;
