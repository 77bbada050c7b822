//! Runnable examples: see the files beside this one. The README is tested here.

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
