use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use prune_checkpoint::{Checkpoint, Hasher, QuantizedCheckpoint, StoredTensors, tensor_digest};
use prune_core::{Mask, Pattern, QuantScheme, TensorInfo, TensorSource, check_finite, decode_f32};
use rayon::prelude::*;
use serde::Serialize;

use crate::apply::file_digest;
use crate::manifest::{MANIFEST, Manifest, TensorRecord};
use crate::plan::{Action, PlannedTensor};
use crate::schedule::PIECE;
use crate::sink::outputs_digest;
use crate::store::{Store, gguf_kind_of};
use crate::verify_factors::check_factors;
use crate::{Error, Result};

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// Whether nothing failed.
    pub ok: bool,
    /// Tensors that were read.
    pub tensors: usize,
    /// Factors of layers that were read and multiplied.
    pub factors: usize,
    /// What failed, by tensor.
    pub failures: Vec<Failure>,
}

/// One thing that [`verify`] found wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The tensor or file.
    pub tensor: String,
    /// What was found and what was expected.
    pub reason: String,
}

/// Reads a checkpoint back from disk and checks it against its manifest: every planned tensor has
/// its planned zeros and pattern and no negative zero, NaN or infinity; every other tensor has the
/// source's bytes; nothing is missing, added or changed; the files beside the weights are those
/// that were written.
///
/// A factorised tensor is dense: what has the planned zeros and pattern is its sparse factor in
/// [`FACTORS`](crate::FACTORS), and the product of its factors is the tensor, to the rounding of
/// its dtype. Factors are multiplied a layer at a time, in f32.
///
/// # Errors
/// [`Error::Io`] and [`Error::Plan`] when there is no readable manifest. What is wrong with the
/// checkpoint itself is in the [`Verification`].
pub fn verify(directory: &Path) -> Result<Verification> {
    let manifest = Manifest::read(directory)?;
    let mut failures = Vec::new();
    let stored = match StoredTensors::open(directory) {
        Ok(stored) => stored,
        Err(e) => {
            let failures = vec![Failure { tensor: "checkpoint".into(), reason: e.to_string() }];
            return Ok(Verification { ok: false, tensors: 0, factors: 0, failures });
        }
    };
    let checkpoint = stored.checkpoint();
    let store = Store::of(&manifest.plan.recipe)?;
    let mut records: BTreeMap<&str, &TensorRecord> =
        manifest.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let pairs: Vec<(&PlannedTensor, Option<&TensorRecord>)> =
        manifest.plan.tensors.iter().map(|t| (t, records.remove(t.name.as_str()))).collect();
    let checked: Vec<Option<Failure>> = pairs
        .into_par_iter()
        .map(|(planned, record)| {
            let reason = match record {
                None => Some("planned, but the manifest has no record of it".to_string()),
                Some(record) => check(&stored, &store, planned, record)?,
            };
            Ok(reason.map(|reason| Failure { tensor: planned.name.clone(), reason }))
        })
        .collect::<Result<_>>()?;
    failures.extend(checked.into_iter().flatten());
    failures.extend(
        records.into_keys().map(|name| Failure {
            tensor: name.into(),
            reason: "recorded, but not planned".into(),
        }),
    );
    let mut planned = BTreeSet::new();
    for tensor in &manifest.plan.tensors {
        planned.extend(store.outputs(tensor)?.into_iter().map(|o| o.name));
    }
    for info in stored.tensors() {
        if !planned.contains(&info.name) {
            failures.push(Failure { tensor: info.name.clone(), reason: "was not planned".into() });
        }
    }
    if directory.is_dir() {
        failures.extend(check_files(checkpoint, &manifest)?);
    }
    failures.extend(check_schemes(directory, &store, &manifest));
    let (factors, wrong) = check_factors(directory, checkpoint, &manifest)?;
    failures.extend(wrong);
    let tensors = manifest.plan.tensors.len();
    Ok(Verification { ok: failures.is_empty(), tensors, factors, failures })
}

