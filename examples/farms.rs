//! The heavy-tail exponent of every linear layer, from whole weights and from windows of one shape
//! (FARMS), and how much of its spread over layers is an effect of their shapes. Needs no data.
//!
//! ```text
//! cargo run --release --example farms -- [MODEL] [--window N] [--out DIR]
//! ```
//!
//! MODEL is a directory of safetensors or a GGUF file; the default is `assets/tiny-llama`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use prune_checkpoint::Checkpoint;
use prune_core::{LayerInfo, Seed, TensorSource};
use prune_pipeline::linear_layers;
use prune_spectral::plot::{DensityPlot, DepthPlot, ShapePlot};
use prune_spectral::{Bootstrap, Farms, Spectrum, TailFit};

#[derive(Parser)]
struct Args {
    /// A directory of safetensors or a GGUF file.
    model: Option<PathBuf>,
    /// Rows of a window; half of the shortest side of any layer by default.
    #[arg(long)]
    window: Option<usize>,
    /// Columns of a window over its rows.
    #[arg(long, default_value_t = 1.0)]
    aspect: f64,
    /// Where the figures go.
    #[arg(long, default_value = "out/farms")]
    out: PathBuf,
}

struct Row {
    layer: LayerInfo,
    whole: f64,
    windows: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-llama");
    let checkpoint = Checkpoint::open(args.model.as_deref().unwrap_or(&default))?;
    let layers = linear_layers(&checkpoint);
    let shortest = layers.iter().flat_map(|l| &l.shape).min().copied().unwrap_or(0);
    let window = args.window.unwrap_or((shortest / 2).max(1));
    // The median start of the tail: a scale-free choice that uses the same share of every
    // spectrum. `TailFit::peak()` is what the paper prunes language models with.
    let fit = TailFit::median();
    let farms = Farms::new(window, args.aspect)?.fit(fit);
    let bootstrap = Bootstrap::new(50, 0.9, Seed::new(0))?;
    fs::create_dir_all(&args.out)?;

    println!("{:<40} {:>12} {:>7} {:>7}  90 % interval", "layer", "shape", "whole", "farms");
    let mut rows = Vec::with_capacity(layers.len());
    // One layer after the other: its windows are worked on side by side.
    for layer in layers {
        let name = layer.id.to_string();
        let weight = checkpoint.read_matrix(&layer.id.weight_name())?;
        let spectrum = Spectrum::of(weight.view()).map_err(|e| e.in_layer(&name))?;
        let whole = fit.fit(&spectrum).map_err(|e| e.in_layer(&name))?;
        let measure = farms.measure(weight.view()).map_err(|e| e.in_layer(&name))?;
        // A layer of the size of a window has one window: nothing to draw from.
        let interval = match bootstrap.over_windows(&name, &measure.spectra, &fit) {
            Ok(i) => format!("{:.2} to {:.2}", i.low, i.high),
            Err(_) => "one window".to_string(),
        };
        let shape = format!("{} x {}", weight.nrows(), weight.ncols());
        println!("{name:<40} {shape:>12} {:>7.3} {:>7.3}  {interval}", whole.alpha, measure.alpha);
        if rows.is_empty() {
            DensityPlot::new(&format!("{name}, whole"), &spectrum)
                .fit(whole)
                .save(&args.out.join("density-whole.svg"))?;
            if let Some((pooled, fit)) = measure.spectra.pooled().zip(&measure.fits).next() {
                DensityPlot::new(&format!("{name}, windows of {window} rows"), pooled)
                    .fit(*fit)
                    .save(&args.out.join("density-windows.svg"))?;
            }
        }
        rows.push(Row { layer, whole: whole.alpha, windows: measure.alpha });
    }
    by_shape(&rows);
    figures(&rows, &args.out)?;
    println!("\nfigures are in {}", args.out.display());
    Ok(())
}

/// Mean exponent of each shape, and how far the shapes lie apart.
fn by_shape(rows: &[Row]) {
    let mut shapes: BTreeMap<Vec<usize>, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        shapes.entry(row.layer.shape.clone()).or_default().push(row);
    }
    println!("\n{:<14} {:>7} {:>7} {:>7}", "shape", "layers", "whole", "farms");
    let mut means = Vec::new();
    for (shape, rows) in &shapes {
        let mean =
            |of: fn(&Row) -> f64| rows.iter().map(|r| of(r)).sum::<f64>() / rows.len() as f64;
        let (whole, windows) = (mean(|r| r.whole), mean(|r| r.windows));
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        println!("{shape:<14} {:>7} {whole:>7.3} {windows:>7.3}", rows.len());
        means.push((whole, windows));
    }
    let spread = |of: fn(&(f64, f64)) -> f64| {
        let high = means.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        high - means.iter().map(of).fold(f64::INFINITY, f64::min)
    };
    println!("{:<22} {:>7.3} {:>7.3}", "between shapes", spread(|m| m.0), spread(|m| m.1));
}

fn figures(rows: &[Row], out: &Path) -> Result<(), Box<dyn Error>> {
    let mut shapes = ShapePlot::new("exponents by shape, from whole weights and from windows");
    let mut roles: BTreeMap<&str, [Vec<(usize, f64)>; 2]> = BTreeMap::new();
    for row in rows {
        let (r, c) = (row.layer.shape[0], row.layer.shape[1]);
        shapes = shapes.layer(r, c, row.whole, row.windows);
        if let Some(block) = row.layer.block {
            let [whole, windows] = roles.entry(&row.layer.role).or_default();
            whole.push((block, row.whole));
            windows.push((block, row.windows));
        }
    }
    shapes.save(&out.join("shapes.svg"))?;
    let mut whole = DepthPlot::new("exponents by depth, whole weights");
    let mut windows = DepthPlot::new("exponents by depth, windows");
    for (role, [w, f]) in roles {
        whole = whole.series(role, w);
        windows = windows.series(role, f);
    }
    whole.save(&out.join("depth-whole.svg"))?;
    windows.save(&out.join("depth-windows.svg"))?;
    Ok(())
}
