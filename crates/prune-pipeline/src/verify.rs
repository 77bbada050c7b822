use std::collections::BTreeMap;
use std::path::Path;

use prune_checkpoint::{Checkpoint, digest, tensor_digest};
use prune_core::{Mask, Pattern, TensorSource, decode_f32};
use serde::Serialize;

use crate::apply::file_digest;
use crate::manifest::{MANIFEST, Manifest, TensorRecord};
use crate::plan::{Action, PlannedTensor};
use crate::{Error, Result};

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// Whether nothing failed.
    pub ok: bool,
    /// Tensors that were read.
    pub tensors: usize,
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
/// # Errors
/// [`Error::Io`] and [`Error::Plan`] when there is no readable manifest. What is wrong with the
/// checkpoint itself is in the [`Verification`].
pub fn verify(directory: &Path) -> Result<Verification> {
    let manifest = Manifest::read(directory)?;
    let mut failures = Vec::new();
    let checkpoint = match Checkpoint::open(directory) {
        Ok(checkpoint) => checkpoint,
        Err(e) => {
            let failures = vec![Failure { tensor: "checkpoint".into(), reason: e.to_string() }];
            return Ok(Verification { ok: false, tensors: 0, failures });
        }
    };
    let mut records: BTreeMap<&str, &TensorRecord> =
        manifest.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for planned in &manifest.plan.tensors {
        let reason = match records.remove(planned.name.as_str()) {
            None => Some("planned, but the manifest has no record of it".to_string()),
            Some(record) => check(&checkpoint, planned, record)?,
        };
        let tensor = planned.name.clone();
        failures.extend(reason.map(|reason| Failure { tensor, reason }));
    }
    failures.extend(
        records.into_keys().map(|name| Failure {
            tensor: name.into(),
            reason: "recorded, but not planned".into(),
        }),
    );
    for info in checkpoint.tensors() {
        if !manifest.plan.tensors.iter().any(|t| t.name == info.name) {
            failures.push(Failure { tensor: info.name.clone(), reason: "was not planned".into() });
        }
    }
    failures.extend(check_files(&checkpoint, &manifest)?);
    let tensors = checkpoint.tensors().len();
    Ok(Verification { ok: failures.is_empty(), tensors, failures })
}

/// What is wrong with one tensor.
fn check(
    checkpoint: &Checkpoint,
    planned: &PlannedTensor,
    record: &TensorRecord,
) -> Result<Option<String>> {
    let Ok(info) = checkpoint.info(&planned.name) else {
        return Ok(Some("is missing".into()));
    };
    if info.shape != planned.shape || info.dtype.name() != planned.dtype {
        return Ok(Some(format!(
            "is {} {:?}; planned as {} {:?}",
            info.dtype, info.shape, planned.dtype, planned.shape
        )));
    }
    let Action::Prune { pattern, remove, .. } = &planned.action else {
        let found = tensor_digest(checkpoint, &planned.name)?;
        return Ok((found != record.source_digest).then(|| {
            format!(
                "is not planned to change, but differs from the source: {found} is not {}",
                record.source_digest
            )
        }));
    };
    let bytes = checkpoint.read(&planned.name)?;
    let values = decode_f32(&planned.name, info.dtype, &bytes)?;
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Ok(Some(format!("element {i} is {}", values[i])));
    }
    if let Some(i) = values.iter().position(|v| *v == 0.0 && v.is_sign_negative()) {
        return Ok(Some(format!("element {i} is a negative zero")));
    }
    let zeros = values.iter().filter(|v| **v == 0.0).count();
    let expected = record.pruned.as_ref().map_or(*remove, |p| p.zeros);
    if zeros != expected || zeros < *remove {
        return Ok(Some(format!("has {zeros} zeros; {expected} were written, {remove} removed")));
    }
    let pattern: Pattern = pattern.parse()?;
    // A kept weight that happens to be zero never breaks N:M; whole blocks need the exact mask,
    // which only a matrix without such weights shows.
    if matches!(pattern, Pattern::NM { .. }) || zeros == *remove {
        let shape = info.matrix_shape()?;
        let weight = ndarray::ArrayView2::from_shape(shape, &values)
            .map_err(|e| Error::plan(&planned.name, e))?;
        if let Err(e) = Mask::of_nonzeros(weight).check(pattern) {
            return Ok(Some(e.to_string()));
        }
    }
    let found = digest(&bytes);
    Ok((found != record.digest)
        .then(|| format!("differs from what was written: {found} is not {}", record.digest)))
}

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
