use std::collections::BTreeSet;

use prune_core::{DType, TensorInfo, TensorSource, decode_f32};
use rayon::prelude::*;
use serde::Serialize;

use crate::Result;
use crate::schedule::PIECE;

/// How one tensor differs between two checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDifference {
    /// Its name.
    pub tensor: String,
    /// Dtype and shape in the first; absent where it is only in the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Side>,
    /// Dtype and shape in the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Side>,
    /// Elements that differ in value; absent where the shapes do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<usize>,
    /// Euclidean norm of the difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<f64>,
    /// That norm over the norm of the first; absent where the first is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_norm: Option<f64>,
}

/// A tensor in one of two checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Elements that are 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zeros: Option<usize>,
    /// The densest N:M pattern of 1:4, 2:4, 4:8 that its rows hold; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
}

impl TensorDifference {
    /// Whether the tensor is the same in both, to the value and the dtype.
    pub fn is_equal(&self) -> bool {
        match (&self.before, &self.after) {
            (Some(a), Some(b)) => {
                a.dtype == b.dtype && a.shape == b.shape && self.changed == Some(0)
            }
            _ => false,
        }
    }
}

/// Every tensor of either checkpoint, by name, with what changed from `a` to `b`: values, zeros,
/// pattern, dtype, norm of the difference.
///
/// Tensors are read in pieces of 4 MiB, one tensor a thread; integers are compared by their bytes,
/// and floats by value: `-0.0` equals `0.0`, and NaN equals nothing.
///
/// # Errors
/// [`Error::Core`](crate::Error::Core) when a tensor cannot be read.
///
/// ```
/// use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions};
/// use prune_core::{DType, TensorInfo, encode_f32};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let directory = tempfile::tempdir()?;
/// let write = |name: &str, values: &[f32]| -> Result<Checkpoint, Box<dyn std::error::Error>> {
///     let info = TensorInfo { name: "w".into(), dtype: DType::F32, shape: vec![1, 4] };
///     let path = directory.path().join(name);
///     let options = WriterOptions { plan: vec![info.clone()], ..WriterOptions::default() };
///     let mut writer = HfWriter::create(&path, options)?;
///     writer.write_tensor(&info, &encode_f32("w", DType::F32, values)?)?;
///     writer.finish()?;
///     Ok(Checkpoint::open(&path)?)
/// };
/// let (a, b) = (write("a", &[1.0, 3.0, 4.0, 2.0])?, write("b", &[1.0, 0.0, 0.0, 2.0])?);
/// let difference = &prune_pipeline::diff(&a, &b)?[0];
/// assert_eq!((difference.changed, difference.norm), (Some(2), Some(5.0)));
/// assert_eq!(difference.after.as_ref().unwrap().pattern.as_deref(), Some("2:4"));
/// # Ok(())
/// # }
/// ```
pub fn diff(a: &dyn TensorSource, b: &dyn TensorSource) -> Result<Vec<TensorDifference>> {
    let names: BTreeSet<&str> =
        a.tensors().iter().chain(b.tensors()).map(|t| t.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().into_par_iter().map(|name| compare(a, b, name)).collect()
}

fn compare(a: &dyn TensorSource, b: &dyn TensorSource, name: &str) -> Result<TensorDifference> {
    let (before, after) = (a.info(name).ok(), b.info(name).ok());
    let mut difference = TensorDifference {
        tensor: name.into(),
        before: before.map(side),
        after: after.map(side),
        changed: None,
        norm: None,
        relative_norm: None,
    };
    let (Some(before), Some(after)) = (before, after) else { return Ok(difference) };
    if before.shape != after.shape {
        return Ok(difference);
    }
    if !(before.dtype.is_float() && after.dtype.is_float()) {
        if before.dtype == after.dtype {
            difference.changed = Some(changed_elements(a, b, before)?);
        }
        return Ok(difference);
    }
    let row = before.shape.last().copied().unwrap_or(1).max(1);
    let (mut left, mut right) = (Tally::new(row), Tally::new(row));
    let (mut changed, mut squares, mut energy) = (0, 0.0, 0.0);
    for first in (0..before.numel()).step_by(PIECE / 8) {
        let count = (PIECE / 8).min(before.numel() - first);
        let (x, y) = (values(a, before, first, count)?, values(b, after, first, count)?);
        left.add(&x);
        right.add(&y);
        for (x, y) in x.iter().zip(&y) {
            changed += usize::from(x != y);
            let d = f64::from(*x) - f64::from(*y);
            squares += d * d;
            energy += f64::from(*x) * f64::from(*x);
        }
    }
    for (side, tally) in [(&mut difference.before, left), (&mut difference.after, right)] {
        if let Some(side) = side {
            side.zeros = Some(tally.zeros);
            side.pattern = tally.pattern();
        }
    }
    difference.changed = Some(changed);
    difference.norm = Some(f64::sqrt(squares));
    difference.relative_norm = (energy > 0.0).then(|| (squares / energy).sqrt());
    Ok(difference)
}

fn side(info: &TensorInfo) -> Side {
    Side { dtype: info.dtype.name().into(), shape: info.shape.clone(), zeros: None, pattern: None }
}

fn values(
    source: &dyn TensorSource,
    info: &TensorInfo,
    first: usize,
    count: usize,
) -> Result<Vec<f32>> {
    let bytes = read(source, &info.name, info.dtype, first, count)?;
    Ok(decode_f32(&info.name, info.dtype, &bytes)?)
}

fn read(
    source: &dyn TensorSource,
    name: &str,
    dtype: DType,
    first: usize,
    count: usize,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count * dtype.size()];
    source.read_at(name, first * dtype.size(), &mut bytes)?;
    Ok(bytes)
}

fn changed_elements(
    a: &dyn TensorSource,
    b: &dyn TensorSource,
    info: &TensorInfo,
) -> Result<usize> {
    let mut changed = 0;
    for first in (0..info.numel()).step_by(PIECE / 8) {
        let count = (PIECE / 8).min(info.numel() - first);
        let x = read(a, &info.name, info.dtype, first, count)?;
        let y = read(b, &info.name, info.dtype, first, count)?;
        let size = info.dtype.size();
        changed += x.chunks(size).zip(y.chunks(size)).filter(|(x, y)| x != y).count();
    }
    Ok(changed)
}

/// Zeros, and which N:M patterns hold in rows of one length, counted as values stream by.
struct Tally {
    row: usize,
    at: usize,
    zeros: usize,
    /// Values kept in the open group, for each of [`PATTERNS`].
    open: [usize; PATTERNS.len()],
    holds: [bool; PATTERNS.len()],
}

const PATTERNS: [(usize, usize); 3] = [(1, 4), (2, 4), (4, 8)];

impl Tally {
    fn new(row: usize) -> Self {
        let holds = PATTERNS.map(|(_, m)| row.is_multiple_of(m));
        Self { row, at: 0, zeros: 0, open: [0; PATTERNS.len()], holds }
    }

    fn add(&mut self, values: &[f32]) {
        for value in values {
            let kept = *value != 0.0;
            self.zeros += usize::from(!kept);
            for (i, (n, m)) in PATTERNS.iter().enumerate() {
                if (self.at % self.row).is_multiple_of(*m) {
                    self.open[i] = 0;
                }
                self.open[i] += usize::from(kept);
                self.holds[i] &= self.open[i] <= *n;
            }
            self.at += 1;
        }
    }

    fn pattern(&self) -> Option<String> {
        let held = PATTERNS.iter().zip(self.holds).find(|(_, holds)| *holds && self.at > 0);
        held.map(|((n, m), _)| format!("{n}:{m}"))
    }
}
