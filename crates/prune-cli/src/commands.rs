use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use prune_candle::LlamaModel;
use prune_checkpoint::Checkpoint;
use prune_core::{Seed, TensorSource};
use prune_pipeline::{
    Action, ApplyOptions, Calibration, Plan, Recipe, TokenWindows, Weighted, apply, evaluate,
    linear_layers, verify,
};
use serde_json::json;

use crate::args::{CalibrationArgs, Command, RecipeArgs};
use crate::error::Error;
use crate::model::{Wanted, load, open, windows};

pub(crate) fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Inspect { model, json } => inspect(&model, json),
        Command::Plan { model, recipe, calibration, json } => {
            let job = Job::new(&model, &recipe, &calibration)?;
            let plan = job.plan()?;
            if json {
                println!("{}", plan.to_json()?);
            } else {
                print_plan(&plan);
            }
            Ok(())
        }
        Command::Compress { model, out, recipe, calibration, shard_size, overwrite, json } => {
            let job = Job::new(&model, &recipe, &calibration)?;
            job.compress(&out, &ApplyOptions { shard_size, overwrite }, json)
        }
        Command::Verify { directory, json } => check(&directory, json),
        Command::Eval { model, text, seqlen, windows, baseline, json } => {
            eval(&model, &text, seqlen, windows, baseline.as_deref(), json)
        }
    }
}

fn inspect(model: &str, as_json: bool) -> Result<(), Error> {
    let checkpoint = open(model)?;
    let mut rows = Vec::new();
    for layer in linear_layers(&checkpoint) {
        let info = checkpoint.info(&layer.id.weight_name())?;
        let values = checkpoint.read_f32(&info.name)?;
        let zeros = values.iter().filter(|v| **v == 0.0).count();
        rows.push((layer, info.dtype, zeros as f64 / values.len().max(1) as f64));
    }
    if as_json {
        let layers: Vec<_> = rows
            .iter()
            .map(|(l, dtype, sparsity)| {
                json!({"name": l.id.as_str(), "shape": l.shape, "dtype": dtype.name(),
                    "sparsity": sparsity})
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "layers": layers }))?);
        return Ok(());
    }
    println!("{:<48} {:>16} {:>6} {:>9}", "layer", "shape", "dtype", "sparsity");
    for (layer, dtype, sparsity) in rows {
        let shape = format!("{} x {}", layer.shape[0], layer.shape[1]);
        println!("{:<48} {shape:>16} {:>6} {sparsity:>9.4}", layer.id.as_str(), dtype.name());
    }
    Ok(())
}

/// A model, what is to be done to it, and the data for it.
struct Job {
    checkpoint: Checkpoint,
    recipe: Recipe,
    calibration: Option<(LlamaModel, TokenWindows)>,
}

impl Job {
    fn new(model: &str, args: &RecipeArgs, data: &CalibrationArgs) -> Result<Self, Error> {
        let recipe = recipe(args)?;
        let checkpoint = open(model)?;
        let calibration = match &data.calibration {
            None => None,
            Some(path) => {
                let model = load(&checkpoint)?;
                let wanted = Wanted::Drawn(data.samples, Seed::new(recipe.seed));
                let windows = windows(path, &checkpoint, &model, data.seqlen, &wanted)?;
                Some((model, windows))
            }
        };
        Ok(Self { checkpoint, recipe, calibration })
    }

