//! Criterion benchmarks, one file a subject:
//!
//! - `wanda_select`: scoring, selecting and zeroing of a 4096 x 11008 matrix, next to the time to
//!   copy it.
