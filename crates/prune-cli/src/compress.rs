use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prune_checkpoint::ModelSource;
use prune_core::{Seed, block_of};
use prune_pipeline::{
    Action, ApplyOptions, Calibration, Manifest, MemoryBudget, Plan, Recipe, Rule, Schedule, apply,
    verify,
};
use serde_json::json;

use crate::args::{CalibrationArgs, OutputArgs};
use crate::error::Error;
use crate::model::{Data, Wanted, open};
use crate::output::say;
use crate::progress::Bar;
use crate::verify::report_failures;

/// A model, what is to be done to it, and the data for it.
struct Job {
    checkpoint: Box<dyn ModelSource>,
    recipe: Recipe,
    data: Option<Data>,
    memory: MemoryBudget,
    spill: Option<PathBuf>,
}

impl Job {
    fn new(
        model: &str,
        mut recipe: Recipe,
        data: &CalibrationArgs,
        memory: MemoryBudget,
    ) -> Result<Self, Error> {
        let checkpoint = open(model)?;
        let unsaid = |rule: &Rule| rule.quantizes() && rule.keep_zeros.is_none();
        if recipe.rules.iter().any(unsaid) && was_pruned(&*checkpoint)? {
            recipe.rules.iter_mut().filter(|r| unsaid(r)).for_each(|r| r.keep_zeros = Some(true));
        }
        let data = match &data.calibration {
            None => None,
            Some(path) if path.extension().is_some_and(|e| e == "safetensors") => {
                Some(Data::images(path, &*checkpoint, data.samples)?)
            }
            Some(path) if recipe.rules.iter().any(|r| r.method.as_deref() == Some("lpvit")) => {
                let reason = "lpvit is calibrated on images: a .safetensors file with a tensor \
                              `images` or `pixel_values`";
                return Err(Error::Input { path: path.clone(), reason: reason.into() });
            }
            Some(path) => {
                let wanted = Wanted::Drawn(data.samples, Seed::new(recipe.seed));
                Some(Data::tokens(path, &*checkpoint, data.seqlen, &wanted)?)
            }
        };
        Ok(Self { checkpoint, recipe, data, memory, spill: None })
    }

    fn calibration(&self) -> Option<Calibration<'_>> {
        self.data.as_ref().map(|data| {
            let calibration = data.calibration(self.memory);
            match &self.spill {
                Some(directory) => calibration.spill_to(directory),
                None => calibration,
            }
        })
    }

    fn plan(&self, calibration: Option<&Calibration<'_>>) -> Result<(Plan, Schedule), Error> {
        let plan = Plan::new(&*self.checkpoint, &self.recipe, calibration)?;
        let schedule = Schedule::new(&*self.checkpoint, &plan, calibration, self.memory)?;
        Ok((plan, schedule))
    }
}

/// Whether the manifest beside a model says that layers of it were pruned, or quantised with their
/// zeros kept: what quantises it has to leave zeros alone, unless it is told otherwise.
fn was_pruned(model: &dyn ModelSource) -> Result<bool, Error> {
    if !Manifest::path(model.path()).exists() {
        return Ok(false);
    }
    let manifest = Manifest::read(model.path())?;
    let keeps = |action: &Action| {
        matches!(action, Action::Prune { .. } | Action::Quantize { keep_zeros: true, .. })
    };
    Ok(manifest.plan.tensors.iter().any(|t| keeps(&t.action)))
}

/// `prune plan`.
pub(crate) fn plan(
    model: &str,
    recipe: Recipe,
    calibration: &CalibrationArgs,
    memory: MemoryBudget,
    as_json: bool,
) -> Result<(), Error> {
    let job = Job::new(model, recipe, calibration, memory)?;
    let (plan, schedule) = job.plan(job.calibration().as_ref())?;
    if as_json {
        say!("{}", plan.to_json()?);
    } else {
        print_plan(&plan, &schedule);
    }
    Ok(())
}

/// `prune compress` and `prune quantize`.
pub(crate) fn compress(
    model: &str,
    recipe: Recipe,
    calibration: &CalibrationArgs,
    output: &OutputArgs,
) -> Result<(), Error> {
    let job = Job::new(model, recipe, calibration, output.memory.unwrap_or_default())?;
    run(job, output)
}

