use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The shape that the removed weights must take.
///
/// Parsed from and written as text: `unstructured`, `2:4`, `block 16x16`, `channels`.
///
/// ```
/// use prune_core::Pattern;
/// let p: Pattern = "2:4".parse()?;
/// assert_eq!(p, Pattern::NM { n: 2, m: 4 });
/// assert_eq!("block 16x32".parse::<Pattern>()?.to_string(), "block 16x32");
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Any weight may go.
    Unstructured,
    /// At most `n` kept of every aligned `m` consecutive weights along the input axis.
    NM {
        /// Kept of each group, `1 <= n < m`.
        n: usize,
        /// Size of the group, `2 <= m <= 16`.
        m: usize,
    },
    /// Whole aligned blocks of `rows x cols` go or stay.
    Block {
        /// Height of a block.
        rows: usize,
        /// Width of a block.
        cols: usize,
    },
    /// Whole input channels (columns) go or stay.
    Channels,
}

impl Pattern {
    /// `n` kept of every `m`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1 <= n < m <= 16`.
    pub fn nm(n: usize, m: usize) -> Result<Self> {
        if n == 0 || n >= m || m > 16 {
            return Err(Error::out_of_range("pattern n:m", format!("{n}:{m}"), "1 <= n < m <= 16"));
        }
        Ok(Pattern::NM { n, m })
    }

    /// Blocks of `rows x cols`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if either is 0.
    pub fn block(rows: usize, cols: usize) -> Result<Self> {
        if rows == 0 || cols == 0 {
            return Err(Error::out_of_range(
                "block pattern",
                format!("{rows}x{cols}"),
                "at least 1x1",
            ));
        }
        Ok(Pattern::Block { rows, cols })
    }

    /// Checks that a matrix of `rows x cols` divides into this pattern's groups.
    ///
    /// # Errors
    /// [`Error::PatternShape`] naming `what`.
    pub fn check_shape(&self, what: &str, rows: usize, cols: usize) -> Result<()> {
        let reason = match *self {
            Pattern::NM { m, .. } if !cols.is_multiple_of(m) => {
                format!("{cols} columns are not a multiple of {m}")
            }
            Pattern::Block { rows: r, .. } if !rows.is_multiple_of(r) => {
                format!("{rows} rows are not a multiple of {r}")
            }
            Pattern::Block { cols: c, .. } if !cols.is_multiple_of(c) => {
                format!("{cols} columns are not a multiple of {c}")
            }
            _ => return Ok(()),
        };
        Err(Error::PatternShape { what: what.to_string(), rows, cols, pattern: *self, reason })
    }

    /// The sparsity that the pattern fixes by itself: `1 - n/m` for N:M.
    pub fn fixed_sparsity(&self) -> Option<f64> {
        match *self {
            Pattern::NM { n, m } => Some(1.0 - n as f64 / m as f64),
            _ => None,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.write_str("unstructured"),
            Pattern::NM { n, m } => write!(f, "{n}:{m}"),
            Pattern::Block { rows, cols } => write!(f, "block {rows}x{cols}"),
            Pattern::Channels => f.write_str("channels"),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::out_of_range(
                "pattern",
                format!("`{text}`"),
                "`unstructured`, `n:m` such as `2:4`, `block RxC` such as `block 16x16`, or \
                 `channels`",
            )
        };
        let number = |s: &str| s.trim().parse::<usize>().map_err(|_| bad());
        match text.trim() {
            "unstructured" => Ok(Pattern::Unstructured),
            "channels" => Ok(Pattern::Channels),
            t => {
                if let Some((n, m)) = t.split_once(':') {
                    return Pattern::nm(number(n)?, number(m)?);
                }
                let t = t.strip_prefix("block").unwrap_or(t);
                let (r, c) = t.split_once('x').ok_or_else(bad)?;
                Pattern::block(number(r)?, number(c)?)
            }
        }
    }
}

/// Which weights compete with each other for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Each output row keeps its own best (Wanda).
    PerRow,
    /// The layer keeps its best.
    PerLayer,
    /// All layers together keep their best.
    Global,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::PerRow => "row",
            Scope::PerLayer => "layer",
            Scope::Global => "global",
        })
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "row" => Ok(Scope::PerRow),
            "layer" => Ok(Scope::PerLayer),
            "global" => Ok(Scope::Global),
            other => Err(Error::out_of_range(
                "scope",
                format!("`{other}`"),
                "`row`, `layer` or `global`",
            )),
        }
    }
}
