use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What an input of `len` bytes may make the code under test hold: `per_byte · len + constant`.
#[derive(Clone, Copy)]
pub struct Limit {
    pub per_byte: u64,
    pub constant: u64,
}

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Refused,
}

impl Outcome {
    /// Refused, with an error that says something.
    pub fn refused(error: &impl Display) -> Outcome {
        assert!(!error.to_string().is_empty());
        Outcome::Refused
    }
}

/// Runs `work`, and panics when it does or when this thread held more bytes at a time than `limit`
/// allows for `input`.
///
/// The counting allocator is the one of `allocation-counter`; what other threads allocate is not
/// seen.
pub fn bounded(input: &[u8], limit: Limit, work: impl FnOnce() -> Outcome) -> Outcome {
    let mut outcome = Ok(Outcome::Refused);
    // Counting nests by depth, which a panic that passes through would leave wrong.
    let held = allocation_counter::measure(|| {
        outcome = catch_unwind(AssertUnwindSafe(work));
    });
    let outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic));
    let allowed = limit.per_byte * input.len() as u64 + limit.constant;
    assert!(
        held.bytes_max <= allowed,
        "{} bytes were held for an input of {}; at most {allowed} are justified",
        held.bytes_max,
        input.len()
    );
    outcome
}