/// `prune convert`, once it is clear how each layer is stored.
pub(crate) fn convert(
    checkpoint: Box<dyn ModelSource>,
    recipe: Recipe,
    output: &OutputArgs,
) -> Result<(), Error> {
    let memory = output.memory.unwrap_or_default();
    run(Job { checkpoint, recipe, data: None, memory, spill: None }, output)
}

fn run(mut job: Job, output: &OutputArgs) -> Result<(), Error> {
    let out = output.out.as_path();
    let memory = job.memory;
    job.spill = out.parent().map(|parent| match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_path_buf(),
    });
    // One for plan and run: gradients are computed once.
    let calibration = job.calibration();
    let (plan, schedule) = job.plan(calibration.as_ref())?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        flag.store(true, Ordering::Relaxed);
        eprintln!("stopping at the next safe point");
    })?;
    let options = ApplyOptions {
        shard_size: output.shard_size,
        overwrite: output.overwrite,
        resume: output.resume,
        memory,
        interrupt: Some(stop),
    };
    let bar = Bar::new(plan.tensors.len());
    let mut progress = |done: usize, _: usize, name: &str| bar.show(done, name);
    let manifest =
        apply(&*job.checkpoint, &plan, calibration.as_ref(), out, &options, &mut progress)?;
    bar.finish();
    let verification = verify(out)?;
    if output.json {
        let report = json!({"out": out, "totals": plan.totals, "schedule": schedule,
            "tensors": manifest.tensors, "verification": verification});
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_plan(&plan, &schedule);
        for tensor in &manifest.tensors {
            for note in tensor.notes() {
                say!("{}: {note}", tensor.name);
            }
        }
        say!("wrote and verified {}", out.display());
    }
    if verification.ok { Ok(()) } else { report_failures(&verification.failures) }
}

fn print_plan(plan: &Plan, schedule: &Schedule) {
    say!("{:<56} {:>10} {:>22} {:>9}", "tensor", "method", "pattern or scheme", "sparsity");
    for tensor in &plan.tensors {
        let name = &tensor.name;
        match &tensor.action {
            Action::Copy | Action::Fold { .. } => {}
            Action::Prune { method, pattern, remove, .. }
            | Action::Factorise { method, pattern, remove, .. } => {
                let all: usize = tensor.shape.iter().product();
                let sparsity = *remove as f64 / all.max(1) as f64;
                say!("{name:<56} {method:>10} {pattern:>22} {sparsity:>9.4}");
            }
            Action::Quantize { method, scheme, .. } => {
                say!("{name:<56} {method:>10} {scheme:>22}");
            }
            Action::Encode { kind } if tensor.shape.len() == 2 => {
                say!("{name:<56} {:>10} {kind:>22}", "ggml");
            }
            Action::Encode { .. } => {}
        }
    }
    let t = &plan.totals;
    if t.planned_weights > 0 {
        draw_allocation(plan);
        say!("{} of {} weights removed ({:.4})", t.removed, t.planned_weights, t.sparsity);
    }
    if t.multiplications > 0 {
        let share = t.removed_multiplications as f64 / t.multiplications as f64;
        let (gone, all) = (t.removed_multiplications, t.multiplications);
        say!("{gone} of {all} multiplications an image removed ({share:.4}), lpvit's budget");
    }
    if t.quantized_weights > 0 {
        let bits = 8.0 * t.quantized_bytes as f64 / t.quantized_weights as f64;
        say!(
            "{} weights quantised to {} bytes, {bits:.4} bits each with scales and zero points",
            t.quantized_weights,
            t.quantized_bytes
        );
    }
    say!("{} parameters in all; {} bytes to write", t.parameters, t.bytes);
    say!("{schedule}");
}

/// The sparsity of each block, as bars.
fn draw_allocation(plan: &Plan) {
    let mut blocks: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for tensor in &plan.tensors {
        if let (Some(remove), Some((block, _))) = (tensor.action.removed(), block_of(&tensor.name))
        {
            let sums = blocks.entry(block).or_default();
            sums.0 += remove;
            sums.1 += tensor.shape.iter().product::<usize>();
        }
    }
    say!("\nsparsity by block");
    for (block, (removed, all)) in blocks {
        let sparsity = removed as f64 / all.max(1) as f64;
        say!("{block:>5} {sparsity:>8.4} {}", "#".repeat((40.0 * sparsity).round() as usize));
    }
    say!("");
}
