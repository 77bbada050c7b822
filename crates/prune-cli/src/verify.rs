use std::path::Path;

use prune_core::Seed;
use prune_pipeline::{
    CalibrationShape, Failure, Manifest, MemoryBudget, Verification, rederive, verify,
};

use crate::error::Error;
use crate::model::{Data, Wanted, open};
use crate::output::say;
use crate::progress::Bar;

/// `prune verify`: what stands on the disk against its manifest.
pub(crate) fn check(directory: &Path, as_json: bool) -> Result<(), Error> {
    report(directory, &verify(directory)?, as_json)
}

/// `prune verify --rederive`: the same, and the recipe run again on its source.
pub(crate) fn check_again(
    directory: &Path,
    source: &str,
    calibration: Option<&Path>,
    memory: MemoryBudget,
    as_json: bool,
) -> Result<(), Error> {
    let mut verification = verify(directory)?;
    let manifest = Manifest::read(directory)?;
    let source = open(source)?;
    let data = match (calibration, manifest.plan.calibration) {
        (Some(path), Some(CalibrationShape::Tokens { samples, seqlen })) => {
            let wanted = Wanted::Drawn(samples, Seed::new(manifest.plan.recipe.seed));
            Some(Data::tokens(path, &*source, seqlen, &wanted)?)
        }
        (Some(path), Some(CalibrationShape::Images { images, .. })) => {
            Some(Data::images(path, &*source, images)?)
        }
        _ => None,
    };
    let calibration = data.as_ref().map(|data| data.calibration(memory));
    let bar = Bar::new(manifest.plan.tensors.len());
    let again =
        rederive(directory, &*source, calibration.as_ref(), memory, &mut |done, _, name| {
            bar.show(done, name);
        })?;
    bar.finish();
    for failure in again.failures {
        if !verification.failures.iter().any(|f| f.tensor == failure.tensor) {
            verification.failures.push(failure);
        }
    }
    verification.ok &= again.ok;
    report(directory, &verification, as_json)
}

fn report(directory: &Path, verification: &Verification, as_json: bool) -> Result<(), Error> {
    if as_json {
        say!("{}", serde_json::to_string_pretty(verification)?);
    } else if verification.ok {
        let Verification { tensors, factors, .. } = verification;
        print!("{}: {tensors} tensors verified", directory.display());
        match factors {
            0 => say!(""),
            _ => say!(", and {factors} factors against the product"),
        }
    }
    if verification.ok { Ok(()) } else { report_failures(&verification.failures) }
}

/// Names every failure on stderr.
pub(crate) fn report_failures(failures: &[Failure]) -> Result<(), Error> {
    for failure in failures {
        eprintln!("{}: {}", failure.tensor, failure.reason);
    }
    Err(Error::Verification)
}
