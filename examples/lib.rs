//! Runnable examples: see the files beside this one. The README is tested here.

pub mod digits;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
