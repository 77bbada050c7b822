use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{ArrayView2, Ix2};
use prune_checkpoint::{Checkpoint, digest};
use prune_core::{DType, Factor, FactorKind, Mask, Pattern, TensorSource};

use crate::Result;
use crate::compress::decode_factor;
use crate::manifest::{FACTORS, Manifest, TensorRecord};
use crate::method::Method;
use crate::plan::{Action, PlannedTensor};
use crate::verify::Failure;

/// The file of factors of a model directory, where there is one.
pub(crate) fn open_factors(directory: &Path) -> Result<Option<Checkpoint>> {
    let path = directory.join(FACTORS);
    Ok(if path.exists() { Some(Checkpoint::open(&path)?) } else { None })
}

/// How many factors were read, and what is wrong with them: every planned one is there with its
/// bytes, the sparse one has its pattern and zeros, and their product is the weight of the model.
pub(crate) fn check_factors(
    directory: &Path,
    checkpoint: &Checkpoint,
    manifest: &Manifest,
) -> Result<(usize, Vec<Failure>)> {
    let fail = |tensor: &str, reason: String| Failure { tensor: tensor.into(), reason };
    let planned: Vec<&PlannedTensor> =
        manifest.plan.tensors.iter().filter(|t| !t.action.factors().is_empty()).collect();
    let file = match open_factors(directory) {
        Ok(None) if planned.is_empty() => return Ok((0, Vec::new())),
        Ok(None) => return Ok((0, vec![fail(FACTORS, "the file is missing".into())])),
        Ok(Some(file)) => file,
        Err(e) => return Ok((0, vec![fail(FACTORS, e.to_string())])),
    };
    let mut failures = Vec::new();
    let expected: Vec<&str> =
        planned.iter().flat_map(|t| t.action.factors()).map(|f| f.name.as_str()).collect();
    for info in file.tensors() {
        if !expected.contains(&info.name.as_str()) {
            failures.push(fail(&info.name, "the factor was not planned".into()));
        }
    }
    let records: BTreeMap<&str, &TensorRecord> =
        manifest.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for tensor in planned {
        // A missing record is reported with the tensor itself.
        if let Some(record) = records.get(tensor.name.as_str())
            && let Err((name, reason)) = check_layer(&file, checkpoint, tensor, record)?
        {
            failures.push(fail(&name, reason));
        }
    }
    Ok((expected.len(), failures))
}

type Verdict = std::result::Result<(), (String, String)>;

fn check_layer(
    file: &Checkpoint,
    checkpoint: &Checkpoint,
    tensor: &PlannedTensor,
    record: &TensorRecord,
) -> Result<Verdict> {
    let (Action::Factorise { pattern, remove, factors, .. }, Some(Method::Factoriser(method))) =
        (&tensor.action, Method::of(&tensor.action)?)
    else {
        return Ok(Ok(()));
    };
    let pattern: Pattern = pattern.parse()?;
    let &[rows, cols] = tensor.shape.as_slice() else {
        return Ok(Err((tensor.name.clone(), "is no matrix".into())));
    };
    let zeros = record.factored.as_ref().map_or(*remove, |f| f.zeros);
    let mut read = Vec::new();
    for (i, (planned, form)) in factors.iter().zip(method.factors(rows, cols)).enumerate() {
        let wrong = |reason: String| Ok(Err((planned.name.clone(), reason)));
        let Ok(info) = file.info(&planned.name) else { return wrong("is missing".into()) };
        if info.shape != planned.shape || planned.dtype.parse().ok() != Some(info.dtype) {
            let (found, shape) = (info.dtype, &info.shape);
            let (dtype, expected) = (&planned.dtype, &planned.shape);
            return wrong(format!("is {found} {shape:?}; planned as {dtype} {expected:?}"));
        }
        let bytes = file.read(&planned.name)?;
        let found = digest(&bytes);
        let factor = decode_factor(info, form.role, form.kind, &bytes)?;
        drop(bytes);
        if let Some(reason) = check_values(&factor, pattern, *remove, zeros) {
            return wrong(reason);
        }
        match record.factors().get(i) {
            Some(recorded) if recorded.digest == found => {}
            Some(recorded) => {
                return wrong(format!(
                    "differs from what was written: {found} is not {}",
                    recorded.digest
                ));
            }
            None => return wrong("planned, but the manifest has no record of it".into()),
        }
        read.push(factor);
    }
    let product = match method.product(&read, pattern) {
        Ok(product) => product,
        Err(e) => return Ok(Err((tensor.name.clone(), format!("its factors: {e}")))),
    };
    drop(read);
    let (Ok(info), Ok(weight)) =
        (checkpoint.info(&tensor.name), checkpoint.read_matrix(&tensor.name))
    else {
        // Reported with the tensor itself.
        return Ok(Ok(()));
    };
    Ok(match distance(product.view(), weight.view(), info.dtype) {
        None => Ok(()),
        Some(row) => Err((
            tensor.name.clone(),
            format!("row {row} is not the product of its factors in {FACTORS}"),
        )),
    })
}

/// What is wrong with the values of a factor.
fn check_values(factor: &Factor, pattern: Pattern, remove: usize, zeros: usize) -> Option<String> {
    if let Some(i) = factor.values.iter().position(|v| !v.is_finite()) {
        return Some(format!("element {i} is not finite"));
    }
    if let Some(i) = factor.values.iter().position(|v| v.to_bits() == 1 << 31) {
        return Some(format!("element {i} is a negative zero"));
    }
    if factor.kind != FactorKind::Sparse {
        return None;
    }
    let found = factor.values.iter().filter(|v| **v == 0.0).count();
    if found != zeros || found < remove {
        return Some(format!("has {found} zeros; {zeros} were written, {remove} removed"));
    }
    match factor.values.view().into_dimensionality::<Ix2>() {
        Ok(core) => Mask::of_nonzeros(core).check(pattern).err().map(|e| e.to_string()),
        Err(e) => Some(e.to_string()),
    }
}

/// The first row in which a weight is further from the product than its dtype rounds, with what a
/// product in f32 on another processor may differ by.
fn distance(
    product: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    dtype: DType,
) -> Option<usize> {
    let rounding = match dtype {
        DType::BF16 => 2f32.powi(-8),
        DType::F16 => 2f32.powi(-11),
        _ => 0.0,
    };
    let other_sum = 2f32.powi(-16);
    let rows = product.outer_iter().zip(weight.outer_iter());
    rows.enumerate().find_map(|(i, (product, weight))| {
        let largest = product.iter().fold(0f32, |m, p| m.max(p.abs()));
        // Below its normal numbers f16 rounds to multiples of 2^-24.
        let floor = largest * other_sum + if dtype == DType::F16 { 2f32.powi(-25) } else { 0.0 };
        let far = |(p, w): (&f32, &f32)| (p - w).abs() > p.abs() * rounding + floor;
        product.iter().zip(weight).any(far).then_some(i)
    })
}
