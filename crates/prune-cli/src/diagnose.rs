use std::collections::BTreeMap;
use std::path::Path;

use prune_core::{LayerInfo, Seed, TensorSource};
use prune_pipeline::linear_layers;
use prune_spectral::plot::{DensityPlot, DepthPlot};
use prune_spectral::{
    Bootstrap, Column, DiagnoseOptions, Diagnosis, Farms, Interval, Placement, Spacing, Spectrum,
    TailFit, Warning, diagnose,
};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::args::{DiagnoseArgs, SpectralMethod};
use crate::error::Error;
use crate::model::open;
use crate::output::say;
use crate::progress::Bar;

/// What was measured of one layer.
pub(crate) struct LayerReport {
    pub(crate) layer: LayerInfo,
    dtype: &'static str,
    sparsity: f64,
    /// WeightWatcher's metrics.
    pub(crate) whole: Option<Diagnosis>,
    /// The exponent of windows, and its interval.
    pub(crate) farms: Option<(f64, Option<Interval>)>,
    /// Why a metric is missing.
    note: Option<String>,
}

impl LayerReport {
    /// The exponent that the chosen method gives.
    pub(crate) fn alpha(&self) -> Option<f64> {
        self.farms.map(|(alpha, _)| alpha).or(self.whole.as_ref().and_then(|d| d.alpha))
    }
}

/// `prune diagnose`.
pub(crate) fn run(args: &DiagnoseArgs) -> Result<(), Error> {
    let checkpoint = open(&args.model)?;
    let layers = linear_layers(&*checkpoint);
    if layers.is_empty() {
        return Err(Error::Input {
            path: args.model.clone().into(),
            reason: "has no linear layers in blocks".into(),
        });
    }
    let bar = Bar::new(layers.len());
    let done = std::sync::atomic::AtomicUsize::new(0);
    let reports: Vec<LayerReport> = layers
        .into_par_iter()
        .map(|layer| {
            let name = layer.id.to_string();
            let report = measure(&*checkpoint, layer, args)?;
            bar.show(1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed), &name);
            Ok(report)
        })
        .collect::<Result<_, Error>>()?;
    bar.finish();
    if let Some(directory) = &args.plot {
        plot(&*checkpoint, &reports, directory)?;
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&to_json(&reports))?);
    } else {
        print(&reports);
    }
    Ok(())
}

/// Draws the mean exponent of the blocks by depth, and the spectral density of each layer with its
/// power law.
fn plot(
    checkpoint: &dyn TensorSource,
    reports: &[LayerReport],
    directory: &Path,
) -> Result<(), Error> {
    std::fs::create_dir_all(directory)
        .map_err(|e| Error::Input { path: directory.into(), reason: e.to_string() })?;
    let points = block_means(reports).into_iter().collect();
    DepthPlot::new("alpha by depth")
        .series("mean of the block", points)
        .save(&directory.join("alpha-by-depth.svg"))?;
    for report in reports {
        let name = report.layer.id.as_str();
        let weight = checkpoint.read_matrix(&report.layer.id.weight_name())?;
        let spectrum = Spectrum::of(weight.view())?;
        let mut figure = DensityPlot::new(name, &spectrum);
        if let Ok(fit) = TailFit::default().fit(&spectrum) {
            figure = figure.fit(fit);
        }
        figure.save(&directory.join(format!("{name}.svg")))?;
    }
    Ok(())
}

/// The windows that the arguments ask for.
fn farms(args: &DiagnoseArgs) -> Result<Farms, Error> {
    let mut farms = Farms::new(args.window, args.aspect)?;
    if let Some(count) = args.steps {
        farms = farms.spacing(Spacing::Count(count))?;
    }
    Ok(if args.released { farms.placement(Placement::Released) } else { farms })
}