/// What is wrong with one tensor.
fn check(
    stored: &StoredTensors,
    store: &Store,
    planned: &PlannedTensor,
    record: &TensorRecord,
) -> Result<Option<String>> {
    let (pattern, remove, expected): (Pattern, usize, Option<usize>) = match &planned.action {
        Action::Quantize { .. } | Action::Encode { .. } | Action::Fold { .. } => {
            return check_stored(stored, store, planned, record);
        }
        // Compared whole, below.
        Action::Copy => (Pattern::Unstructured, 0, None),
        Action::Prune { pattern, remove, .. } => {
            let zeros = record.pruned.as_ref().map_or(*remove, |p| p.zeros);
            (pattern.parse()?, *remove, Some(zeros))
        }
        // Dense: its zeros are those of its sparse factor.
        Action::Factorise { .. } => (Pattern::Unstructured, 0, None),
    };
    let checkpoint = stored.checkpoint();
    let Ok(info) = checkpoint.info(&planned.name) else {
        return Ok(Some("is missing".into()));
    };
    if info.shape != planned.shape || planned.dtype.parse().ok() != Some(info.dtype) {
        return Ok(Some(format!(
            "is {} {:?}; planned as {} {:?}",
            info.dtype, info.shape, planned.dtype, planned.shape
        )));
    }
    if planned.action == Action::Copy {
        let found = tensor_digest(checkpoint, &planned.name)?;
        return Ok((found != record.source_digest).then(|| {
            format!(
                "is not planned to change, but differs from the source: {found} is not {}",
                record.source_digest
            )
        }));
    }
    let (rows, cols) = info.matrix_shape()?;
    // Whole rows of the pattern at a time: memory does not grow with the tensor, but for columns.
    let height = match pattern {
        Pattern::Block { rows, .. } => rows,
        Pattern::Channels => rows.max(1),
        _ => 1,
    };
    let step = (PIECE / (4 * cols.max(1)) / height).max(1) * height;
    let mut hash = Hasher::default();
    let mut zeros = 0;
    let mut broken = None;
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        let mut bytes = vec![0; count * cols * info.dtype.size()];
        checkpoint.read_at(&planned.name, first * cols * info.dtype.size(), &mut bytes)?;
        hash.update(&bytes);
        let values = decode_f32(&planned.name, info.dtype, &bytes)?;
        if check_finite(&planned.name, &values).is_err() {
            let i = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Ok(Some(format!("element {} is {}", first * cols + i, values[i])));
        }
        if let Some(i) = values.iter().position(|v| v.to_bits() == NEGATIVE_ZERO) {
            return Ok(Some(format!("element {} is a negative zero", first * cols + i)));
        }
        zeros += values.iter().filter(|v| **v == 0.0).count();
        if pattern != Pattern::Unstructured && broken.is_none() {
            let weight = ndarray::ArrayView2::from_shape((count, cols), &values)
                .map_err(|e| Error::plan(&planned.name, e))?;
            broken = Mask::of_nonzeros(weight).check(pattern).err().map(|e| match e {
                prune_core::Error::PatternBroken { pattern, mut violation } => {
                    violation.row += first / height;
                    prune_core::Error::PatternBroken { pattern, violation }.to_string()
                }
                e => e.to_string(),
            });
        }
    }
    if let Some(expected) = expected.filter(|e| zeros != *e || zeros < remove) {
        return Ok(Some(format!("has {zeros} zeros; {expected} were written, {remove} removed")));
    }
    // A kept weight that happens to be zero never breaks N:M; whole blocks and columns need the
    // exact mask, which only a matrix without such weights shows.
    if let Some(broken) = broken
        && (matches!(pattern, Pattern::NM { .. }) || zeros == remove)
    {
        return Ok(Some(broken));
    }
    let found = hash.finish();
    Ok((found != record.digest)
        .then(|| format!("differs from what was written: {found} is not {}", record.digest)))
}

