use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prune_checkpoint::Checkpoint;
use prune_core::{BlockModel, Seed, block_of};
use prune_pipeline::{
    Action, ApplyOptions, Calibration, MemoryBudget, Plan, Recipe, Schedule, Targets, TokenWindows,
    apply, verify,
};
use serde_json::json;

use crate::args::{CalibrationArgs, RecipeArgs};
use crate::error::Error;
use crate::model::{Wanted, load, open, windows};
use crate::progress::Bar;
use crate::verify::report_failures;

/// A model, what is to be done to it, and the data for it.
struct Job {
    checkpoint: Checkpoint,
    recipe: Recipe,
    calibration: Option<(Box<dyn BlockModel>, TokenWindows)>,
    memory: MemoryBudget,
    spill: Option<PathBuf>,
}

impl Job {
    fn new(
        model: &str,
        args: &RecipeArgs,
        data: &CalibrationArgs,
        memory: MemoryBudget,
    ) -> Result<Self, Error> {
        let recipe = recipe(args)?;
        let checkpoint = open(model)?;
        let calibration = match &data.calibration {
            None => None,
            Some(path) => {
                let model = load(&checkpoint)?;
                let wanted = Wanted::Drawn(data.samples, Seed::new(recipe.seed));
                let windows = windows(path, &checkpoint, &*model, data.seqlen, &wanted)?;
                Some((model, windows))
            }
        };
        Ok(Self { checkpoint, recipe, calibration, memory, spill: None })
    }

    fn calibration(&self) -> Option<Calibration<'_>> {
        self.calibration.as_ref().map(|(model, windows)| {
            let calibration = Calibration::new(&**model, windows).memory(self.memory);
            match &self.spill {
                Some(directory) => calibration.spill_to(directory),
                None => calibration,
            }
        })
    }

    fn plan(&self) -> Result<(Plan, Schedule), Error> {
        let calibration = self.calibration();
        let plan = Plan::new(&self.checkpoint, &self.recipe, calibration.as_ref())?;
        let schedule = Schedule::new(&self.checkpoint, &plan, calibration.as_ref(), self.memory)?;
        Ok((plan, schedule))
    }
}

/// `prune plan`.
pub(crate) fn plan(
    model: &str,
    recipe: &RecipeArgs,
    calibration: &CalibrationArgs,
    memory: MemoryBudget,
    as_json: bool,
) -> Result<(), Error> {
    let (plan, schedule) = Job::new(model, recipe, calibration, memory)?.plan()?;
    if as_json {
        println!("{}", plan.to_json()?);
    } else {
        print_plan(&plan, &schedule);
    }
    Ok(())
}

/// Where and how `prune compress` writes.
pub(crate) struct Output {
    pub(crate) directory: PathBuf,
    pub(crate) shard_size: u64,
    pub(crate) overwrite: bool,
    pub(crate) resume: bool,
    pub(crate) json: bool,
}

/// `prune compress`.
pub(crate) fn compress(
    model: &str,
    recipe: &RecipeArgs,
    calibration: &CalibrationArgs,
    memory: MemoryBudget,
    output: &Output,
) -> Result<(), Error> {
    let out = output.directory.as_path();
    let mut job = Job::new(model, recipe, calibration, memory)?;
    job.spill = out.parent().map(|parent| match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_path_buf(),
    });
    let (plan, schedule) = job.plan()?;
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
    let calibration = job.calibration();
    let mut progress = |done: usize, _: usize, name: &str| bar.show(done, name);
    let manifest =
        apply(&job.checkpoint, &plan, calibration.as_ref(), out, &options, &mut progress)?;
    bar.finish();
    let verification = verify(out)?;
    if output.json {
        let report = json!({"out": out, "totals": plan.totals, "schedule": schedule,
            "tensors": manifest.tensors, "verification": verification});
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_plan(&plan, &schedule);
        for tensor in &manifest.tensors {
            for note in tensor.notes() {
                println!("{}: {note}", tensor.name);
            }
        }
        println!("wrote and verified {}", out.display());
    }
    if verification.ok { Ok(()) } else { report_failures(&verification.failures) }
}

fn recipe(args: &RecipeArgs) -> Result<Recipe, Error> {
    let mut recipe = match &args.recipe {
        Some(path) => read_recipe(path)?,
        None => Recipe::new(args.method.as_deref().unwrap_or_default()),
    };
    if args.recipe.is_none()
        && let Some(rule) = recipe.rules.first_mut()
    {
        rule.sparsity = args.sparsity;
        rule.pattern.clone_from(&args.pattern);
        rule.scope.clone_from(&args.scope);
        rule.allocate.clone_from(&args.allocate);
        rule.options.extend(args.option.iter().cloned());
    }
    if args.targets.as_deref() == Some("dense") {
        recipe.targets = Targets::Dense;
    }
    if let Some(seed) = args.seed {
        recipe.seed = seed;
    }
    Ok(recipe)
}

fn read_recipe(path: &Path) -> Result<Recipe, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::Input { path: path.into(), reason: e.to_string() })?;
    Ok(Recipe::from_yaml(&text)?)
}

fn print_plan(plan: &Plan, schedule: &Schedule) {
    println!("{:<56} {:>10} {:>14} {:>9}", "tensor", "method", "pattern", "sparsity");
    for tensor in &plan.tensors {
        if let Action::Prune { method, pattern, remove, .. }
        | Action::Factorise { method, pattern, remove, .. } = &tensor.action
        {
            let all: usize = tensor.shape.iter().product();
            let sparsity = *remove as f64 / all.max(1) as f64;
            println!("{:<56} {method:>10} {pattern:>14} {sparsity:>9.4}", tensor.name);
        }
    }
    draw_allocation(plan);
    let t = &plan.totals;
    println!(
        "{} of {} weights removed ({:.4}); {} parameters in all; {} bytes to write",
        t.removed, t.planned_weights, t.sparsity, t.parameters, t.bytes,
    );
    println!("{schedule}");
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
    println!("\nsparsity by block");
    for (block, (removed, all)) in blocks {
        let sparsity = removed as f64 / all.max(1) as f64;
        println!("{block:>5} {sparsity:>8.4} {}", "#".repeat((40.0 * sparsity).round() as usize));
    }
    println!();
}
