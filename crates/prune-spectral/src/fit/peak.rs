use std::ops::Range;

use super::tail::Tail;
use crate::{Error, PeakBand, Result};

const BINS: usize = 100;

/// The candidates for the start of the tail: those in the band around the fullest bin of the
/// histogram of log λ, the first on ties.
pub(super) fn band(tail: &Tail<'_>, band: PeakBand) -> Result<Range<usize>> {
    // Eigenvalues that are exactly zero have no logarithm; they are the first.
    let zeros = tail.values.partition_point(|v| *v <= 0.0);
    let ln = &tail.ln[zeros..];
    let (Some(&low), Some(&high)) = (ln.first(), ln.last()) else {
        return Err(Error::DegenerateSpectrum { reason: "every eigenvalue is zero" });
    };
    if high <= low {
        return Err(Error::DegenerateSpectrum { reason: "all eigenvalues are equal" });
    }
    let width = (high - low) / BINS as f64;
    let mut counts = [0usize; BINS];
    for v in ln {
        counts[(((v - low) / width) as usize).min(BINS - 1)] += 1;
    }
    let mut fullest = 0;
    for (bin, count) in counts.iter().enumerate() {
        if *count > counts[fullest] {
            fullest = bin;
        }
    }
    let top = tail.values[tail.len() - 1];
    let peak = top * (low + fullest as f64 * width).exp();
    let lower = match band {
        PeakBand::Exact => 0.95 * peak,
        PeakBand::Released => (0.95 * peak).log10(),
    };
    let upper = 1.5 * peak;
    let from = tail.values.partition_point(|v| *v < lower);
    let to = tail.values.partition_point(|v| *v <= upper);
    if from >= to {
        return Err(Error::DegenerateSpectrum {
            reason: "no eigenvalue lies in the band around the peak of the density",
        });
    }
    Ok(from..to)
}