    fn calibration(&self) -> Option<Calibration<'_>> {
        self.calibration.as_ref().map(|(model, windows)| Calibration { model, windows })
    }

    fn plan(&self) -> Result<Plan, Error> {
        Ok(Plan::new(&self.checkpoint, &self.recipe, self.calibration().as_ref())?)
    }

    fn compress(&self, out: &Path, options: &ApplyOptions, as_json: bool) -> Result<(), Error> {
        let plan = self.plan()?;
        let bar = ProgressBar::new(plan.tensors.len() as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} tensors, {eta} left  {msg}")
        {
            bar.set_style(style);
        }
        let calibration = self.calibration();
        let mut progress = |done: usize, _: usize, name: &str| {
            bar.set_position(done as u64);
            bar.set_message(name.to_string());
        };
        let manifest =
            apply(&self.checkpoint, &plan, calibration.as_ref(), out, options, &mut progress)?;
        bar.finish_and_clear();
        let verification = verify(out)?;
        if as_json {
            let report = json!({"out": out, "totals": plan.totals, "tensors": manifest.tensors,
                "verification": verification});
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print_plan(&plan);
            println!("wrote and verified {}", out.display());
        }
        if verification.ok { Ok(()) } else { report_failures(&verification.failures) }
    }
}

fn recipe(args: &RecipeArgs) -> Result<Recipe, Error> {
    let mut recipe = match &args.recipe {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| Error::Input { path: path.clone(), reason: e.to_string() })?;
            Recipe::from_yaml(&text)?
        }
        None => Recipe::new(args.method.as_deref().unwrap_or_default()),
    };
    if args.recipe.is_none()
        && let Some(rule) = recipe.rules.first_mut()
    {
        rule.sparsity = args.sparsity;
        rule.pattern.clone_from(&args.pattern);
        rule.scope.clone_from(&args.scope);
        rule.allocate.clone_from(&args.allocate);
    }
    if let Some(seed) = args.seed {
        recipe.seed = seed;
    }
    Ok(recipe)
}

fn print_plan(plan: &Plan) {
    println!("{:<56} {:>10} {:>14} {:>9}", "tensor", "method", "pattern", "sparsity");
    for tensor in &plan.tensors {
        if let Action::Prune { method, pattern, remove, .. } = &tensor.action {
            let all: usize = tensor.shape.iter().product();
            let sparsity = *remove as f64 / all.max(1) as f64;
            println!("{:<56} {method:>10} {pattern:>14} {sparsity:>9.4}", tensor.name);
        }
    }
    let t = &plan.totals;
    println!(
        "{} of {} weights removed ({:.4}); {} parameters in all; {} bytes to write; about {} MiB \
         of memory",
        t.removed,
        t.planned_weights,
        t.sparsity,
        t.parameters,
        t.bytes,
        t.peak_memory_bytes >> 20
    );
}

fn check(directory: &Path, as_json: bool) -> Result<(), Error> {
    let verification = verify(directory)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&verification)?);
    } else if verification.ok {
        println!("{}: {} tensors verified", directory.display(), verification.tensors);
    }
    if verification.ok { Ok(()) } else { report_failures(&verification.failures) }
}

fn report_failures(failures: &[prune_pipeline::Failure]) -> Result<(), Error> {
    for failure in failures {
        eprintln!("{}: {}", failure.tensor, failure.reason);
    }
    Err(Error::Verification)
}

fn eval(
    model: &str,
    text: &Path,
    length: usize,
    count: Option<usize>,
    baseline: Option<&str>,
    as_json: bool,
) -> Result<(), Error> {
    let checkpoint = open(model)?;
    let loaded = load(&checkpoint)?;
    let windows = windows(text, &checkpoint, &loaded, length, &Wanted::First(count))?;
    let base = match baseline {
        None => None,
        Some(name) => {
            let checkpoint = open(name)?;
            let model = load(&checkpoint)?;
            Some((checkpoint, model))
        }
    };
    let base = base.as_ref().map(|(weights, model)| Weighted { model, weights });
    let subject = Weighted { model: &loaded, weights: &checkpoint };
    let result = evaluate(subject, &windows, base)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!("perplexity {:.4} over {} tokens", result.perplexity, result.tokens);
    if let (Some(kl), Some(base)) = (result.kl, result.baseline_perplexity) {
        println!("baseline   {base:.4}, KL divergence {kl:.6} nats a token");
    }
    println!("{:.1} s, {:.0} tokens/s", result.seconds, result.tokens_per_second);
    Ok(())
}