/// What is wrong with a tensor that is stored as codes, or in a GGUF file, or that was quantised.
fn check_stored(
    stored: &StoredTensors,
    store: &Store,
    planned: &PlannedTensor,
    record: &TensorRecord,
) -> Result<Option<String>> {
    let outputs = store.outputs(planned)?;
    for output in &outputs {
        let Ok(info) = stored.info(&output.name) else {
            return Ok(Some(format!("`{}` is missing", output.name)));
        };
        if info != output {
            return Ok(Some(format!(
                "`{}` is {} {:?}; planned as {} {:?}",
                info.name, info.dtype, info.shape, output.dtype, output.shape
            )));
        }
    }
    if let (Some(found), Some(kind)) = (stored.kind(&planned.name), gguf_kind_of(&planned.action)?)
        && found != kind
    {
        return Ok(Some(format!("is stored as {found}; planned as {kind}")));
    }
    let read = |info: &TensorInfo, offset: usize, buf: &mut [u8]| {
        Ok(stored.read_at(&info.name, offset, buf)?)
    };
    let (mut seen, mut wrong) = (0, None);
    let decoded = store.decode_pieces(planned, &read, &mut |values| {
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            wrong = Some(format!("element {} is {}", seen + i, values[i]));
            return ControlFlow::Break(());
        }
        seen += values.len();
        ControlFlow::Continue(())
    });
    if let Some(wrong) = decoded.err().map(|e| e.to_string()).or(wrong) {
        return Ok(Some(wrong));
    }
    let found = outputs_digest(stored, &outputs)?;
    Ok((found != record.digest)
        .then(|| format!("differs from what was written: {found} is not {}", record.digest)))
}

/// Whether readers of the format see the layers as they were planned.
fn check_schemes(directory: &Path, store: &Store, manifest: &Manifest) -> Vec<Failure> {
    let quantized = |t: &&PlannedTensor| matches!(t.action, Action::Quantize { .. });
    let planned: Vec<&PlannedTensor> = manifest.plan.tensors.iter().filter(quantized).collect();
    if !matches!(store, Store::Packed(_)) || planned.is_empty() {
        return Vec::new();
    }
    let failure = |tensor: &str, reason: String| Failure { tensor: tensor.into(), reason };
    let found = match QuantizedCheckpoint::open(directory) {
        Ok(found) => found,
        Err(e) => return vec![failure("config.json", e.to_string())],
    };
    let mut failures = Vec::new();
    for tensor in planned {
        let Action::Quantize { scheme, .. } = &tensor.action else { continue };
        let layer = found.layers().iter().find(|l| l.id.weight_name() == tensor.name);
        let Some(layer) = layer else {
            failures.push(failure(&tensor.name, "is no quantised layer to readers".into()));
            continue;
        };
        // Some formats store symmetric matrices with zero points in the middle.
        let planned = scheme.parse::<QuantScheme>().ok();
        let same = planned.is_some_and(|p| {
            p.number == layer.scheme.number && p.granularity == layer.scheme.granularity
        });
        if !same {
            let reason = format!("readers see `{}`; planned is `{scheme}`", layer.scheme);
            failures.push(failure(&tensor.name, reason));
        }
    }
    failures
}

const NEGATIVE_ZERO: u32 = 1 << 31;

fn check_files(checkpoint: &Checkpoint, manifest: &Manifest) -> Result<Vec<Failure>> {
    let files = checkpoint.auxiliary_files()?;
    let mut failures = Vec::new();
    for record in &manifest.files {
        let reason = match files.iter().find(|f| f.name == record.name) {
            None => "the file is missing",
            Some(file) if file_digest(file)? != record.digest => "the file was changed",
            Some(_) => continue,
        };
        failures.push(Failure { tensor: record.name.clone(), reason: reason.into() });
    }
    for file in &files {
        if file.name != MANIFEST && !manifest.files.iter().any(|r| r.name == file.name) {
            failures.push(Failure {
                tensor: file.name.clone(),
                reason: "the file was not written by the run".into(),
            });
        }
    }
    Ok(failures)
}
