use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The most bytes of memory that a run may take, saving included; without limit by default.
///
/// ```
/// use prune_pipeline::MemoryBudget;
/// let budget: MemoryBudget = "1.5 GiB".parse()?;
/// assert_eq!(budget.limit(), Some(3 << 29));
/// assert_eq!("800MB".parse::<MemoryBudget>()?.limit(), Some(800_000_000));
/// assert_eq!(MemoryBudget::default().limit(), None);
/// assert!("lots".parse::<MemoryBudget>().is_err());
/// # Ok::<(), prune_pipeline::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryBudget(Option<u64>);

const UNITS: [(&str, f64); 8] = [
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("b", 1.0),
];

impl MemoryBudget {
    /// At most this many bytes.
    pub fn bytes(limit: u64) -> Self {
        Self(Some(limit))
    }

    /// The limit in bytes; `None` without one.
    pub fn limit(self) -> Option<u64> {
        self.0
    }
}

impl FromStr for MemoryBudget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::recipe("memory", format!("`{text}`; expected a size such as 2GiB, 800MB or 1e9"))
        };
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((lower.strip_suffix(name)?, *unit)))
            .unwrap_or((&lower, 1.0));
        let bytes = number.trim().parse::<f64>().map_err(|_| bad())? * unit;
        if !(1.0..=1e18).contains(&bytes) {
            return Err(bad());
        }
        Ok(Self(Some(bytes as u64)))
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("no limit"),
            Some(bytes) => write!(f, "{}", Mebibytes(bytes)),
        }
    }
}

/// Shows bytes as mebibytes, rounded up.
pub(crate) struct Mebibytes(pub(crate) u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}
