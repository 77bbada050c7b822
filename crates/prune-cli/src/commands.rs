use prune_candle::LlamaModel;
use prune_pipeline::{Weighted, diff, evaluate, linear_layers};
use serde_json::json;

use crate::args::{Command, EvalArgs};
use crate::compress;
use crate::convert;
use crate::diagnose;
use crate::error::Error;
use crate::flags::Flags;
use crate::kv;
use crate::model::{Wanted, load, open, windows};
use crate::output::say;
use crate::verify;

pub(crate) fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Inspect { model, json } => inspect(&model, json),
        Command::Plan { model, recipe, prune, quant, calibration, memory, json } => {
            let flags = Flags { recipe: &recipe, prune: Some(&prune), quant: Some(&quant) };
            compress::plan(&model, flags.recipe()?, &calibration, memory.unwrap_or_default(), json)
        }
        Command::Compress { model, output, recipe, prune, calibration } => {
            let flags = Flags { recipe: &recipe, prune: Some(&prune), quant: None };
            compress::compress(&model, flags.recipe()?, &calibration, &output)
        }
        Command::Quantize { model, output, recipe, quant, calibration } => {
            let flags = Flags { recipe: &recipe, prune: None, quant: Some(&quant) };
            compress::compress(&model, flags.recipe()?, &calibration, &output)
        }
        Command::Convert { model, output, format, kind, embeddings } => {
            convert::convert(&model, &output, &format, &kind, embeddings)
        }
        Command::Verify { directory, rederive, source, calibration, memory, json } => {
            match source.filter(|_| rederive) {
                None => verify::check(&directory, json),
                Some(source) => {
                    let memory = memory.unwrap_or_default();
                    verify::check_again(&directory, &source, calibration.as_deref(), memory, json)
                }
            }
        }
        Command::Diagnose(args) => diagnose::run(&args),
        Command::Diff { before, after, all, json } => show_diff(&before, &after, all, json),
        Command::KvTune(args) => kv::tune(&args),
        Command::Eval(args) => match &args.kv {
            Some(config) => kv::evaluate(&args, config),
            None => eval(&args),
        },
    }
}

fn inspect(model: &str, as_json: bool) -> Result<(), Error> {
    let checkpoint = open(model)?;
    let mut rows = Vec::new();
    for layer in linear_layers(&*checkpoint) {
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
        say!("{}", serde_json::to_string_pretty(&json!({ "layers": layers }))?);
        return Ok(());
    }
    say!("{:<48} {:>16} {:>6} {:>9}", "layer", "shape", "dtype", "sparsity");
    for (layer, dtype, sparsity) in rows {
        let shape = format!("{} x {}", layer.shape[0], layer.shape[1]);
        say!("{:<48} {shape:>16} {:>6} {sparsity:>9.4}", layer.id.as_str(), dtype.name());
    }
    Ok(())
}

fn show_diff(before: &str, after: &str, all: bool, as_json: bool) -> Result<(), Error> {
    let (a, b) = (open(before)?, open(after)?);
    let mut tensors = diff(&*a, &*b)?;
    let count = tensors.len();
    if !all {
        tensors.retain(|t| !t.is_equal());
    }
    if as_json {
        say!("{}", serde_json::to_string_pretty(&json!({ "tensors": tensors }))?);
        return Ok(());
    }
    say!(
        "{:<52} {:>10} {:>18} {:>12} {:>12} {:>10}",
        "tensor",
        "changed",
        "zeros",
        "pattern",
        "dtype",
        "rel. norm"
    );
    for t in &tensors {
        let (Some(x), Some(y)) = (&t.before, &t.after) else {
            let place = if t.before.is_some() { before } else { after };
            say!("{:<52} only in {place}", t.tensor);
            continue;
        };
        if x.shape != y.shape {
            say!("{:<52} {:?} -> {:?}", t.tensor, x.shape, y.shape);
            continue;
        }
        let pair = |a: String, b: String| if a == b { a } else { format!("{a} -> {b}") };
        let number = |n: Option<usize>| n.map_or("-".into(), |n| n.to_string());
        let text = |s: &Option<String>| s.clone().unwrap_or_else(|| "-".into());
        say!(
            "{:<52} {:>10} {:>18} {:>12} {:>12} {:>10}",
            t.tensor,
            number(t.changed),
            pair(number(x.zeros), number(y.zeros)),
            pair(text(&x.pattern), text(&y.pattern)),
            pair(x.dtype.clone(), y.dtype.clone()),
            t.relative_norm.map_or("-".into(), |n| format!("{n:.3e}")),
        );
    }
    say!("{count} tensors, {} shown", tensors.len());
    Ok(())
}

fn eval(args: &EvalArgs) -> Result<(), Error> {
    let checkpoint = open(&args.model)?;
    let loaded = match args.input_block {
        Some(block) => Box::new(
            LlamaModel::new(&checkpoint.config()?, &*checkpoint)?.with_rounded_inputs(block)?,
        ),
        None => load(&*checkpoint)?,
    };
    let wanted = Wanted::First(args.windows);
    let windows = windows(&args.text, &*checkpoint, &*loaded, args.seqlen, &wanted)?;
    let base = match &args.baseline {
        None => None,
        Some(name) => {
            let checkpoint = open(name)?;
            let model = load(&*checkpoint)?;
            Some((checkpoint, model))
        }
    };
    let base =
        base.as_ref().map(|(weights, model)| Weighted { model: &**model, weights: &**weights });
    let subject = Weighted { model: &*loaded, weights: &*checkpoint };
    let result = evaluate(subject, &windows, base)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    say!("perplexity {:.4} over {} tokens", result.perplexity, result.tokens);
    if let (Some(kl), Some(base)) = (result.kl, result.baseline_perplexity) {
        say!("baseline   {base:.4}, KL divergence {kl:.6} nats a token");
    }
    say!("{:.1} s, {:.0} tokens/s", result.seconds, result.tokens_per_second);
    Ok(())
}