fn measure(
    checkpoint: &dyn TensorSource,
    layer: LayerInfo,
    args: &DiagnoseArgs,
) -> Result<LayerReport, Error> {
    let name = layer.id.weight_name();
    let dtype = checkpoint.info(&name)?.dtype.name();
    let weight = checkpoint.read_matrix(&name)?;
    let zeros = weight.iter().filter(|w| **w == 0.0).count();
    let mut report = LayerReport {
        layer,
        dtype,
        sparsity: zeros as f64 / weight.len().max(1) as f64,
        whole: None,
        farms: None,
        note: None,
    };
    let bootstrap = match args.interval {
        0 => None,
        replicates => Some(Bootstrap::new(replicates, 0.95, Seed::new(args.seed))?),
    };
    let layer = report.layer.id.as_str();
    let measured: Result<(), prune_spectral::Error> = match args.method {
        SpectralMethod::Weightwatcher => {
            let mut options = match args.released {
                true => DiagnoseOptions::weightwatcher(),
                false => DiagnoseOptions::default(),
            };
            if args.randomise {
                options = options.randomise(Seed::new(args.seed));
            }
            if let Some(bootstrap) = bootstrap {
                options = options.interval(bootstrap);
            }
            diagnose(layer, weight.view(), &options).map(|found| report.whole = Some(found))
        }
        SpectralMethod::Farms => {
            let fit = if args.released { TailFit::released_peak() } else { TailFit::peak() };
            let farms = farms(args)?.fit(fit);
            (|| {
                let alpha = farms.measure(weight.view())?.alpha;
                let interval = match bootstrap {
                    None => None,
                    Some(b) => {
                        let spectra = farms.spectra(weight.view())?;
                        b.over_windows(layer, &spectra, &fit).ok()
                    }
                };
                report.farms = Some((alpha, interval));
                Ok(())
            })()
        }
    };
    if let Err(e) = measured {
        report.note = Some(e.to_string());
    }
    Ok(report)
}

fn to_json(reports: &[LayerReport]) -> Value {
    let layers: Vec<Value> = reports
        .iter()
        .map(|r| {
            let mut object = Map::new();
            object.insert("name".into(), r.layer.id.as_str().into());
            object.insert("shape".into(), json!(r.layer.shape));
            object.insert("dtype".into(), r.dtype.into());
            object.insert("sparsity".into(), r.sparsity.into());
            if let Some(diagnosis) = &r.whole {
                for (column, value) in diagnosis.columns() {
                    let value = match value {
                        Column::Count(n) => json!(n),
                        Column::Number(v) => json!(v),
                        Column::Text(t) => json!(t),
                        Column::Missing => Value::Null,
                    };
                    object.insert(column.into(), value);
                }
            }
            if let Some((alpha, interval)) = &r.farms {
                object.insert("alpha".into(), json!(alpha));
                if let Some(i) = interval {
                    object.insert("alpha_low".into(), json!(i.low));
                    object.insert("alpha_high".into(), json!(i.high));
                }
            }
            if let Some(note) = &r.note {
                object.insert("note".into(), note.clone().into());
            }
            Value::Object(object)
        })
        .collect();
    let blocks: Vec<Value> =
        block_means(reports).iter().map(|(b, a)| json!({"block": b, "alpha": a})).collect();
    json!({ "layers": layers, "blocks": blocks })
}

fn block_means(reports: &[LayerReport]) -> BTreeMap<usize, f64> {
    let mut sums: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for report in reports {
        if let (Some(block), Some(alpha)) = (report.layer.block, report.alpha()) {
            let sum = sums.entry(block).or_default();
            sum.0 += alpha;
            sum.1 += 1;
        }
    }
    sums.into_iter().map(|(block, (sum, n))| (block, sum / n as f64)).collect()
}

fn print(reports: &[LayerReport]) {
    let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.3}"));
    say!(
        "{:<44} {:>13} {:>8} {:>16} {:>9} {:>11} {:>7} {:>8}",
        "layer",
        "shape",
        "alpha",
        "95 % interval",
        "alpha-hat",
        "stable rank",
        "spikes",
        "sparsity"
    );
    for r in reports {
        let shape = format!("{} x {}", r.layer.shape[0], r.layer.shape[1]);
        let whole = r.whole.as_ref();
        let interval = r.farms.and_then(|(_, i)| i).or(whole.and_then(|d| d.interval));
        say!(
            "{:<44} {shape:>13} {:>8} {:>16} {:>9} {:>11} {:>7} {:>8.3}",
            r.layer.id.as_str(),
            number(r.alpha()),
            interval.map_or("-".into(), |i| format!("{:.2} to {:.2}", i.low, i.high)),
            number(whole.and_then(|d| d.alpha_weighted)),
            number(whole.map(|d| d.stable_rank)),
            whole.and_then(|d| d.num_spikes).map_or("-".into(), |n| n.to_string()),
            r.sparsity,
        );
    }
    let means = block_means(reports);
    let (low, high) =
        means.values().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), a| (l.min(*a), h.max(*a)));
    say!("\nmean alpha by block");
    for (block, alpha) in &means {
        let part = if high > low { (alpha - low) / (high - low) } else { 0.0 };
        say!("{block:>5} {alpha:>8.3} {}", "#".repeat(4 + (36.0 * part) as usize));
    }
    for r in reports {
        if let Some(note) = &r.note {
            say!("{}: {note}", r.layer.id);
        }
        if let Some(warning) = r.alpha().and_then(Warning::of) {
            say!("{}: {warning} (alpha {})", r.layer.id, number(r.alpha()));
        }
    }
}
