//! Standard output: a reader that went away is no error, a disk that is full is one.

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;

/// The first line that could not be written.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// `println!` that never panics.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Writes a line, unless an earlier one could not be written.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let Ok(mut failure) = FAILURE.lock() else { return };
    if failure.is_none() {
        *failure = writeln!(io::stdout().lock(), "{text}").err();
    }
}

/// What kept lines from being written, but for a pipe whose reader has what it wants.
pub(crate) fn failure() -> Option<io::Error> {
    let mut failure = FAILURE.lock().ok()?;
    if failure.is_none() {
        *failure = io::stdout().flush().err();
    }
    failure.take().filter(|e| e.kind() != io::ErrorKind::BrokenPipe)
}
