use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use prune_checkpoint::{ModelSource, StoredTensors};

use crate::apply::{calibration_digest, unchanged};
use crate::manifest::Manifest;
use crate::run::{Run, items};
use crate::schedule::Schedule;
use crate::sink::CompareSink;
use crate::store::Store;
use crate::verify::{Failure, Verification};
use crate::verify_factors::open_factors;
use crate::{Calibration, Error, MemoryBudget, Progress, Result};

/// Runs the recipe of a compressed checkpoint again, a tensor or a block at a time, and compares
/// every tensor with what stands in `directory`. Writes nothing but, within a memory budget,
/// temporary hidden states; holds the changed tensors of one block.
///
/// Proves what [`verify`](crate::verify) cannot: that the bytes are what this recipe makes of this
/// source, and not merely what the manifest says. `calibration` has to be that of the run.
///
/// # Errors
/// [`Error::Plan`] when source or calibration are not those of the run, or the manifest does not
/// parse; those of [`apply`](crate::apply). What differs is in the [`Verification`].
pub fn rederive(
    directory: &Path,
    source: &dyn ModelSource,
    calibration: Option<&Calibration<'_>>,
    memory: MemoryBudget,
    progress: &mut Progress<'_>,
) -> Result<Verification> {
    let manifest = Manifest::read(directory)?;
    let checkpoint = StoredTensors::open(directory)?;
    let plan = &manifest.plan;
    let store = Store::of(&plan.recipe)?;
    let items = items(source, plan, &store)?;
    let schedule = Schedule::new(source, plan, calibration, memory)?;
    let found = calibration_digest(calibration, &schedule);
    if manifest.calibration_digest.is_some() && found != manifest.calibration_digest {
        return Err(match found {
            None => Error::NeedsCalibration { what: "the recipe of this checkpoint".into() },
            Some(found) => Error::plan(
                "calibration data",
                format!(
                    "their digest is {found}; the run had {}",
                    manifest.calibration_digest.unwrap_or_default()
                ),
            ),
        });
    }
    let states = source.file_states()?;
    let factors = open_factors(directory)?;
    let sink = CompareSink::new(&checkpoint, factors.as_ref(), &manifest);
    let run = Run {
        source,
        plan,
        store: &store,
        sink: &sink,
        schedule: &schedule,
        budget: memory,
        calibration,
        interrupt: None,
        progress: Mutex::new(progress),
        records: Mutex::new(BTreeMap::new()),
    };
    run.run(&items)?;
    drop(run);
    unchanged(source, &states)?;
    let mut failures = sink.failures();
    if manifest.processor.as_ref().is_some_and(|p| *p != crate::processor()) && !failures.is_empty()
    {
        failures.push(Failure {
            tensor: "processor".into(),
            reason: format!(
                "the run was on {}, this is {}: last places may differ",
                manifest.processor.clone().unwrap_or_default(),
                crate::processor()
            ),
        });
    }
    Ok(Verification {
        ok: failures.is_empty(),
        tensors: items.len(),
        factors: items.iter().map(|item| item.factors.len()).sum(),
        failures,
    })
}
